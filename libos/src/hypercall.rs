//! One typed function for each hypercall operation in use.
//!
//! Nothing outside of this file builds an argument structure or sees a number.
//! Results are Xen's, with the error as a positive number in [`Errno`].

use crate::arch::hypercall;
use core::fmt;
use xen_proto::{
    DomId,
    evtchn::Port,
    frame::{Mfn, Pte},
    hypercall::{MmuExtOp, MmuUpdate, TrapInfo, UVMF_INVLPG, evtchn, gnttab, memory, nr, sched, vcpu},
};

/// Why Xen refused, as its public `errno.h` numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub u32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "xen refused with error {}", self.0)
    }
}

impl core::error::Error for Errno {}

fn check(result: isize) -> Result<(), Errno> {
    if result < 0 { Err(Errno(result.unsigned_abs() as u32)) } else { Ok(()) }
}

/// Registers trap handlers; the table's last entry must be zero.
///
/// # Safety
/// The handlers must be able to deal with the traps.
pub(crate) unsafe fn set_trap_table(table: &[TrapInfo]) -> Result<(), Errno> {
    assert!(table.last().is_some_and(|entry| entry.address == 0));
    // SAFETY: the table is ended, and the caller vouches for the handlers.
    check(unsafe { hypercall(nr::SET_TRAP_TABLE, [table.as_ptr().expose_provenance(), 0, 0, 0]) })
}

/// Changes page-table entries, in order.
///
/// # Safety
/// No memory that is in use may lose its mapping or get another one.
pub(crate) unsafe fn mmu_update(updates: &[MmuUpdate]) -> Result<(), Errno> {
    let domain = usize::from(DomId::SELF.0);
    // SAFETY: pointer and length are of one slice; the caller vouches for the changes.
    check(unsafe {
        hypercall(nr::MMU_UPDATE, [updates.as_ptr().expose_provenance(), updates.len(), 0, domain])
    })
}

/// Changes the entry that maps `address`.
///
/// # Safety
/// As [`mmu_update`].
pub(crate) unsafe fn update_va_mapping(address: usize, entry: Pte) -> Result<(), Errno> {
    // SAFETY: the caller vouches for the change.
    check(unsafe { hypercall(nr::UPDATE_VA_MAPPING, [address, entry.0 as usize, UVMF_INVLPG, 0]) })
}

/// Empties the TLB.
pub(crate) fn flush_tlb() {
    let operation = MmuExtOp { command: MmuExtOp::TLB_FLUSH_LOCAL, arg1: 0, arg2: 0 };
    let (pointer, domain) = ((&raw const operation).expose_provenance(), usize::from(DomId::SELF.0));
    // SAFETY: one operation, which is read alone; it has no effect that memory shows.
    let result = unsafe { hypercall(nr::MMUEXT_OP, [pointer, 1, 0, domain]) };
    check(result).expect("the TLB is emptied");
}

/// Pages that the domain has.
pub(crate) fn current_reservation() -> u64 {
    let domain = DomId::SELF;
    let pointer = (&raw const domain).expose_provenance();
    // SAFETY: Xen reads the number of the domain, and changes nothing.
    let result = unsafe { hypercall(nr::MEMORY_OP, [memory::CURRENT, pointer, 0, 0]) };
    result.try_into().expect("xen knows how much memory the domain has")
}

/// Gives the machine frames in `frames` back; returns how many of them, from the first on, have
/// gone.
///
/// # Safety
/// Nothing may refer to them any more, no page table either.
pub(crate) unsafe fn decrease_reservation(frames: &[u64]) -> usize {
    // SAFETY: the pointer is to as many frames as said, which Xen reads; the caller gives them away.
    unsafe { change_reservation(memory::DECREASE, frames.as_ptr().expose_provenance(), frames.len()) }
}

/// Takes memory for the domain's own frames `frames`, which have none; returns for how many of
/// them, from the first on, there was some: in their place is the machine frame.
pub(crate) fn populate(frames: &mut [u64]) -> usize {
    // SAFETY: the pointer is to as many numbers as said, which Xen changes; new memory is nobody's.
    unsafe { change_reservation(memory::POPULATE, frames.as_mut_ptr().expose_provenance(), frames.len()) }
}

/// # Safety
/// As the operation's.
unsafe fn change_reservation(operation: usize, extents: usize, count: usize) -> usize {
    let mut argument = memory::Reservation {
        extents: extents as u64,
        nr_extents: count as u64,
        extent_order: 0,
        flags: 0,
        domain: DomId::SELF,
    };
    let pointer = (&raw mut argument).expose_provenance();
    // SAFETY: the structure belongs to both operations; the caller vouches for the rest.
    let result = unsafe { hypercall(nr::MEMORY_OP, [operation, pointer, 0, 0]) };
    usize::try_from(result).unwrap_or(0).min(count)
}

/// Calls `operation` of `class` with a structure that Xen may change.
fn call<T>(class: usize, operation: usize, argument: &mut T) -> Result<(), Errno> {
    // SAFETY: this file passes the structure that belongs to the operation. None of
    // them changes memory beyond it, but for `setup_grant_table`, which see.
    check(unsafe { hypercall(class, [operation, (&raw mut *argument).expose_provenance(), 0, 0]) })
}

/// Ends the domain in good order.
pub(crate) fn power_off() -> ! {
    let mut argument = sched::Shutdown { reason: sched::POWEROFF };
    loop {
        // Does not return; if it ever did, there would be nothing better to do.
        let _ = call(nr::SCHED_OP, sched::SHUTDOWN, &mut argument);
    }
}

/// Suspends the domain; returns whether it goes on in a new one.
///
/// # Safety
/// Everything that is another in a new domain must be ready for that: mappings of what is not
/// the domain's own memory, ports, grants. `start_info` must be the frame of the start-info page.
pub(crate) unsafe fn suspend(start_info: Mfn) -> bool {
    let mut argument = sched::Shutdown { reason: sched::SUSPEND };
    let pointer = (&raw mut argument).expose_provenance();
    // SAFETY: the structure belongs to the operation; the caller vouches for the rest.
    let result = unsafe { hypercall(nr::SCHED_OP, [sched::SHUTDOWN, pointer, start_info.0 as usize, 0]) };
    result == 0
}

/// Sleeps until one of `ports` has an event, or until the absolute system time.
///
/// Also returns for other events of the domain when there is not exactly one port.
pub(crate) fn poll(ports: &[Port], deadline_ns: Option<u64>) -> Result<(), Errno> {
    const { assert!(size_of::<Port>() == size_of::<u32>()) };
    /// Some 146 years of system time: later is never.
    const FAR_NS: u64 = 1 << 62;
    let mut argument = sched::Poll {
        ports: ports.as_ptr().expose_provenance() as u64,
        nr_ports: ports.len() as u32,
        // 0 means no limit, and what is negative as a signed number is over at once.
        timeout_ns: deadline_ns.filter(|&deadline| deadline < FAR_NS).map_or(0, |deadline| deadline.max(1)),
    };
    call(nr::SCHED_OP, sched::POLL, &mut argument)
}

/// Ends the 100 Hz timer of a new vCPU: nobody listens.
pub(crate) fn stop_periodic_timer() {
    // SAFETY: has no argument but the vCPU's number, and no effect on memory.
    let result = unsafe { hypercall(nr::VCPU_OP, [vcpu::STOP_PERIODIC_TIMER, 0, 0, 0]) };
    check(result).expect("the periodic timer is stopped");
}

/// Sends an event through `port`.
pub(crate) fn notify(port: Port) -> Result<(), Errno> {
    call(nr::EVENT_CHANNEL_OP, evtchn::SEND, &mut evtchn::Port { port: port.0 })
}

/// Gives `port` back.
pub(crate) fn close_port(port: Port) -> Result<(), Errno> {
    call(nr::EVENT_CHANNEL_OP, evtchn::CLOSE, &mut evtchn::Port { port: port.0 })
}

/// Makes a port that `remote` may connect to.
pub(crate) fn alloc_unbound_port(remote: DomId) -> Result<Port, Errno> {
    let mut argument = evtchn::AllocUnbound { domain: DomId::SELF, remote, port: 0 };
    call(nr::EVENT_CHANNEL_OP, evtchn::ALLOC_UNBOUND, &mut argument)?;
    Ok(Port(argument.port))
}

/// Connects to the port that `remote` made for us.
pub(crate) fn bind_port(remote: DomId, remote_port: Port) -> Result<Port, Errno> {
    let mut argument = evtchn::BindInterdomain { remote, remote_port: remote_port.0, local_port: 0 };
    call(nr::EVENT_CHANNEL_OP, evtchn::BIND_INTERDOMAIN, &mut argument)?;
    Ok(Port(argument.local_port))
}

/// Makes the grant table at least `frames.len()` frames large, and fills in which they are.
pub(crate) fn setup_grant_table(frames: &mut [u64]) -> Result<(), Errno> {
    let mut argument = gnttab::SetupTable {
        domain: DomId::SELF,
        nr_frames: frames.len() as u32,
        status: 0,
        frames: frames.as_mut_ptr().expose_provenance() as u64,
    };
    let pointer = (&raw mut argument).expose_provenance();
    // SAFETY: Xen writes at most `nr_frames` words, which `frames` has.
    check(unsafe { hypercall(nr::GRANT_TABLE_OP, [gnttab::SETUP_TABLE, pointer, 1, 0]) })?;
    if argument.status == 0 { Ok(()) } else { Err(Errno(argument.status.unsigned_abs().into())) }
}
