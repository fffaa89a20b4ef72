//! The shared-info page: byte offsets of its fields, for vCPU 0.
//!
//! `struct shared_info` in `xen/include/public/xen.h`, x86, 64 bit.

/// `u64`: the address of the last page fault.
#[doc(alias = "arch_vcpu_info.cr2")]
pub const CR2: usize = 16;
/// The time record of the vCPU; see [`pvclock`](crate::pvclock).
#[doc(alias = "vcpu_time_info")]
pub const VCPU_TIME: usize = 32;
/// `[u64; 64]`: which event channels have an event.
pub const EVTCHN_PENDING: usize = 2048;
/// `u32`: version of the wall clock, odd while it changes.
pub const WC_VERSION: usize = 3072;
/// `u32`: seconds since 1970 at system time 0, low half.
pub const WC_SEC: usize = 3076;
/// `u32`: nanoseconds on top.
pub const WC_NSEC: usize = 3080;
/// `u32`: seconds, high half.
pub const WC_SEC_HI: usize = 3084;
/// `u64`, written by the guest: how many entries its p2m list has.
#[doc(alias = "arch_shared_info.max_pfn")]
pub const MAX_PFN: usize = 3088;
/// `u64`, written by the guest: the root of the tree by which older tools find the p2m list;
/// [`NO_P2M_TREE`] if there is none.
#[doc(alias = "pfn_to_mfn_frame_list_list")]
pub const P2M_TREE: usize = 3096;
/// No tree: the list is at [`P2M_VADDR`].
pub const NO_P2M_TREE: u64 = u64::MAX;
/// `u64`, written by the guest: machine address of the top page table that maps the p2m list.
pub const P2M_CR3: usize = 3112;
/// `u64`, written by the guest: virtual address of the p2m list.
pub const P2M_VADDR: usize = 3120;
