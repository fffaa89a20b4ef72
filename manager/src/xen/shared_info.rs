//! The parts of a guest's shared-info page that move with it (`xen.h`, `struct shared_info`).

use xen_proto::frame::PAGE_SIZE;

use super::sys::Mapping;

/// `struct vcpu_info` of each of the first 32 vCPUs.
const VCPU_INFO_LEN: usize = 64;
const VCPUS: usize = 32;
/// `evtchn_upcall_pending`, `evtchn_upcall_mask`, `evtchn_pending_sel` of a `vcpu_info`.
const UPCALL_PENDING: usize = 0;
const PENDING_SELECTOR: usize = 8;
const EVTCHN_MASK: usize = 2560;
const ARCH: usize = 3088;
const MAX_PFN: usize = ARCH;
const FRAME_LIST_LIST: usize = ARCH + 8;
const P2M_CR3: usize = ARCH + 24;
const P2M_VADDR: usize = ARCH + 32;
const ARCH_END: usize = ARCH + 48;

/// Where the guest says that its list of memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// Entries of the list.
    pub max_pfn: u64,
    /// Frame of the root of a tree; 0 or all ones when there is none.
    pub frame_list_list: u64,
    /// Address of the top page table through which it sees the list; 0 when there is a tree.
    pub p2m_cr3: u64,
    /// Virtual address of the list.
    pub p2m_vaddr: u64,
}

impl Arch {
    /// Reads it from a mapped shared-info page.
    pub fn read(page: &Mapping) -> Self {
        Self {
            max_pfn: page.read_u64(MAX_PFN),
            frame_list_list: page.read_u64(FRAME_LIST_LIST),
            p2m_cr3: page.read_u64(P2M_CR3),
            p2m_vaddr: page.read_u64(P2M_VADDR),
        }
    }
}

/// The page of a domain that comes from elsewhere, made of its old one as Xen's own tools do:
/// state of the vCPUs and of the architecture is kept, event channels are all new and masked.
/// `p2m_cr3` is what the old page's value has become.
pub fn restored(old: &[u8; PAGE_SIZE], p2m_cr3: u64) -> [u8; PAGE_SIZE] {
    let mut new = [0; PAGE_SIZE];
    let vcpus = VCPUS * VCPU_INFO_LEN;
    new[..vcpus].copy_from_slice(&old[..vcpus]);
    for vcpu in new[..vcpus].as_chunks_mut::<VCPU_INFO_LEN>().0 {
        vcpu[UPCALL_PENDING] = 0;
        vcpu[PENDING_SELECTOR..PENDING_SELECTOR + 8].fill(0);
    }
    new[EVTCHN_MASK..EVTCHN_MASK + 512].fill(0xff);
    new[ARCH..ARCH_END].copy_from_slice(&old[ARCH..ARCH_END]);
    new[FRAME_LIST_LIST..FRAME_LIST_LIST + 8].fill(0);
    set_p2m_cr3(&mut new, p2m_cr3);
    new
}

/// The value of `p2m_cr3` in a page.
pub fn p2m_cr3(page: &[u8; PAGE_SIZE]) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| page[P2M_CR3 + index]))
}

/// Changes that value.
pub fn set_p2m_cr3(page: &mut [u8; PAGE_SIZE], value: u64) {
    page[P2M_CR3..P2M_CR3 + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_and_architecture_are_kept_and_event_channels_are_new() {
        let mut old = [0x5a; PAGE_SIZE];
        old[1] = 1;
        let new = restored(&old, 0x1234_5000);
        assert_eq!((new[UPCALL_PENDING], new[1], new[16]), (0, 1, 0x5a));
        assert_eq!(new[PENDING_SELECTOR..PENDING_SELECTOR + 8], [0; 8]);
        assert!(new[2048..2560].iter().all(|&byte| byte == 0), "nothing is pending");
        assert!(new[2560..3072].iter().all(|&byte| byte == 0xff), "everything is masked");
        assert_eq!(new[MAX_PFN..MAX_PFN + 8], [0x5a; 8]);
        assert_eq!((p2m_cr3(&new), p2m_cr3(&old)), (0x1234_5000, 0x5a5a_5a5a_5a5a_5a5a));
        assert_eq!(new[P2M_VADDR..P2M_VADDR + 8], [0x5a; 8]);
    }
}
