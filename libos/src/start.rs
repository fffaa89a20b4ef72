//! Start of day, top to bottom.

use crate::{arch, hypercall, mm, shared_info, single::Single};
use core::cell::Cell;
use xen_proto::{
    frame::{Mfn, Pfn},
    start_info::StartInfo,
};

static INFO: Single<Cell<Option<&StartInfo>>> = Single::new(Cell::new(None));

/// Called by the entry point, on the capsule's own stack; never returns.
///
/// Everything here is on the way from request to first output, so it does little:
/// what can wait is done by whoever needs it first.
pub(crate) extern "C" fn start(start_info: &'static StartInfo) -> ! {
    INFO.set(Some(start_info));
    // From here on the console works, and with it a report of what goes wrong.
    assert!(start_info.is_valid(), "the builder speaks Xen's 64-bit PV interface");
    // SAFETY: this is the one call.
    unsafe { shared_info::init(start_info) };
    arch::install_traps();
    hypercall::stop_periodic_timer();
    // SAFETY: this is the one call, and nothing has been allocated.
    unsafe { mm::heap::init(start_info) };

    unsafe extern "Rust" {
        /// Made by `#[libos::main]`.
        safe fn __fcap_main() -> !;
    }
    __fcap_main()
}

/// What the builder told us.
pub(crate) fn info() -> &'static StartInfo {
    INFO.get().expect("start of day has begun")
}

/// The machine frame behind one of the domain's own.
///
/// # Panics
/// If the domain has no such frame.
pub(crate) fn machine_frame(pfn: Pfn) -> Mfn {
    let info = info();
    assert!(pfn.0 < info.nr_pages, "the domain has the frame");
    let list = core::ptr::with_exposed_provenance::<u64>(info.mfn_list as usize);
    // SAFETY: the builder's list has an entry for each of the domain's frames.
    Mfn(unsafe { list.add(pfn.0 as usize).read() })
}

/// The boot module; empty if there is none.
pub(crate) fn module() -> &'static [u8] {
    let info = info();
    if info.mod_start == 0 {
        return &[];
    }
    let start = core::ptr::with_exposed_provenance(info.mod_start as usize);
    // SAFETY: the builder has placed the module there, and nothing changes it: the
    // heap begins behind it.
    unsafe { core::slice::from_raw_parts(start, info.mod_len as usize) }
}
