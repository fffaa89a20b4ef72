//! Domains in memory, which write on a script: the engine runs whole on any machine.
//!
//! A [`SimSource`] has what a capsule has: a p2m list, page tables over all of its memory, pages
//! that only others write to, free pages, and a mapping that is gone once it is suspended. It
//! "runs" whenever the engine reads its memory, so that pages change under the engine's hands.
//! The same seed gives the same domain and the same writes in the same order.
//!
//! A [`World`] counts how many copies can run: two at once is a panic.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use xen_proto::frame::{ENTRIES, Mfn, PAGE_SIZE, Pfn, Pte};

use crate::{
    bitmap::PageBitmap,
    domain::{
        Description, DestinationDomain, DestinationHost, DirtySource, DomainError, DomainResult, FinalState,
        Page, PfnRange, Refusal, RefusalCause, SourceDomain, State, Table, state,
    },
    page::{self, Level, PageType},
    wire::Reason,
};

/// A frame that belongs to the hypervisor: that of the shared-info page.
const SHARED_INFO: Mfn = Mfn(0xdead);

/// Who can run.
#[derive(Clone, Debug, Default)]
pub struct World {
    runnable: Arc<AtomicUsize>,
}

impl World {
    fn start(&self) {
        let others = self.runnable.fetch_add(1, Ordering::SeqCst);
        assert_eq!(others, 0, "two copies of the domain can run");
    }

    fn stop(&self) {
        self.runnable.fetch_sub(1, Ordering::SeqCst);
    }

    /// Copies that can run.
    pub fn runnable(&self) -> usize {
        self.runnable.load(Ordering::SeqCst)
    }
}

/// Numbers for scripts: the same from the same seed.
#[derive(Clone, Debug)]
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// What a domain is like.
#[derive(Clone, Debug)]
pub struct Script {
    /// Everything random comes from it.
    pub seed: u64,
    /// Pages of the domain, at least 64.
    pub nr_pages: u64,
    /// Pages with content, besides those that every domain has.
    pub used_pages: u64,
    /// Whether the content can be packed.
    pub compressible: bool,
    /// Pages written whenever a batch of pages is read.
    pub writes_per_read: u64,
    /// The writes go to so many pages.
    pub hot_pages: u64,
    /// Whether it answers the request to suspend.
    pub suspends: bool,
    /// Words of its processor features.
    pub cpu_features: Vec<u32>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            seed: 1,
            nr_pages: 2048,
            used_pages: 500,
            compressible: true,
            writes_per_read: 3,
            hot_pages: 40,
            suspends: true,
            cpu_features: vec![0b1011],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Running,
    Suspended,
    Gone,
}

/// Where things are in a simulated domain.
#[derive(Clone, Debug)]
struct Layout {
    p2m: PfnRange,
    start_info: Pfn,
    /// Written by others only, unseen by dirty tracking.
    console: Pfn,
    tables: PfnRange,
    /// The table that maps the shared-info page while the domain runs, in entry 0.
    special_table: Pfn,
    heap: u64,
}

#[derive(Debug)]
struct Guest {
    script: Script,
    numbers: Numbers,
    layout: Layout,
    memory: Vec<Page>,
    types: Vec<PageType>,
    free: PageBitmap,
    dirty: PageBitmap,
    tracking: bool,
    life: Life,
}

/// Frames of the source are these, frames of a destination others.
fn source_mfn(pfn: u64) -> u64 {
    0x10_0000 + pfn * 3
}

fn destination_mfn(pfn: u64) -> u64 {
    0x80_0000 + (pfn ^ 1)
}

impl Guest {
    fn new(script: Script) -> Self {
        let nr_pages = script.nr_pages;
        let p2m = PfnRange { first: Pfn(4), count: nr_pages.div_ceil(ENTRIES as u64) };
        let start_info = p2m.first.0 + p2m.count;
        let leaves = nr_pages.div_ceil(ENTRIES as u64);
        // Three levels above the leaves, and the special table.
        let tables = PfnRange { first: Pfn(start_info + 2), count: leaves + 4 };
        let layout = Layout {
            p2m,
            start_info: Pfn(start_info),
            console: Pfn(start_info + 1),
            tables,
            special_table: Pfn(tables.first.0 + 3),
            heap: tables.first.0 + tables.count,
        };
        assert!(layout.heap + script.used_pages <= nr_pages, "too little memory for this script");
        let mut free = PageBitmap::new(nr_pages);
        let first_free = layout.heap + script.used_pages;
        if first_free < nr_pages {
            free.insert_range(PfnRange { first: Pfn(first_free), count: nr_pages - first_free });
        }
        let mut guest = Self {
            numbers: Numbers(script.seed),
            memory: vec![[0; PAGE_SIZE]; nr_pages as usize],
            types: vec![PageType::Data; nr_pages as usize],
            free,
            dirty: PageBitmap::new(nr_pages),
            tracking: false,
            life: Life::Running,
            layout,
            script,
        };
        guest.fill();
        guest.map();
        guest
    }

    /// Content of the used pages; some are zero, free ones have rubbish.
    fn fill(&mut self) {
        for pfn in self.layout.heap..self.script.nr_pages {
            if self.numbers.below(8) > 0 {
                let pattern = self.numbers.next();
                for word in self.memory[pfn as usize].as_chunks_mut::<8>().0 {
                    let random = if self.script.compressible { pattern } else { self.numbers.next() };
                    *word = random.to_le_bytes();
                }
            }
        }
        for pfn in [0, 1, self.layout.start_info.0, self.layout.console.0] {
            self.memory[pfn as usize].fill(0x5a);
        }
    }

    /// Page tables: one of each upper level, leaves over all of memory, and the p2m list.
    fn map(&mut self) {
        let first = self.layout.tables.first.0;
        let (top, upper, middle, special) = (first, first + 1, first + 2, self.layout.special_table.0);
        let leaf = |number: u64| first + 4 + number;
        let leaves = self.script.nr_pages.div_ceil(ENTRIES as u64);
        self.set_table(top, Level::L4, true);
        self.set_entry(top, 511, Pte::table(Mfn(source_mfn(upper))).0);
        // Xen's own part, as a domain sees it.
        self.set_entry(top, 260, 0xffff_0063);
        self.set_table(upper, Level::L3, false);
        self.set_entry(upper, 510, Pte::table(Mfn(source_mfn(middle))).0);
        self.set_table(middle, Level::L2, false);
        self.set_entry(middle, 511, Pte::table(Mfn(source_mfn(special))).0);
        self.set_table(special, Level::L1, false);
        self.set_entry(special, 0, Pte::data(SHARED_INFO).0);
        for number in 0..leaves {
            self.set_entry(middle, number as usize, Pte::table(Mfn(source_mfn(leaf(number)))).0);
            self.set_table(leaf(number), Level::L1, false);
        }
        let tables = self.layout.tables;
        for pfn in 0..self.script.nr_pages {
            let is_table = (tables.first.0..tables.first.0 + tables.count).contains(&pfn);
            let mfn = Mfn(source_mfn(pfn));
            let entry = if is_table { Pte::read_only(mfn) } else { Pte::data(mfn) };
            self.set_entry(leaf(pfn / 512), (pfn % 512) as usize, entry.0);
            let p2m = self.layout.p2m.first.0 + pfn / 512;
            self.set_entry(p2m, (pfn % 512) as usize, mfn.0);
        }
    }

    fn set_table(&mut self, pfn: u64, level: Level, pinned: bool) {
        self.types[pfn as usize] = PageType::Table { level, pinned };
    }

    fn set_entry(&mut self, pfn: u64, index: usize, value: u64) {
        self.memory[pfn as usize][index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn alive(&self) -> DomainResult<()> {
        if self.life == Life::Gone { Err(DomainError::Ended) } else { Ok(()) }
    }

    /// What it does between two looks at it.
    fn run(&mut self) {
        if self.life != Life::Running {
            return;
        }
        for _ in 0..self.script.writes_per_read {
            let hot = self.script.hot_pages.clamp(1, self.script.nr_pages - self.layout.heap);
            let pfn = Pfn(self.layout.heap + self.numbers.below(hot));
            let at = self.numbers.below(ENTRIES as u64) as usize;
            let value = self.numbers.next();
            self.set_entry(pfn.0, at, value);
            self.free.remove(pfn);
            self.dirty.insert(pfn);
            // Some memory is given back, some becomes zero.
            let pfn = Pfn(self.layout.heap + self.numbers.below(hot));
            match self.numbers.below(8) {
                0 => self.free.insert(pfn),
                1 => {
                    self.memory[pfn.0 as usize].fill(0);
                    self.dirty.insert(pfn);
                }
                _ => {}
            }
        }
        // Somebody else writes to the console's page.
        let console = self.layout.console.0;
        let value = self.numbers.next();
        self.set_entry(console, 3, value);
    }
}

/// A domain that can move.
#[derive(Debug)]
pub struct SimSource {
    guest: Arc<Mutex<Guest>>,
    world: World,
}

impl SimSource {
    /// A domain that runs.
    pub fn new(script: Script, world: &World) -> Self {
        world.start();
        Self { guest: Arc::new(Mutex::new(Guest::new(script))), world: world.clone() }
    }

    /// The same domain, for a daemon that finds it again.
    pub fn found(&self) -> Self {
        self.guest().tracking = false;
        Self { guest: Arc::clone(&self.guest), world: self.world.clone() }
    }

    fn guest(&self) -> MutexGuard<'_, Guest> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it, as a crash or a kill does.
    pub fn kill(&self) {
        let life = std::mem::replace(&mut self.guest().life, Life::Gone);
        if life == Life::Running {
            self.world.stop();
        }
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.guest().life == Life::Running
    }

    /// Whether it is there at all.
    pub fn is_gone(&self) -> bool {
        self.guest().life == Life::Gone
    }

    /// Whether dirty tracking is on.
    pub fn is_tracking(&self) -> bool {
        self.guest().tracking
    }

    /// Pages that are neither free nor zero nor part of the p2m list.
    pub fn used_pages(&self) -> u64 {
        let guest = self.guest();
        let p2m = guest.layout.p2m;
        let used = |pfn: &u64| {
            !guest.free.contains(Pfn(*pfn))
                && !(p2m.first.0..p2m.first.0 + p2m.count).contains(pfn)
                && !page::is_zero(&guest.memory[*pfn as usize])
        };
        (0..guest.script.nr_pages).filter(used).count() as u64
    }

    /// Compares the domain's memory, as it was left, with that of the one it became.
    ///
    /// # Panics
    /// If a byte differs that should not, or a page table leads elsewhere.
    pub fn assert_same(&self, other: &SimDomain) {
        let guest = self.guest();
        let copy = other.guest();
        let p2m = guest.layout.p2m;
        for pfn in 0..guest.script.nr_pages {
            let (mut here, mut there) = (guest.memory[pfn as usize], copy.memory[pfn as usize]);
            if guest.free.contains(Pfn(pfn)) {
                continue;
            }
            if (p2m.first.0..p2m.first.0 + p2m.count).contains(&pfn) {
                for (index, entry) in there.as_chunks::<8>().0.iter().enumerate() {
                    let page = (pfn - p2m.first.0) * 512 + index as u64;
                    let expected = if page < guest.script.nr_pages { destination_mfn(page) } else { 0 };
                    assert_eq!(u64::from_le_bytes(*entry), expected, "entry {page} of the p2m list");
                }
                continue;
            }
            if let PageType::Table { level, .. } = guest.types[pfn as usize] {
                page::canonicalise(&mut here, level, |mfn| self.pfn_of(mfn)).expect("a table of the source");
                page::canonicalise(&mut there, level, |mfn| other.pfn_of(mfn)).expect("a table of the copy");
                for entry in here.as_chunks_mut::<8>().0.iter_mut().chain(there.as_chunks_mut::<8>().0) {
                    entry[0] |= (Pte::ACCESSED | Pte::DIRTY) as u8;
                }
                let table = Table { pfn: Pfn(pfn), page_type: guest.types[pfn as usize] };
                assert!(copy.tables.contains(&table), "page {pfn:#x} is no {table:?}");
            }
            assert!(here == there, "page {pfn:#x} differs");
        }
        assert_eq!(copy.tables.len() as u64, guest.layout.tables.count, "pages that are no tables");
    }
}

impl DirtySource for SimSource {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn begin(&mut self) -> DomainResult<()> {
        let mut guest = self.guest();
        guest.alive()?;
        guest.tracking = true;
        guest.dirty.clear();
        Ok(())
    }

    fn take(&mut self, dirty: &mut PageBitmap) -> DomainResult<()> {
        let mut guest = self.guest();
        guest.alive()?;
        guest.run();
        dirty.insert_all(&guest.dirty);
        guest.dirty.clear();
        Ok(())
    }

    fn take_last(&mut self, dirty: &mut PageBitmap) -> DomainResult<()> {
        self.take(dirty)?;
        let Layout { start_info, console, special_table, .. } = self.guest().layout.clone();
        [start_info, console, special_table].into_iter().for_each(|pfn| dirty.insert(pfn));
        Ok(())
    }

    fn end(&mut self) {
        let was_on = std::mem::replace(&mut self.guest().tracking, false);
        assert!(was_on, "tracking was off already");
    }
}

impl SourceDomain for SimSource {
    fn describe(&mut self) -> DomainResult<Description> {
        let guest = self.guest();
        guest.alive()?;
        let nr_pages = guest.script.nr_pages;
        Ok(Description {
            hypervisor: (4, 17),
            vcpus: 1,
            nr_pages,
            max_pages: nr_pages,
            cpu_features: guest.script.cpu_features.clone(),
            p2m: vec![guest.layout.p2m],
            memory: vec![PfnRange { first: Pfn(0), count: nr_pages }],
            config: b"simulated".to_vec(),
        })
    }

    fn dirty_source(&mut self) -> &mut dyn DirtySource {
        self
    }

    fn void_pages(&mut self, void: &mut PageBitmap) -> DomainResult<()> {
        let guest = self.guest();
        guest.alive()?;
        void.insert_all(&guest.free);
        Ok(())
    }

    fn read_pages(&self, pfns: &[Pfn], types: &mut [PageType], pages: &mut [Page]) -> DomainResult<()> {
        let mut guest = self.guest();
        guest.alive()?;
        guest.run();
        for ((pfn, page_type), page) in pfns.iter().zip(types).zip(pages) {
            *page_type = guest.types[pfn.0 as usize];
            *page = guest.memory[pfn.0 as usize];
        }
        Ok(())
    }

    fn pfn_of(&self, mfn: Mfn) -> Option<Pfn> {
        let pfn = mfn.0.checked_sub(source_mfn(0)).filter(|offset| offset % 3 == 0)? / 3;
        // Not through the lock: the number of pages never changes.
        (pfn < MAX_SIMULATED_PAGES).then_some(Pfn(pfn))
    }

    fn suspend(&mut self, _reason: Reason) -> DomainResult<()> {
        let mut guest = self.guest();
        guest.alive()?;
        if !guest.script.suspends {
            return Err(DomainError::NoAnswer { seconds: 1 });
        }
        guest.run();
        assert_eq!(guest.life, Life::Running, "suspended twice");
        let special_table = guest.layout.special_table.0;
        guest.set_entry(special_table, 0, 0);
        let start_info = guest.layout.start_info.0;
        guest.set_entry(start_info, 7, 0x1234);
        guest.life = Life::Suspended;
        drop(guest);
        self.world.stop();
        Ok(())
    }

    fn state(&mut self) -> DomainResult<Vec<State>> {
        self.guest().alive()?;
        Ok(vec![
            State { kind: state::VCPU_CONTEXT, index: 0, bytes: vec![7; 5168] },
            State { kind: state::SHARED_INFO, index: 0, bytes: vec![9; PAGE_SIZE] },
        ])
    }

    fn resume(&mut self) -> DomainResult<()> {
        let mut guest = self.guest();
        guest.alive()?;
        if guest.life == Life::Suspended {
            self.world.start();
            guest.life = Life::Running;
            let special_table = guest.layout.special_table.0;
            guest.set_entry(special_table, 0, Pte::data(SHARED_INFO).0);
        }
        Ok(())
    }

    fn destroy(&mut self) -> DomainResult<()> {
        self.kill();
        Ok(())
    }
}

/// More than any simulated domain has.
const MAX_SIMULATED_PAGES: u64 = 1 << 20;

/// A machine to which domains come.
#[derive(Clone, Debug)]
pub struct SimHost {
    /// Pages that it has for a domain.
    pub free_pages: u64,
    /// Words of its processor's features.
    pub cpu_features: Vec<u32>,
    /// Fails the writing of pages after so many.
    pub fails_after_pages: Option<usize>,
    world: World,
    domain: Arc<Mutex<Option<SimDomain>>>,
}

impl SimHost {
    /// A machine with plenty of everything.
    pub fn new(world: &World) -> Self {
        Self {
            free_pages: MAX_SIMULATED_PAGES,
            cpu_features: vec![u32::MAX],
            fails_after_pages: None,
            world: world.clone(),
            domain: Arc::default(),
        }
    }

    /// The domain that is there, for a daemon that finds it again.
    pub fn found(&self) -> Option<SimDomain> {
        let domain = self.domain.lock().unwrap_or_else(PoisonError::into_inner).clone();
        domain.filter(|domain| domain.guest().life != CopyLife::Gone)
    }
}

impl DestinationHost for SimHost {
    type Domain = SimDomain;

    fn create(&mut self, description: &Description, _reason: Reason) -> DomainResult<SimDomain> {
        let refuse = |cause, message: String| Err(DomainError::Refused(Refusal { cause, message }));
        let lacks = |(index, word): (usize, &u32)| {
            let own = self.cpu_features.get(index).copied().unwrap_or(0);
            word & !own != 0
        };
        if description.cpu_features.iter().enumerate().any(lacks) {
            return refuse(RefusalCause::Cpu, "the processor lacks features of the capsule's".into());
        }
        let needed: u64 = description.memory.iter().map(|range| range.count).sum();
        if needed > self.free_pages {
            let message = format!("the capsule needs {needed} pages, {} are free", self.free_pages);
            return refuse(RefusalCause::Memory, message);
        }
        let nr_pages = description.nr_pages;
        let mut has_memory = PageBitmap::new(nr_pages);
        description.memory.iter().for_each(|range| has_memory.insert_range(*range));
        let copy = Copy {
            // What the last owner left.
            memory: vec![[0xaa; PAGE_SIZE]; nr_pages as usize],
            p2m: description.p2m.clone(),
            tables: Vec::new(),
            life: CopyLife::Incoming,
            pages_left: self.fails_after_pages,
        };
        let domain = SimDomain {
            guest: Arc::new(Mutex::new(copy)),
            has_memory: Arc::new(has_memory),
            world: self.world.clone(),
        };
        *self.domain.lock().unwrap_or_else(PoisonError::into_inner) = Some(domain.clone());
        Ok(domain)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CopyLife {
    Incoming,
    Running,
    Gone,
}

#[derive(Debug)]
struct Copy {
    memory: Vec<Page>,
    p2m: Vec<PfnRange>,
    tables: Vec<Table>,
    life: CopyLife,
    pages_left: Option<usize>,
}

/// A domain that came.
#[derive(Clone, Debug)]
pub struct SimDomain {
    guest: Arc<Mutex<Copy>>,
    has_memory: Arc<PageBitmap>,
    world: World,
}

impl SimDomain {
    fn guest(&self) -> MutexGuard<'_, Copy> {
        self.guest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pfn_of(&self, mfn: Mfn) -> Option<Pfn> {
        let pfn = Pfn(mfn.0.checked_sub(0x80_0000)? ^ 1);
        self.has_memory.contains(pfn).then_some(pfn)
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.guest().life == CopyLife::Running
    }

    /// Whether it is there at all.
    pub fn is_gone(&self) -> bool {
        self.guest().life == CopyLife::Gone
    }
}

impl DestinationDomain for SimDomain {
    fn mfn_of(&self, pfn: Pfn) -> Option<Mfn> {
        self.has_memory.contains(pfn).then(|| Mfn(destination_mfn(pfn.0)))
    }

    fn write_pages(&self, pfns: &[Pfn], _types: &[PageType], pages: &[Page]) -> DomainResult<()> {
        let mut guest = self.guest();
        assert_eq!(guest.life, CopyLife::Incoming, "pages of a domain that runs");
        if let Some(left) = &mut guest.pages_left {
            *left = left.checked_sub(pfns.len()).ok_or_else(|| DomainError::Failed {
                call: "writing of pages".into(),
                source: "as the script says".into(),
            })?;
        }
        for (pfn, page) in pfns.iter().zip(pages) {
            assert!(self.has_memory.contains(*pfn), "page {pfn:?} has no memory");
            guest.memory[pfn.0 as usize] = *page;
        }
        Ok(())
    }

    fn clear_pages(&self, pages: PfnRange) -> DomainResult<()> {
        let mut guest = self.guest();
        for pfn in pages.first.0..pages.first.0 + pages.count {
            assert!(self.has_memory.contains(Pfn(pfn)), "page {pfn:#x} has no memory");
            guest.memory[pfn as usize].fill(0);
        }
        Ok(())
    }

    fn finish(&mut self, state: FinalState) -> DomainResult<()> {
        let mut guest = self.guest();
        let pages = guest.p2m.iter().flat_map(|range| range.first.0..range.first.0 + range.count);
        let pages: Vec<u64> = pages.collect();
        for (number, pfn) in pages.into_iter().enumerate() {
            for index in 0..512 {
                let entry = self.mfn_of(Pfn(number as u64 * 512 + index)).map_or(0, |mfn| mfn.0);
                let at = index as usize * 8;
                guest.memory[pfn as usize][at..at + 8].copy_from_slice(&entry.to_le_bytes());
            }
        }
        assert_eq!(state.states.len(), 2, "pieces of state");
        guest.tables = state.tables;
        Ok(())
    }

    fn activate(&mut self) -> DomainResult<()> {
        let mut guest = self.guest();
        match guest.life {
            CopyLife::Incoming => self.world.start(),
            CopyLife::Running => return Ok(()),
            CopyLife::Gone => return Err(DomainError::Ended),
        }
        guest.life = CopyLife::Running;
        Ok(())
    }

    fn destroy(&mut self) {
        let mut guest = self.guest();
        assert_ne!(guest.life, CopyLife::Running, "a domain that ran is destroyed");
        guest.life = CopyLife::Gone;
        guest.memory = Vec::new();
    }
}
