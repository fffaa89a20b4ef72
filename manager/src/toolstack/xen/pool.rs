//! Domains that wait, paused and almost finished, for a capsule to become.
//!
//! What they lack is what differs between two starts of the same image with the same memory:
//! handle, name, boot module, command line, scheduling, and whether there will be input. The
//! pages for that stay mapped while they wait.
//!
//! One thread builds them, some time after the last request, so that it is in nobody's way.
//! They take memory, so they go as soon as a capsule needs it, and the first one that Xen has
//! no memory for is the last until something changes.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use xen_proto::frame::PAGE_SIZE;

use super::{
    Domain, DomainSpec, HOST_NO_STORE, HOST_STDIN, Held, ImageKind, Late, Registration, Result, SPARE,
    Shared, XenDomain, XenImage, builder, failed, hold, pages, set_scheduling, sys, xen_image,
};
use crate::xen::{
    builder::{Built, Plan, Steps},
    layout::Layout,
    sys::Mapping,
};

/// Pages set aside for a boot module whose length is not known yet. Longer ones go the long way.
const MODULE_PAGES: u64 = 4;
/// How many images (with their memory and processors) are kept ready.
const KINDS: usize = 4;
/// Of the thread: whatever else there is to do comes first.
const NICENESS: i32 = 10;
/// How long after a request the pool is filled again.
const QUIET: Duration = Duration::from_millis(50);

/// The pool.
pub(super) struct Pool {
    shared: Arc<Shared>,
    state: Mutex<State>,
    /// Signalled when there may be something for the thread to do.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Domains to have ready of each kind.
    size: usize,
    /// Most recently used first.
    kinds: VecDeque<Kind>,
    ready: Vec<Ready>,
    /// When the last request came.
    used: Option<Instant>,
    /// There was no room for another one; waits until something changes.
    full: bool,
    stop: bool,
    thread: Option<JoinHandle<()>>,
}

/// What domains of the pool have in common.
#[derive(Clone)]
struct Kind {
    image: Arc<dyn super::Image>,
    pages: u64,
    max_pages: u64,
    vcpus: u32,
}

impl Kind {
    fn of(spec: &DomainSpec) -> Self {
        Self {
            image: spec.image.clone(),
            pages: pages(spec.memory_kib),
            max_pages: pages(spec.max_memory_kib),
            vcpus: spec.vcpus,
        }
    }
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        // An image is read once and then shared by all its capsules.
        Arc::ptr_eq(&self.image, &other.image)
            && (self.pages, self.max_pages, self.vcpus) == (other.pages, other.max_pages, other.vcpus)
    }
}

/// A domain that waits.
struct Ready {
    kind: Kind,
    domid: u32,
    layout: Layout,
    held: Held,
    /// The module's pages, then the start-info page.
    boot: Mapping,
}

impl Pool {
    /// Starts the thread. The pool is empty until it gets a size.
    pub(super) fn start(shared: Arc<Shared>) -> io::Result<Arc<Self>> {
        let pool = Arc::new(Self { shared, state: Mutex::default(), changed: Condvar::new() });
        let filled = pool.clone();
        let thread = std::thread::Builder::new().name("pool".into()).spawn(move || filled.fill())?;
        pool.state().thread = Some(thread);
        Ok(pool)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Ends the thread and destroys what waits.
    pub(super) fn stop(&self) {
        let thread = {
            let mut state = self.state();
            state.stop = true;
            state.thread.take()
        };
        self.changed.notify_all();
        if let Some(thread) = thread {
            // A panic of it has been reported already.
            let _ = thread.join();
        }
        self.drain();
    }

    /// Sets how many domains of each kind wait.
    pub(super) fn set_size(&self, size: u32) {
        let surplus = {
            let mut state = self.state();
            state.size = size as usize;
            state.full = false;
            if size == 0 {
                state.kinds.clear();
            }
            state.surplus()
        };
        self.remove(surplus);
        self.changed.notify_all();
    }

    /// Domains that wait.
    pub(super) fn ready(&self) -> u32 {
        self.state().ready.len() as u32
    }

    /// Destroys what waits, because its memory is needed; returns how many there were.
    pub(super) fn drain(&self) -> usize {
        let ready = {
            let mut state = self.state();
            state.full = true;
            std::mem::take(&mut state.ready)
        };
        let count = ready.len();
        self.remove(ready);
        count
    }

    fn remove(&self, ready: Vec<Ready>) {
        for Ready { domid, held, boot, .. } in ready {
            drop((held, boot));
            if let Err(error) = builder::remove(&self.shared.host, domid) {
                tracing::error!(domid, %error, "a domain of the pool stays behind");
            }
        }
    }

    /// Makes a capsule of a waiting domain, if there is one that fits.
    pub(super) fn take(&self, spec: &DomainSpec) -> Result<Option<Arc<dyn Domain>>> {
        if spec.image.kind() != ImageKind::Capsule {
            return Ok(None);
        }
        let mut steps = Steps::start();
        let ready = {
            let mut state = self.state();
            if state.size == 0 {
                return Ok(None);
            }
            let kind = Kind::of(spec);
            state.used = Some(Instant::now());
            state.full = false;
            let found = state.ready.iter().position(|ready| ready.kind == kind);
            state.kinds.retain(|other| *other != kind);
            state.kinds.push_front(kind);
            // What the oldest ones had ready goes with the next look of the thread.
            state.kinds.truncate(KINDS);
            found.map(|at| state.ready.swap_remove(at))
        };
        self.changed.notify_all();
        let module = spec.module.as_deref().unwrap_or(&[]);
        let Some(ready) = ready else { return Ok(None) };
        if module.len() > MODULE_PAGES as usize * PAGE_SIZE
            || spec.command_line.len() >= xen_proto::start_info::COMMAND_LINE_LEN
        {
            self.state().ready.push(ready);
            return Ok(None);
        }
        let domid = ready.domid;
        match self.finish(ready, spec, module, &mut steps) {
            Ok(domain) => Ok(Some(domain)),
            Err(error) => {
                if let Err(error) = builder::remove(&self.shared.host, domid) {
                    tracing::error!(domid, %error, "a domain of the pool stays behind");
                }
                Err(error)
            }
        }
    }

    fn finish(
        &self,
        ready: Ready,
        spec: &DomainSpec,
        module: &[u8],
        steps: &mut Steps,
    ) -> Result<Arc<dyn Domain>> {
        let Ready { domid, layout, held, boot, .. } = ready;
        boot.write(0, module);
        let start_info = MODULE_PAGES as usize * PAGE_SIZE;
        builder::write_boot(&boot, start_info, &layout, module.len(), &spec.command_line);
        if spec.stdin {
            held.console.change_flags(HOST_STDIN, 0);
        }
        steps.end("boot");
        let hypercalls = &self.shared.host.hypercalls;
        hypercalls.set_handle(domid, spec.uuid).map_err(|error| failed("naming of the domain", error))?;
        set_scheduling(&self.shared, domid, spec.cpu_cap, spec.weight)?;
        steps.end("handle");
        let late = Some(Late::Prepared { name: spec.name.clone(), vifs: spec.vifs.clone(), boot });
        Ok(XenDomain::new(&self.shared, domid, spec.uuid, held, late, steps.list()))
    }

    /// What the thread does.
    fn fill(&self) {
        if let Err(error) = sys::set_niceness(NICENESS) {
            tracing::warn!(%error, "the pool takes its time from others");
        }
        let mut state = self.state();
        while !state.stop {
            let surplus = state.surplus();
            if !surplus.is_empty() {
                drop(state);
                self.remove(surplus);
                state = self.state();
                continue;
            }
            let Some(kind) = state.wanted() else {
                state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
                continue;
            };
            let quiet =
                state.used.map_or(Duration::ZERO, |used| (used + QUIET).duration_since(Instant::now()));
            if !quiet.is_zero() {
                let waited = self.changed.wait_timeout(state, quiet);
                state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
                continue;
            }
            drop(state);
            let built = self.build(kind);
            state = self.state();
            match built {
                Ok(ready) => state.ready.push(ready),
                Err(error) => {
                    tracing::warn!(%error, "the pool is not filled");
                    state.full = true;
                }
            }
        }
    }

    fn build(&self, kind: Kind) -> Result<Ready> {
        let image: &XenImage = xen_image(&*kind.image)?;
        let kernel = image.image.kernel.as_ref().ok_or_else(super::no_kernel)?;
        let plan = Plan {
            handle: SPARE,
            image: &image.image,
            kernel,
            module_pages: MODULE_PAGES,
            module: &[],
            command_line: "",
            pages: kind.pages,
            max_pages: kind.max_pages,
            vcpus: kind.vcpus,
            shell: None,
        };
        let host = &self.shared.host;
        let built = builder::build(host, &plan, &mut Steps::start())?;
        let prepare = || -> Result<(Held, Mapping)> {
            let Built { layout, p2m, .. } = &built;
            let mut frames = p2m[layout.module.start as usize..layout.module.end as usize].to_vec();
            frames.push(p2m[layout.start_info as usize]);
            let boot = host.foreign.map(built.domid, &frames);
            let boot = boot.map_err(|error| failed("mapping of the domain's memory", error))?;
            let store_mfn = p2m[layout.store as usize];
            let name = "fcap-spare".into();
            let registration = Registration { name, store_mfn, machine: None, vifs: Vec::new() };
            builder::register(host, built.domid, &registration)?;
            Ok((hold(&self.shared, &built, HOST_NO_STORE)?, boot))
        };
        match prepare() {
            Ok((held, boot)) => Ok(Ready { kind, domid: built.domid, layout: built.layout, held, boot }),
            Err(error) => {
                builder::remove(host, built.domid)?;
                Err(error)
            }
        }
    }
}

impl State {
    /// The kind of which the next domain is to be built.
    fn wanted(&self) -> Option<Kind> {
        let count = |kind: &Kind| self.ready.iter().filter(|ready| ready.kind == *kind).count();
        let lacking = self.kinds.iter().find(|kind| count(kind) < self.size);
        lacking.filter(|_| !self.full).cloned()
    }

    /// Takes out what is no longer wanted.
    fn surplus(&mut self) -> Vec<Ready> {
        let mut surplus = Vec::new();
        let mut kept: Vec<Ready> = Vec::new();
        for ready in std::mem::take(&mut self.ready) {
            let count = kept.iter().filter(|other| other.kind == ready.kind).count();
            if self.kinds.contains(&ready.kind) && count < self.size {
                kept.push(ready);
            } else {
                surplus.push(ready);
            }
        }
        self.ready = kept;
        surplus
    }
}
