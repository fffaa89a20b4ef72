//! Three ways to know which pages a domain has written to.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use fcap_migrate::bitmap::PageBitmap;
use fcap_migrate::domain::{DirtySource, DomainError, DomainResult, Page, PfnRange};
use fcap_migrate::page::PageType;
use fcap_migrate::sums::Sums;
use xen_proto::{
    console::{GUEST_SUSPENDS, HOST_TRACK, NO_TRACKING},
    dirty as contract,
    frame::{PAGE_SIZE, Pfn},
};

use super::source::{Tracker, View, failed, nonsense, toolstack_failed};
use crate::{
    toolstack::Tracking,
    xen::{
        dirty,
        sys::{Mapping, TYPES_MAX},
    },
};

/// How long a capsule has to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The one that is wanted, or the best that there is.
pub(super) fn tracker(view: &Arc<View>, tracking: Tracking) -> DomainResult<Box<dyn Tracker>> {
    let listens = view.with(|held| held.console.guest_flags() & GUEST_SUSPENDS != 0)?;
    let log_dirty = || view.shared().has_log_dirty();
    let chosen = match tracking {
        Tracking::Best if listens => Tracking::Guest,
        Tracking::Best if log_dirty() => Tracking::LogDirty,
        Tracking::Best => Tracking::DirtyBits,
        Tracking::Guest if !listens => {
            return Err(nonsense("only capsules track their own writes; use dirty bits".into()));
        }
        Tracking::LogDirty if !log_dirty() => {
            return Err(nonsense("this hypervisor was built without log-dirty mode; use dirty bits".into()));
        }
        other => other,
    };
    let view = view.clone();
    Ok(match chosen {
        Tracking::LogDirty => Box::new(LogDirty { view, start_info: None }),
        Tracking::DirtyBits => Box::new(DirtyBits::new(view)),
        Tracking::Guest | Tracking::Best => Box::new(GuestAssisted { view, maps: None }),
    })
}

/// The pages that the toolstack and its daemons write to, once the domain is suspended.
fn ours(view: &View, start_info: Option<u64>) -> DomainResult<Vec<u64>> {
    let places = view.places()?;
    Ok([places.console, places.store].into_iter().chain(start_info).collect())
}

/// The library OS looks at its own page tables.
struct GuestAssisted {
    view: Arc<View>,
    maps: Option<Maps>,
}

struct Maps {
    page: Mapping,
    /// The three bitmaps one behind the other: dirty, void, always.
    bitmaps: Mapping,
    words: usize,
    /// Bytes between two bitmaps.
    stride: usize,
    round: u32,
}

impl Maps {
    fn words(&self) -> impl Iterator<Item = [u64; 3]> {
        (0..self.words)
            .map(|word| [0, 1, 2].map(|bitmap| self.bitmaps.read_u64(bitmap * self.stride + word * 8)))
    }

    /// Adds the pages that `which` picks of each 64.
    fn add(&self, to: &mut PageBitmap, which: fn(u64, u64, u64) -> u64) {
        let words: Vec<u64> = self.words().map(|[dirty, void, always]| which(dirty, void, always)).collect();
        to.insert_words(0, &words);
    }
}

impl GuestAssisted {
    fn maps(&mut self) -> DomainResult<&mut Maps> {
        self.maps.as_mut().ok_or_else(|| nonsense("it does not track its writes".into()))
    }

    fn map(&self, page: u32) -> DomainResult<Maps> {
        let view = &self.view;
        let tracking_page = view.map_page(page.into())?;
        let mut head = [0; contract::HEAD_LEN];
        tracking_page.read(0, &mut head);
        let head = contract::Tracking::parse(&head, view.p2m().len());
        let head = head.map_err(|error| nonsense(error.to_string()))?;
        let frames = contract::bitmap_frames(head.pages);
        let pages =
            [head.dirty, head.void, head.always].into_iter().flat_map(|Pfn(first)| first..first + frames);
        let mfns = pages.map(|page| view.p2m().frame(page)).collect::<Option<Vec<_>>>();
        let mfns = mfns.ok_or_else(|| nonsense("its bitmaps are not in its memory".into()))?;
        let bitmaps = view.host().foreign.map_to_read(view.domid(), &mfns);
        Ok(Maps {
            page: tracking_page,
            bitmaps: bitmaps.map_err(failed("mapping of the capsule's bitmaps"))?,
            words: contract::bitmap_words(head.pages),
            stride: frames as usize * PAGE_SIZE,
            round: 0,
        })
    }
}

impl DirtySource for GuestAssisted {
    fn name(&self) -> &'static str {
        "guest-assisted"
    }

    fn begin(&mut self) -> DomainResult<()> {
        let view = self.view.clone();
        let announced = || view.with(|held| held.console.tracking());
        // A page of earlier tracking, here or where the capsule comes from, is about to be given
        // back: nothing may be written there.
        if announced()? != 0 {
            view.with(|held| held.console.change_flags(0, HOST_TRACK))?;
            view.notify()?;
            let ended = view.wait_for(PATIENCE, || Ok((announced()? == 0).then_some(())))?;
            ended.ok_or(DomainError::NoAnswer { seconds: PATIENCE.as_secs() })?;
        }
        view.with(|held| held.console.change_flags(HOST_TRACK, 0))?;
        view.notify()?;
        let found = view.wait_for(PATIENCE, || {
            let page = announced()?;
            Ok((page != 0).then_some(page))
        });
        let maps = match found {
            Ok(Some(NO_TRACKING)) => {
                Err(nonsense("it has no memory to track its writes; use dirty bits".into()))
            }
            Ok(Some(page)) => self.map(page),
            Ok(None) => Err(DomainError::NoAnswer { seconds: PATIENCE.as_secs() }),
            Err(error) => Err(error),
        };
        match maps {
            Ok(maps) => self.maps = Some(maps),
            Err(error) => {
                self.end();
                return Err(error);
            }
        }
        Ok(())
    }

    fn take(&mut self, dirty: &mut PageBitmap) -> DomainResult<()> {
        let view = self.view.clone();
        let maps = self.maps()?;
        maps.round = maps.round.wrapping_add(1);
        maps.page.write_u32(contract::REQUEST, maps.round);
        view.notify()?;
        let answered = view
            .wait_for(PATIENCE, || Ok((maps.page.read_u32(contract::ANSWER) == maps.round).then_some(())))?;
        answered.ok_or(DomainError::NoAnswer { seconds: PATIENCE.as_secs() })?;
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        maps.add(dirty, contract::send_now);
        Ok(())
    }

    fn take_last(&mut self, dirty: &mut PageBitmap) -> DomainResult<()> {
        let maps = self.maps()?;
        if maps.page.read_u32(contract::LAST) == 1 {
            maps.add(dirty, contract::send_last);
            return Ok(());
        }
        // Nothing is known: everything may have changed.
        for (first, count) in self.view.p2m().ranges() {
            dirty.insert_range(PfnRange { first: Pfn(first), count });
        }
        Ok(())
    }

    fn end(&mut self) {
        self.maps = None;
        let told = self.view.with(|held| held.console.change_flags(0, HOST_TRACK));
        // One that is suspended reads the flags when it goes on; one that is gone does not.
        let _ = told.and_then(|()| self.view.notify());
    }
}

impl Tracker for GuestAssisted {
    fn void_pages(&mut self, to: &mut PageBitmap) -> DomainResult<()> {
        // One that is stopped at once is not tracked.
        if let Some(maps) = &self.maps {
            maps.add(to, |_, void, _| void);
        }
        Ok(())
    }

    fn suspended(&mut self, _start_info: u64) {}
}

/// dom0 looks at the page tables while the domain runs, and in the end at all its memory: what the
/// bits say is not enough to leave a page out.
struct DirtyBits {
    view: Arc<View>,
    bits: dirty::DirtyBits,
    /// Pages that others could write to at the last look.
    granted: BTreeSet<u64>,
    /// Of what was last sent of each page.
    sums: Sums,
    start_info: Option<u64>,
}

impl DirtyBits {
    fn new(view: Arc<View>) -> Self {
        Self {
            view,
            bits: dirty::DirtyBits::default(),
            granted: BTreeSet::new(),
            sums: Sums::default(),
            start_info: None,
        }
    }

    fn look(&mut self) -> DomainResult<BTreeSet<u64>> {
        let view = self.view.clone();
        let mut found = std::mem::take(&mut self.granted);
        let (host, domid, p2m, m2p) = (view.host(), view.domid(), view.p2m(), &*view.m2p);
        let looked = self.bits.look(host, domid, p2m, m2p, &mut |page| {
            found.insert(page);
        });
        looked.map_err(failed("reading of the domain's page tables"))?;
        let mut granted = BTreeSet::new();
        let read = dirty::granted(host, domid, p2m, m2p, &mut |page| {
            granted.insert(page);
        });
        read.map_err(failed("reading of the domain's grants"))?;
        found.extend(&granted);
        self.granted = granted;
        Ok(found)
    }

    fn look_at_running(&mut self) -> DomainResult<BTreeSet<u64>> {
        use super::Domain;
        let view = self.view.clone();
        view.domain.pause().map_err(toolstack_failed)?;
        let found = self.look();
        view.host().hypercalls.unpause(view.domid()).map_err(failed("unpausing of the domain"))?;
        found
    }

    /// The pages that are not data with the content that was last sent. The domain is suspended.
    fn changed(&self) -> DomainResult<Vec<u64>> {
        let (host, domid) = (self.view.host(), self.view.domid());
        let mut changed = Vec::new();
        let mut content = [0; PAGE_SIZE];
        for pages in self.view.p2m().present().chunks(TYPES_MAX) {
            let frames: Vec<u64> = pages.iter().map(|&(_, frame)| frame).collect();
            let types = host.hypercalls.page_types(domid, &frames);
            let types = types.map_err(failed("asking Xen for page types"))?;
            let (memory, there) = host
                .foreign
                .map_what_is_there(domid, &frames)
                .map_err(failed("mapping of the domain's memory"))?;
            for (index, (&(page, _), page_type)) in pages.iter().zip(types).enumerate() {
                let is_same = there[index] && dirty::level(page_type) == 0 && {
                    memory.read(index * PAGE_SIZE, &mut content);
                    self.sums.is_same(Pfn(page), &content)
                };
                if !is_same {
                    changed.push(page);
                }
            }
        }
        Ok(changed)
    }
}

fn insert(dirty: &mut PageBitmap, pages: impl IntoIterator<Item = u64>) {
    pages.into_iter().for_each(|page| dirty.insert(Pfn(page)));
}

impl DirtySource for DirtyBits {
    fn name(&self) -> &'static str {
        "dirty bits"
    }

    fn begin(&mut self) -> DomainResult<()> {
        self.sums = Sums::new(self.view.p2m().len());
        self.look_at_running().map(drop)
    }

    fn take(&mut self, dirty: &mut PageBitmap) -> DomainResult<()> {
        insert(dirty, self.look_at_running()?);
        Ok(())
    }

    fn take_last(&mut self, dirty: &mut PageBitmap) -> DomainResult<()> {
        insert(dirty, self.changed()?);
        insert(dirty, ours(&self.view, self.start_info)?);
        Ok(())
    }

    fn end(&mut self) {
        *self = Self::new(self.view.clone());
    }
}

impl Tracker for DirtyBits {
    fn void_pages(&mut self, _to: &mut PageBitmap) -> DomainResult<()> {
        Ok(())
    }

    fn suspended(&mut self, start_info: u64) {
        self.start_info = Some(start_info);
    }

    fn was_read(&self, page: Pfn, page_type: PageType, content: &Page) {
        self.sums.note(page, page_type, content);
    }
}

/// The hypervisor tracks writes, by shadow page tables.
struct LogDirty {
    view: Arc<View>,
    start_info: Option<u64>,
}

impl DirtySource for LogDirty {
    fn name(&self) -> &'static str {
        "log-dirty"
    }

    fn begin(&mut self) -> DomainResult<()> {
        let hypercalls = &self.view.host().hypercalls;
        let domid = self.view.domid();
        let enabled = hypercalls.enable_log_dirty(domid).or_else(|error| {
            if error.raw_os_error() != Some(libc::EINVAL) {
                return Err(error);
            }
            // It is on already: somebody was killed.
            hypercalls.disable_log_dirty(domid).and_then(|()| hypercalls.enable_log_dirty(domid))
        });
        enabled.map_err(failed("start of log-dirty mode"))
    }

    fn take(&mut self, dirty: &mut PageBitmap) -> DomainResult<()> {
        let pages = self.view.p2m().len();
        let words = self.view.host().hypercalls.take_log_dirty(self.view.domid(), pages);
        dirty.insert_words(0, &words.map_err(failed("reading of the dirty pages"))?);
        Ok(())
    }

    fn take_last(&mut self, dirty: &mut PageBitmap) -> DomainResult<()> {
        self.take(dirty)?;
        let view = &self.view;
        let mut found = ours(view, self.start_info)?;
        // Backends that write through a mapping of theirs are not seen.
        dirty::granted(view.host(), view.domid(), view.p2m(), &view.m2p, &mut |page| found.push(page))
            .map_err(failed("reading of the domain's grants"))?;
        insert(dirty, found);
        Ok(())
    }

    fn end(&mut self) {
        if let Err(error) = self.view.host().hypercalls.disable_log_dirty(self.view.domid()) {
            tracing::debug!(domid = self.view.domid(), %error, "log-dirty mode cannot be ended");
        }
    }
}

impl Tracker for LogDirty {
    fn void_pages(&mut self, _to: &mut PageBitmap) -> DomainResult<()> {
        Ok(())
    }

    fn suspended(&mut self, start_info: u64) {
        self.start_info = Some(start_info);
    }
}
