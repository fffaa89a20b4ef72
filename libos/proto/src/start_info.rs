//! The start-info page: what a PV domain's builder tells its kernel.

/// Bytes of the command line, with its zero byte.
#[doc(alias = "MAX_GUEST_CMDLINE")]
pub const COMMAND_LINE_LEN: usize = 1024;

/// What [`StartInfo::magic`] begins with.
pub const MAGIC: &[u8] = b"xen-3.0-x86_64";

/// The page's content (`struct start_info` in `xen/include/public/xen.h`).
///
/// The address of the page is in `rsi` when the kernel is entered.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct StartInfo {
    /// [`MAGIC`], filled up with zero bytes.
    pub magic: [u8; 32],
    /// Pages of the domain; its frames are 0 to this.
    pub nr_pages: u64,
    /// Machine address of the shared-info page.
    pub shared_info: u64,
    /// `SIF_*` flags.
    pub flags: u32,
    /// Machine frame of the xenstore ring page.
    pub store_mfn: u64,
    /// The port towards xenstored.
    pub store_evtchn: u32,
    /// Machine frame of the console page.
    pub console_mfn: u64,
    /// The port towards the console.
    pub console_evtchn: u32,
    /// Virtual address of the top page table.
    pub pt_base: u64,
    /// How many frames the initial page tables have.
    pub nr_pt_frames: u64,
    /// Virtual address of the p2m list: a machine frame for each frame.
    pub mfn_list: u64,
    /// Virtual address of the boot module, 0 when there is none.
    pub mod_start: u64,
    /// Its length in bytes.
    pub mod_len: u64,
    /// Ends with a zero byte.
    pub cmd_line: [u8; COMMAND_LINE_LEN],
    /// First frame of a p2m list that lies elsewhere; unused here.
    pub first_p2m_pfn: u64,
    /// Frames of a p2m list that lies elsewhere; unused here.
    pub nr_p2m_frames: u64,
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<StartInfo>() == 1168);
    assert!(offset_of!(StartInfo, nr_pages) == 32);
    assert!(offset_of!(StartInfo, shared_info) == 40);
    assert!(offset_of!(StartInfo, store_mfn) == 56);
    assert!(offset_of!(StartInfo, store_evtchn) == 64);
    assert!(offset_of!(StartInfo, console_mfn) == 72);
    assert!(offset_of!(StartInfo, console_evtchn) == 80);
    assert!(offset_of!(StartInfo, pt_base) == 88);
    assert!(offset_of!(StartInfo, mfn_list) == 104);
    assert!(offset_of!(StartInfo, mod_start) == 112);
    assert!(offset_of!(StartInfo, cmd_line) == 128);
    assert!(offset_of!(StartInfo, first_p2m_pfn) == 1152);
};
