//! Numbers and argument structures of the hypercalls that a PV guest uses.
//!
//! From Xen's `xen/include/public`: `xen.h`, `memory.h`, `sched.h`, `event_channel.h`,
//! `grant_table.h`, `vcpu.h`, `arch-x86/xen.h`. Pointers are addresses in the
//! caller, as `u64`.

use crate::domid::DomId;

/// Hypercall numbers, `__HYPERVISOR_*`.
#[allow(missing_docs, reason = "the names are Xen's own")]
pub mod nr {
    pub const SET_TRAP_TABLE: usize = 0;
    pub const MMU_UPDATE: usize = 1;
    pub const MEMORY_OP: usize = 12;
    pub const UPDATE_VA_MAPPING: usize = 14;
    pub const GRANT_TABLE_OP: usize = 20;
    pub const VCPU_OP: usize = 24;
    pub const MMUEXT_OP: usize = 26;
    pub const SCHED_OP: usize = 29;
    pub const EVENT_CHANNEL_OP: usize = 32;
}

/// One entry of the table for `set_trap_table`; an entry with `address` 0 ends it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
#[doc(alias = "trap_info")]
pub struct TrapInfo {
    /// The exception.
    pub vector: u8,
    /// Privilege level that may raise it (bits 0 and 1), and [`Self::MASK_EVENTS`].
    pub flags: u8,
    /// Code selector of the handler.
    pub cs: u16,
    /// The handler.
    pub address: u64,
}

impl TrapInfo {
    /// Event delivery is masked when the handler is entered.
    pub const MASK_EVENTS: u8 = 4;
}

/// Xen's flat 64-bit code selector for PV guests.
#[doc(alias = "FLAT_KERNEL_CS")]
pub const FLAT_CODE: u16 = 0xe033;

/// One request of `mmu_update`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[doc(alias = "mmu_update_t")]
pub struct MmuUpdate {
    /// Machine address of the entry; the low two bits are the kind of update, 0 for an ordinary one.
    pub entry: u64,
    /// The entry's new content.
    pub value: u64,
}

/// `update_va_mapping`: flush the address from the TLB.
pub const UVMF_INVLPG: usize = 2;

/// One operation of `mmuext_op`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[doc(alias = "mmuext_op_t")]
pub struct MmuExtOp {
    /// Which: [`Self::TLB_FLUSH_LOCAL`].
    pub command: u32,
    /// A machine frame or an address, as the operation has it.
    pub arg1: u64,
    /// As the operation has it.
    pub arg2: u64,
}

impl MmuExtOp {
    /// Empties the TLB of the processor that asks.
    #[doc(alias = "MMUEXT_TLB_FLUSH_LOCAL")]
    pub const TLB_FLUSH_LOCAL: u32 = 6;
}

/// Operations of `memory_op`.
pub mod memory {
    use super::DomId;

    /// Gives pages back; see [`Reservation`]. The extents are machine frames. Returns how many
    /// extents were given back.
    #[doc(alias = "XENMEM_decrease_reservation")]
    pub const DECREASE: usize = 1;
    /// How many pages a domain has; the argument is its number.
    #[doc(alias = "XENMEM_current_reservation")]
    pub const CURRENT: usize = 3;
    /// Takes pages; see [`Reservation`]. The extents are the domain's own frames, and become machine
    /// frames. Returns how many there were.
    #[doc(alias = "XENMEM_populate_physmap")]
    pub const POPULATE: usize = 6;

    /// Argument of [`DECREASE`] and [`POPULATE`].
    #[derive(Clone, Copy, Debug)]
    #[repr(C)]
    #[doc(alias = "xen_memory_reservation")]
    pub struct Reservation {
        /// In: address of the extents, `u64` each.
        pub extents: u64,
        /// In: how many.
        pub nr_extents: u64,
        /// In: base 2 logarithm of an extent's pages.
        pub extent_order: u32,
        /// In: limits on where the memory may be; 0 for none.
        pub flags: u32,
        /// In: whose they are.
        pub domain: DomId,
    }
}

/// Operations of `sched_op`.
pub mod sched {
    /// Gives the processor away for a moment.
    #[doc(alias = "SCHEDOP_yield")]
    pub const YIELD: usize = 0;
    /// Ends or suspends the domain; see [`Shutdown`].
    #[doc(alias = "SCHEDOP_shutdown")]
    pub const SHUTDOWN: usize = 2;
    /// Sleeps until an event is pending or the time has come; see [`Poll`].
    #[doc(alias = "SCHEDOP_poll")]
    pub const POLL: usize = 3;

    /// Most ports that one poll may name; Xen refuses more.
    pub const POLL_PORTS_MAX: usize = 128;

    /// Argument of [`SHUTDOWN`].
    #[derive(Clone, Copy, Debug)]
    #[repr(C)]
    pub struct Shutdown {
        /// Why: [`POWEROFF`], [`SUSPEND`].
        pub reason: u32,
    }

    /// The domain is at its end.
    #[doc(alias = "SHUTDOWN_poweroff")]
    pub const POWEROFF: u32 = 0;
    /// The domain stands still, to go on here or elsewhere. The hypercall's third argument is
    /// the machine frame of the start-info page; it returns 0 in a new domain, 1 in the old one.
    #[doc(alias = "SHUTDOWN_suspend")]
    pub const SUSPEND: u32 = 2;

    /// Argument of [`POLL`].
    #[derive(Clone, Copy, Debug)]
    #[repr(C)]
    pub struct Poll {
        /// Address of the ports, `u32` each.
        pub ports: u64,
        /// How many, at most [`POLL_PORTS_MAX`].
        pub nr_ports: u32,
        /// Absolute system time in nanoseconds, 0 for no limit.
        pub timeout_ns: u64,
    }
}

/// Operations of `vcpu_op`.
pub mod vcpu {
    /// Ends the 100 Hz timer that a PV vCPU starts with.
    #[doc(alias = "VCPUOP_stop_periodic_timer")]
    pub const STOP_PERIODIC_TIMER: usize = 7;
}

/// Operations of `event_channel_op`.
pub mod evtchn {
    use super::DomId;

    /// See [`BindInterdomain`].
    #[doc(alias = "EVTCHNOP_bind_interdomain")]
    pub const BIND_INTERDOMAIN: usize = 0;
    /// See [`Port`].
    #[doc(alias = "EVTCHNOP_close")]
    pub const CLOSE: usize = 3;
    /// See [`Port`].
    #[doc(alias = "EVTCHNOP_send")]
    pub const SEND: usize = 4;
    /// See [`AllocUnbound`].
    #[doc(alias = "EVTCHNOP_alloc_unbound")]
    pub const ALLOC_UNBOUND: usize = 6;

    /// Connects to a port that another domain has allocated for us.
    #[derive(Clone, Copy, Debug)]
    #[repr(C)]
    pub struct BindInterdomain {
        /// In: the other domain.
        pub remote: DomId,
        /// In: its port.
        pub remote_port: u32,
        /// Out: ours.
        pub local_port: u32,
    }

    /// Argument of [`CLOSE`] and [`SEND`].
    #[derive(Clone, Copy, Debug)]
    #[repr(C)]
    pub struct Port {
        /// In: ours.
        pub port: u32,
    }

    /// Makes a port that another domain may connect to.
    #[derive(Clone, Copy, Debug)]
    #[repr(C)]
    pub struct AllocUnbound {
        /// In: whose port, ours or (privileged) another's.
        pub domain: DomId,
        /// In: who may connect.
        pub remote: DomId,
        /// Out: the port.
        pub port: u32,
    }
}

/// Operations of `grant_table_op`.
pub mod gnttab {
    use super::DomId;

    /// See [`SetupTable`].
    #[doc(alias = "GNTTABOP_setup_table")]
    pub const SETUP_TABLE: usize = 2;

    /// Sizes the grant table and tells its frames.
    #[derive(Clone, Copy, Debug)]
    #[repr(C)]
    pub struct SetupTable {
        /// In: [`DomId::SELF`].
        pub domain: DomId,
        /// In: how many frames it shall have at least.
        pub nr_frames: u32,
        /// Out: 0, or an error.
        pub status: i16,
        /// In: address of `nr_frames` words, which become the machine frames.
        pub frames: u64,
    }
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<TrapInfo>() == 16 && offset_of!(TrapInfo, address) == 8);
    assert!(size_of::<MmuUpdate>() == 16);
    assert!(size_of::<memory::Reservation>() == 32 && offset_of!(memory::Reservation, domain) == 24);
    assert!(size_of::<MmuExtOp>() == 24 && offset_of!(MmuExtOp, arg1) == 8);
    assert!(size_of::<sched::Poll>() == 24 && offset_of!(sched::Poll, timeout_ns) == 16);
    assert!(
        size_of::<evtchn::BindInterdomain>() == 12 && offset_of!(evtchn::BindInterdomain, remote_port) == 4
    );
    assert!(size_of::<evtchn::AllocUnbound>() == 8 && offset_of!(evtchn::AllocUnbound, port) == 4);
    assert!(size_of::<gnttab::SetupTable>() == 24 && offset_of!(gnttab::SetupTable, status) == 8);
    assert!(offset_of!(gnttab::SetupTable, frames) == 16);
};
