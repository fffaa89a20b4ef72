//! A vCPU's context on its way from one machine to another: what names machine frames in it
//! becomes page numbers at the source, and other frames at the destination.

use super::sys::CONTEXT_LEN;

/// Offsets in `struct vcpu_guest_context` (`arch-x86/xen.h`).
const FLAGS: usize = 512;
const RAX: usize = 520 + 8 * 10;
const RDX: usize = 520 + 8 * 12;
const GDT_FRAMES: usize = 4832;
const GDT_ENTRIES: usize = 4960;
const CR1: usize = 4984 + 8;
const CR3: usize = 4984 + 24;
/// `VGCF_online`: the vCPU takes part.
const ONLINE: u64 = 1 << 5;
/// Entries of a descriptor table in a page.
const GDT_PER_FRAME: u64 = 512;
/// Most entries before Xen's own.
const GDT_MOST: u64 = 14 * GDT_PER_FRAME;

const _: () = assert!(CONTEXT_LEN == 5168);

/// A context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context(pub Box<[u8; CONTEXT_LEN]>);

/// Why a context cannot be moved: it names something that is not the domain's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the vCPU's {0} is not in the domain's memory")]
pub struct Foreign(&'static str);

impl Context {
    /// The context in these bytes, if they are as many as it has.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self(Box::new(bytes.try_into().ok()?)))
    }

    fn word(&self, at: usize) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|index| self.0[at + index]))
    }

    fn set(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Address of the top page table: a frame, or a page number while it travels.
    pub fn top_table(&self) -> u64 {
        self.word(CR3) >> 12
    }

    /// The third argument of the hypercall by which it suspended: the frame of start info.
    pub fn rdx(&self) -> u64 {
        self.word(RDX)
    }

    /// Sets what [`Self::rdx`] gives.
    pub fn set_rdx(&mut self, value: u64) {
        self.set(RDX, value);
    }

    /// Sets what the hypercall by which it suspended returns.
    pub fn set_result(&mut self, value: u64) {
        self.set(RAX, value);
    }

    /// Puts into the place of each frame (or page number) what `translate` has for it.
    ///
    /// # Errors
    /// If it has nothing for one.
    pub fn translate(&mut self, translate: impl Fn(u64) -> Option<u64>) -> Result<(), Foreign> {
        let table = translate(self.top_table()).ok_or(Foreign("top page table"))?;
        self.set(CR3, table << 12 | self.word(CR3) & 0xfff);
        // The second root, of user mode; its lowest bit says that there is one.
        let user = self.word(CR1);
        if user & !1 != 0 {
            let table = translate(user >> 12).ok_or(Foreign("page table of user mode"))?;
            self.set(CR1, table << 12 | 1);
        }
        let entries = self.word(GDT_ENTRIES);
        if entries > GDT_MOST {
            return Err(Foreign("descriptor table"));
        }
        for frame in 0..entries.div_ceil(GDT_PER_FRAME) as usize {
            let at = GDT_FRAMES + 8 * frame;
            let value = translate(self.word(at)).ok_or(Foreign("descriptor table"))?;
            self.set(at, value);
        }
        Ok(())
    }

    /// Marks it as one that runs: what is read of a domain that has shut down may not be.
    pub fn set_online(&mut self) {
        self.set(FLAGS, self.word(FLAGS) | ONLINE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn context() -> Context {
        let mut context = Context(Box::new([0; CONTEXT_LEN]));
        context.set(CR3, 5 << 12);
        context
    }

    #[test]
    fn frames_become_pages_and_frames_again() {
        let mut context = context();
        context.set(CR1, 6 << 12 | 1);
        context.set(GDT_ENTRIES, 513);
        context.set(GDT_FRAMES, 7);
        context.set(GDT_FRAMES + 8, 8);
        let before = context.clone();
        context.translate(|frame| Some(frame + 100)).unwrap();
        assert_eq!(context.top_table(), 105);
        assert_eq!(context.word(CR1), 106 << 12 | 1);
        assert_eq!([context.word(GDT_FRAMES), context.word(GDT_FRAMES + 8)], [107, 108]);
        context.translate(|page| page.checked_sub(100)).unwrap();
        assert_eq!(context, before);
    }

    #[test]
    fn what_is_not_the_domains_is_an_error() {
        assert_eq!(context().translate(|_| None), Err(Foreign("top page table")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_translated_or_refused(words in proptest::collection::vec(any::<u64>(), CONTEXT_LEN / 8)) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            let mut context = Context::from_bytes(&bytes).unwrap();
            let _ = context.translate(|frame| (frame % 3 != 0).then_some(frame / 2));
        }
    }
}
