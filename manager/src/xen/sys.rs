//! Hypercalls through libxenctrl, foreign memory, event channels, dom0's randomness: the only
//! unsafe code of the daemon.
//!
//! One function per operation, with real arguments; nobody else builds an argument structure
//! or sees a hypercall's number. All of it works from several threads at once: libxenctrl's
//! handle is opened re-entrant (its default), and errors travel in the thread's own `errno`.

#![allow(unsafe_code)]

mod buffer;
mod evtchn;
mod foreign;
mod migrate;
mod random;

use std::{
    ffi::{CStr, c_int},
    io,
    mem::zeroed,
    ptr::{self, NonNull},
};

pub use evtchn::EventChannels;
pub use foreign::{Foreign, Mapping, Window, Windows};
pub use migrate::{CONTEXT_LEN, M2P_PIECE, TYPES_MAX, TableOp};
pub use random::reseed;
use xen_proto::frame::PAGE_SHIFT;
use xenctrl_sys as xc;

/// The domain that fcapd runs in.
pub const DOM0: u32 = 0;

/// A domain, as Xen lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// Its number.
    pub domid: u32,
    /// `XEN_DOMINF_*`; see the methods.
    flags: u32,
    /// Pages it has.
    pub pages: u64,
    /// Pages it may have.
    pub max_pages: u64,
    /// Machine frame of its shared-info page.
    pub shared_info: u64,
    /// Nanoseconds that its vCPUs have run.
    pub cpu_time_ns: u64,
    /// vCPUs online.
    pub vcpus: u32,
    /// Its handle.
    pub handle: [u8; 16],
}

impl DomainInfo {
    /// Whether it is being torn down.
    pub fn is_dying(&self) -> bool {
        self.flags & xc::XEN_DOMINF_dying != 0
    }

    /// Whether the toolstack holds it.
    pub fn is_paused(&self) -> bool {
        self.flags & xc::XEN_DOMINF_paused != 0
    }

    /// The reason (`SHUTDOWN_*`), once it has shut down.
    pub fn shutdown(&self) -> Option<u32> {
        let reason = self.flags >> xc::XEN_DOMINF_shutdownshift & xc::XEN_DOMINF_shutdownmask;
        (self.flags & xc::XEN_DOMINF_shutdown != 0).then_some(reason)
    }
}

/// The machine's size and use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysInfo {
    /// Processors.
    pub cpus: u32,
    /// Pages of memory.
    pub total_pages: u64,
    /// Pages that nobody has, including those still to be cleared.
    pub free_pages: u64,
}

/// First state of a vCPU; everything else in it is 0 or flat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Virtual address of the first instruction.
    pub entry: u64,
    /// Virtual address of the start-info page.
    pub start_info: u64,
    /// Virtual address of the end of the boot stack.
    pub stack_end: u64,
    /// Machine frame of the top page table.
    pub top_table: u64,
}

/// Sets the niceness of the calling thread, and of those that it starts from now on.
///
/// # Errors
/// If it is below the present one, and this is not root.
pub fn set_niceness(niceness: i32) -> io::Result<()> {
    // SAFETY: no pointers; in Linux 0 is the calling thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness) }).map(drop)
}

/// Has the C library keep some of the memory that is freed. By default it gives everything above
/// 128 KiB back, and each page that is asked for again costs a PV kernel a fault and
/// Xen's help with the entry: with each record of a move that passes.
pub fn keep_freed_memory() {
    const KEPT: c_int = 4 << 20;
    for (parameter, value) in
        [(libc::M_TRIM_THRESHOLD, KEPT), (libc::M_MMAP_THRESHOLD, KEPT), (libc::M_ARENA_MAX, 2)]
    {
        // SAFETY: no pointers; what is not known is ignored.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// libxenctrl's handle.
#[derive(Debug)]
pub struct Hypercalls {
    handle: NonNull<xc::xc_interface>,
    calls: buffer::Calls,
}

// SAFETY: libxenctrl's calls on one handle may come from any thread (xenctrl.h: the handle
// is re-entrant unless XC_OPENFLAG_NON_REENTRANT was given, and it was not).
unsafe impl Send for Hypercalls {}
// SAFETY: as above.
unsafe impl Sync for Hypercalls {}

impl Drop for Hypercalls {
    fn drop(&mut self) {
        // SAFETY: opened in `open`, closed only here.
        unsafe { xc::xc_interface_close(self.handle.as_ptr()) };
    }
}

/// The count that a call returned, or the error that it left in `errno`.
fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

impl Hypercalls {
    /// Opens the door to the hypervisor.
    ///
    /// # Errors
    /// If this is no dom0 of Xen.
    pub fn open() -> io::Result<Self> {
        // SAFETY: null loggers are documented to mean stderr.
        let handle = unsafe { xc::xc_interface_open(ptr::null_mut(), ptr::null_mut(), 0) };
        let handle = NonNull::new(handle).ok_or_else(io::Error::last_os_error)?;
        match buffer::Calls::open() {
            Ok(calls) => Ok(Self { handle, calls }),
            Err(error) => {
                // SAFETY: opened above, and nobody else has it.
                unsafe { xc::xc_interface_close(handle.as_ptr()) };
                Err(error)
            }
        }
    }

    fn xch(&self) -> *mut xc::xc_interface {
        self.handle.as_ptr()
    }

    /// Makes an empty PV domain, paused.
    ///
    /// # Errors
    /// If Xen refuses (ENOMEM: no memory for its own structures).
    pub fn create_domain(&self, handle: [u8; 16], vcpus: u32, grant_frames: u32) -> io::Result<u32> {
        let mut config = xc::xen_domctl_createdomain {
            handle,
            max_vcpus: vcpus,
            max_evtchn_port: 1023,
            max_grant_frames: grant_frames as i32,
            max_maptrack_frames: 0,
            // Version 1 of the grant table.
            grant_opts: 1,
            ..Default::default()
        };
        let mut domid = 0;
        // SAFETY: both pointers are to live values of the right type.
        check(unsafe { xc::xc_domain_create(self.xch(), &mut domid, &mut config) })?;
        Ok(domid)
    }

    /// Allocates the vCPUs; the number must be the one given at creation.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn set_max_vcpus(&self, domid: u32, vcpus: u32) -> io::Result<()> {
        // SAFETY: no pointers.
        check(unsafe { xc::xc_domain_max_vcpus(self.xch(), domid, vcpus) }).map(drop)
    }

    /// Sets the most memory that the domain may have.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn set_max_memory(&self, domid: u32, kib: u64) -> io::Result<()> {
        // SAFETY: no pointers.
        check(unsafe { xc::xc_domain_setmaxmem(self.xch(), domid, kib) }).map(drop)
    }

    /// Lets the domain read the processor's own time-stamp counter, without a trap.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn set_native_tsc(&self, domid: u32) -> io::Result<()> {
        // SAFETY: no pointers.
        check(unsafe { xc::xc_domain_set_tsc_info(self.xch(), domid, 2, 0, 0, 0) }).map(drop)
    }

    /// Makes a port of the domain to which dom0 may bind.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn alloc_unbound_port(&self, domid: u32) -> io::Result<u32> {
        // SAFETY: no pointers.
        check(unsafe { xc::xc_evtchn_alloc_unbound(self.xch(), domid, DOM0) }).map(|port| port as u32)
    }

    /// Gives the domain memory in extents of 2^`order` pages: takes the first page number of
    /// each, returns the first machine frame of each in their place. Returns how many of them
    /// there was memory for.
    ///
    /// # Errors
    /// If Xen refuses for another reason than want of memory.
    pub fn populate(&self, domid: u32, order: u32, extents: &mut [u64]) -> io::Result<usize> {
        let count = extents.len() as u64;
        // SAFETY: the pointer is to `count` values of `xen_pfn_t`, which is u64 here.
        let done = unsafe {
            xc::xc_domain_populate_physmap(self.xch(), domid, count, order, 0, extents.as_mut_ptr())
        };
        check(done).map(|done| done as usize)
    }

    /// Tells Xen what number the domain has for one of its pages.
    ///
    /// # Errors
    /// If the frame is not the domain's.
    pub fn set_page_number(&self, domid: u32, mfn: u64, page: u64) -> io::Result<()> {
        let entry = mfn << PAGE_SHIFT | u64::from(xc::MMU_MACHPHYS_UPDATE);
        // Xen takes this from one who names no tables of another domain.
        self.calls.mmu_update(domid, true, &[(entry, page)])
    }

    /// Makes `mfn` a page of hypercall stubs.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn init_hypercall_page(&self, domid: u32, mfn: u64) -> io::Result<()> {
        let mut op = xc::xen_domctl {
            cmd: xc::XEN_DOMCTL_hypercall_init,
            interface_version: xc::XEN_DOMCTL_INTERFACE_VERSION,
            domain: domid as u16,
            ..Default::default()
        };
        op.u.hypercall_init = xc::xen_domctl_hypercall_init { gmfn: mfn };
        // SAFETY: the pointer is to a live operation whose union matches `cmd`.
        check(unsafe { xc::xc_domctl(self.xch(), &mut op) }).map(drop)
    }

    /// Has Xen check the page tables below `mfn`, and keeps it as a top table.
    ///
    /// # Errors
    /// If Xen finds the tables wrong.
    pub fn pin_top_table(&self, domid: u32, mfn: u64) -> io::Result<()> {
        let mut op = xc::mmuext_op { cmd: xc::MMUEXT_PIN_L4_TABLE, ..Default::default() };
        op.arg1.mfn = mfn;
        // SAFETY: the pointer is to one live operation.
        check(unsafe { xc::xc_mmuext_op(self.xch(), &mut op, 1, domid) }).map(drop)
    }

    /// Sets the first state of vCPU 0.
    ///
    /// # Errors
    /// If Xen finds it wrong.
    pub fn set_start(&self, domid: u32, start: &Start) -> io::Result<()> {
        // SAFETY: a structure of integers, for which zero is a value.
        let mut context: xc::vcpu_guest_context = unsafe { zeroed() };
        context.flags = u64::from(xc::VGCF_in_kernel | xc::VGCF_online);
        let regs = &mut context.user_regs;
        regs.__bindgen_anon_14.rsi = start.start_info;
        regs.__bindgen_anon_16.rip = start.entry;
        // Interrupt flag; Xen sets it in any case.
        regs.__bindgen_anon_17.rflags = 0x200;
        regs.__bindgen_anon_18.rsp = start.stack_end;
        // Xen's own flat segments.
        regs.cs = 0xe033;
        regs.ss = 0xe02b;
        context.kernel_ss = 0xe02b;
        context.kernel_sp = start.stack_end;
        context.ctrlreg[3] = start.top_table << 12;
        context.debugreg[6] = 0xffff_0ff0;
        context.debugreg[7] = 0x400;
        let mut any = xc::vcpu_guest_context_any_t { c: context };
        // SAFETY: the pointer is to a live context of a 64-bit guest.
        check(unsafe { xc::xc_vcpu_setcontext(self.xch(), domid, 0, &mut any) }).map(drop)
    }

    /// Machine frame of the first frame of the domain's grant table.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn grant_frame(&self, domid: u32) -> io::Result<u64> {
        let mut frame = 0;
        let mut op = xc::gnttab_setup_table {
            dom: domid as u16,
            nr_frames: 1,
            status: 0,
            frame_list: xc::__guest_handle_xen_pfn_t { p: &mut frame },
        };
        let len = size_of_val(&op) as c_int;
        // SAFETY: the operation is live, and so is the frame that its list of one points to.
        // libxenctrl hands `op` to Xen through a bounce buffer, but not what it points to;
        // that is on this thread's stack, which is present in memory.
        let result = unsafe {
            xc::xc_gnttab_op(
                self.xch(),
                xc::GNTTABOP_setup_table as c_int,
                ptr::from_mut(&mut op).cast(),
                len,
                1,
            )
        };
        check(result)?;
        match op.status {
            0 => Ok(frame),
            status => Err(io::Error::other(format!("grant table status {status}"))),
        }
    }

    /// Lists domains, at most as many as fit, from the number `first` on.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn domains_from(&self, first: u32, most: usize) -> io::Result<Vec<DomainInfo>> {
        let mut list = vec![xc::xc_domaininfo_t::default(); most];
        // SAFETY: the pointer is to `most` live entries.
        let count =
            check(unsafe { xc::xc_domain_getinfolist(self.xch(), first, most as u32, list.as_mut_ptr()) })?;
        list.truncate(count as usize);
        Ok(list
            .into_iter()
            .map(|info| DomainInfo {
                domid: info.domain.into(),
                flags: info.flags,
                pages: info.tot_pages,
                max_pages: info.max_pages,
                shared_info: info.shared_info_frame,
                cpu_time_ns: info.cpu_time,
                vcpus: info.nr_online_vcpus,
                handle: info.handle,
            })
            .collect())
    }

    /// One domain, if it is there.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn domain(&self, domid: u32) -> io::Result<Option<DomainInfo>> {
        // For a number that is not there Xen returns the next one that is.
        Ok(self.domains_from(domid, 1)?.into_iter().find(|info| info.domid == domid))
    }

    /// Lets a domain run.
    ///
    /// # Errors
    /// If it is gone.
    pub fn unpause(&self, domid: u32) -> io::Result<()> {
        // SAFETY: no pointers.
        check(unsafe { xc::xc_domain_unpause(self.xch(), domid) }).map(drop)
    }

    /// Holds a domain.
    ///
    /// # Errors
    /// If it is gone.
    pub fn pause(&self, domid: u32) -> io::Result<()> {
        // SAFETY: no pointers.
        check(unsafe { xc::xc_domain_pause(self.xch(), domid) }).map(drop)
    }

    /// Ends a domain and frees what it has, except pages that others still have mapped.
    ///
    /// # Errors
    /// If it is gone.
    pub fn destroy(&self, domid: u32) -> io::Result<()> {
        // SAFETY: no pointers.
        check(unsafe { xc::xc_domain_destroy(self.xch(), domid) }).map(drop)
    }

    /// Changes a domain's handle.
    ///
    /// # Errors
    /// If it is gone.
    pub fn set_handle(&self, domid: u32, mut handle: [u8; 16]) -> io::Result<()> {
        // SAFETY: a pointer to 16 live bytes, which are only read.
        check(unsafe { xc::xc_domain_sethandle(self.xch(), domid, handle.as_mut_ptr()) }).map(drop)
    }

    /// Sets weight and cap of credit2; a cap of 0 is none.
    ///
    /// # Errors
    /// If the scheduler does not take them, or is another one.
    pub fn set_credit2(&self, domid: u32, weight: u16, cap: u16) -> io::Result<()> {
        let mut params = xc::xen_domctl_sched_credit2 { weight, cap };
        // SAFETY: the pointer is to live parameters.
        check(unsafe { xc::xc_sched_credit2_domain_set(self.xch(), domid, &mut params) }).map(drop)
    }

    /// Size and use of the machine.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn phys_info(&self) -> io::Result<PhysInfo> {
        let mut info = xc::xc_physinfo_t::default();
        // SAFETY: the pointer is to a live structure.
        check(unsafe { xc::xc_physinfo(self.xch(), &mut info) })?;
        Ok(PhysInfo { cpus: info.nr_cpus, total_pages: info.total_pages, free_pages: info.free_pages })
    }

    /// Xen's version, "4.17.7".
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn version(&self) -> io::Result<String> {
        // SAFETY: XENVER_version takes no argument.
        let version =
            check(unsafe { xc::xc_version(self.xch(), xc::XENVER_version as c_int, ptr::null_mut()) })?;
        // `xen_extraversion_t` is 16 bytes.
        let mut extra = [0u8; 17];
        // SAFETY: the pointer is to at least 16 live bytes; the last one stays zero.
        check(unsafe {
            xc::xc_version(self.xch(), xc::XENVER_extraversion as c_int, extra.as_mut_ptr().cast())
        })?;
        let extra = CStr::from_bytes_until_nul(&extra).unwrap_or_default().to_string_lossy().into_owned();
        Ok(format!("{}.{}{extra}", version >> 16, version & 0xffff))
    }

    /// The command line that the hypervisor was booted with.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn command_line(&self) -> io::Result<String> {
        // `xen_commandline_t`; one more byte stays zero.
        let mut line = [0u8; size_of::<xc::xen_commandline_t>() + 1];
        // SAFETY: the pointer is to at least as many live bytes as Xen writes.
        check(unsafe {
            xc::xc_version(self.xch(), xc::XENVER_commandline as c_int, line.as_mut_ptr().cast())
        })?;
        Ok(CStr::from_bytes_until_nul(&line).unwrap_or_default().to_string_lossy().into_owned())
    }

    /// Turns tracking of dirty pages on; fails with EOPNOTSUPP where the hypervisor was built
    /// without it.
    ///
    /// # Errors
    /// If Xen refuses.
    pub fn enable_log_dirty(&self, domid: u32) -> io::Result<()> {
        let op = xc::XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY;
        // SAFETY: a null pointer means that no size of the pool is asked for.
        check(unsafe { xc::xc_shadow_control(self.xch(), domid, op, ptr::null_mut(), 0) }).map(drop)
    }
}
