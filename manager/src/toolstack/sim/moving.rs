//! Simulated domains that leave and arrive.
//!
//! All that a simulated program knows is in the first pages of its domain, as JSON, so that it
//! arrives only if memory does.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fcap_migrate::bitmap::PageBitmap;
use fcap_migrate::domain::{
    Description, DestinationDomain, DirtySource, DomainError, DomainResult, FinalState, Page, PfnRange,
    Refusal, RefusalCause, SourceDomain, State as Piece, state,
};
use fcap_migrate::page::PageType;
use fcap_migrate::wire::Reason;
use serde_json::{Value, json};
use xen_proto::frame::{Mfn, PAGE_SIZE, Pfn};

use super::{DomainSpec, Guest, Program, SimDomain, SimImage, World};
use crate::toolstack::{Arrival, Domain, Incoming, Outgoing, Places, Shutdown, Uuid};

/// Handle of domains that are not complete.
pub(super) const SPARE: Uuid = *b"fcap-spare\0\0\0\0\0\0";
/// Pages that the state of a program takes.
const STATE_PAGES: u64 = 8;
/// Pages of a simulated domain.
const PAGES: u64 = 64;

fn failed(call: &str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> DomainError {
    DomainError::Failed { call: call.into(), source: source.into() }
}

/// A program with all that it knows. `None` for one that is about to end anyway.
fn save_program(program: &Program) -> Value {
    match program {
        Program::Print(text, then) => json!({ "print": text, "then": save_program(then) }),
        Program::Exit(code) => json!({ "exit": code }),
        Program::Echo => json!("echo"),
        Program::Count(count) => json!({ "count": count }),
        Program::Flood(left) => json!({ "flood": left }),
        Program::Tick(count, every) => json!({ "tick": count, "every_ns": every.as_nanos() as u64 }),
        Program::Sleep(time) => json!({ "sleep_ns": time.as_nanos() as u64 }),
        Program::Spin => json!("spin"),
        Program::Serve => json!("serve"),
        Program::Stubborn => json!("stubborn"),
        Program::Hold(kib) => json!({ "hold": kib }),
        Program::End(..) | Program::Crash => json!({ "exit": 1 }),
    }
}

fn load_program(value: &Value) -> Option<Program> {
    let nanos = |name: &str| value[name].as_u64().map(Duration::from_nanos);
    Some(match value.as_str() {
        Some("echo") => Program::Echo,
        Some("spin") => Program::Spin,
        Some("serve") => Program::Serve,
        Some("stubborn") => Program::Stubborn,
        Some(_) => return None,
        None if value["print"].is_array() => {
            let text = serde_json::from_value(value["print"].clone()).ok()?;
            Program::Print(text, Box::new(load_program(&value["then"])?))
        }
        None if value["exit"].is_i64() => Program::Exit(i32::try_from(value["exit"].as_i64()?).ok()?),
        None if value["count"].is_u64() => Program::Count(value["count"].as_u64()?),
        None if value["hold"].is_u64() => Program::Hold(value["hold"].as_u64()?),
        None if value["tick"].is_u64() => Program::Tick(value["tick"].as_u64()?, nanos("every_ns")?),
        None if value["sleep_ns"].is_u64() => Program::Sleep(nanos("sleep_ns")?),
        None => Program::Flood(value.get("flood")?.as_u64()),
    })
}

fn save(guest: &Guest) -> Vec<u8> {
    let image = guest.spec.image.as_any().downcast_ref::<SimImage>();
    let image = image.map(|image| json!({ "kind": image.kind, "size": image.size, "words": image.words }));
    let rest = guest.wake.map(|wake| wake.saturating_duration_since(Instant::now()).as_nanos() as u64);
    let saved = json!({
        "image": image,
        "program": save_program(&guest.program),
        "stop_asked": guest.stop_asked,
        "output": guest.output,
        "taken": guest.taken,
        "input": guest.input,
        "input_closed": guest.input_closed,
        "stdin": guest.spec.stdin,
        "memory_kib": guest.spec.memory_kib,
        "vcpus": guest.spec.vcpus,
        "wake_ns": rest,
    });
    let mut bytes = saved.to_string().into_bytes();
    bytes.resize(STATE_PAGES as usize * PAGE_SIZE, b' ');
    bytes
}

fn load(bytes: &[u8], arrival: &Arrival) -> Option<Guest> {
    let saved: Value = serde_json::from_slice(bytes).ok()?;
    let image = &saved["image"];
    let field = |name: &str| saved[name].as_u64();
    let list = |name: &str| serde_json::from_value::<Vec<u8>>(saved[name].clone()).ok();
    let image = SimImage {
        kind: serde_json::from_value(image["kind"].clone()).ok()?,
        size: image["size"].as_u64()?,
        words: serde_json::from_value(image["words"].clone()).ok()?,
    };
    Some(Guest {
        spec: DomainSpec {
            uuid: arrival.uuid,
            name: arrival.name.clone(),
            image: Arc::new(image),
            module: None,
            command_line: String::new(),
            memory_kib: field("memory_kib")?,
            max_memory_kib: field("memory_kib")?,
            vcpus: u32::try_from(field("vcpus")?).ok()?,
            cpu_cap: arrival.cpu_cap,
            weight: arrival.weight,
            stdin: saved["stdin"].as_bool()?,
            vifs: arrival.vifs.clone(),
        },
        program: load_program(&saved["program"])?,
        paused: true,
        shutdown: None,
        epitaph: None,
        stop_asked: saved["stop_asked"].as_bool()?,
        output: list("output")?,
        taken: u32::try_from(field("taken")?).ok()?,
        input: list("input")?,
        input_closed: saved["input_closed"].as_bool()?,
        wake: field("wake_ns").map(|rest| Instant::now() + Duration::from_nanos(rest)),
        cpu_time: Duration::ZERO,
        running_since: None,
    })
}

/// A simulated domain that is about to leave.
pub(super) struct SimSource {
    domain: SimDomain,
    dirty: EveryPage,
}

/// Counts the pages of the program's state as written, always.
struct EveryPage;

impl EveryPage {
    fn add(dirty: &mut PageBitmap) {
        dirty.insert_range(PfnRange { first: Pfn(0), count: STATE_PAGES });
    }
}

impl DirtySource for EveryPage {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn begin(&mut self) -> DomainResult<()> {
        Ok(())
    }

    fn take(&mut self, dirty: &mut PageBitmap) -> DomainResult<()> {
        Self::add(dirty);
        Ok(())
    }

    fn take_last(&mut self, dirty: &mut PageBitmap) -> DomainResult<()> {
        Self::add(dirty);
        Ok(())
    }

    fn end(&mut self) {}
}

impl SimSource {
    pub(super) fn new(domain: &SimDomain) -> Self {
        let SimDomain { world, domid, uuid, .. } = domain;
        let domain = SimDomain { world: world.clone(), domid: *domid, uuid: *uuid, steps: Vec::new() };
        Self { domain, dirty: EveryPage }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Guest) -> DomainResult<T>) -> DomainResult<T> {
        self.domain.world.with(|state| {
            let guest = state.domains.get_mut(&self.domain.domid);
            let guest =
                guest.filter(|guest| guest.spec.uuid == self.domain.uuid).ok_or(DomainError::Ended)?;
            match guest.shutdown {
                None | Some(Shutdown::Suspend) => look(guest),
                Some(_) => Err(DomainError::Ended),
            }
        })
    }
}

impl Outgoing for SimSource {
    fn places(&self) -> DomainResult<Places> {
        Ok(Places::default())
    }
}

impl SourceDomain for SimSource {
    fn describe(&mut self) -> DomainResult<Description> {
        self.with(|guest| {
            Ok(Description {
                hypervisor: (4, 17),
                vcpus: guest.spec.vcpus,
                nr_pages: PAGES,
                max_pages: guest.spec.memory_kib / 4,
                memory: vec![PfnRange { first: Pfn(0), count: PAGES }],
                ..Description::default()
            })
        })
    }

    fn dirty_source(&mut self) -> &mut dyn DirtySource {
        &mut self.dirty
    }

    fn void_pages(&mut self, _void: &mut PageBitmap) -> DomainResult<()> {
        Ok(())
    }

    fn read_pages(&self, pfns: &[Pfn], types: &mut [PageType], pages: &mut [Page]) -> DomainResult<()> {
        let bytes = self.with(|guest| Ok(save(guest)))?;
        types.fill(PageType::Data);
        for (pfn, page) in pfns.iter().zip(pages) {
            let at = pfn.0 as usize * PAGE_SIZE;
            match bytes.get(at..at + PAGE_SIZE) {
                Some(content) => page.copy_from_slice(content),
                None => page.fill(0),
            }
        }
        Ok(())
    }

    fn pfn_of(&self, mfn: Mfn) -> Option<Pfn> {
        Some(Pfn(mfn.0))
    }

    fn suspend(&mut self, _reason: Reason) -> DomainResult<()> {
        self.with(|guest| {
            if matches!(guest.program, Program::Stubborn) {
                return Err(DomainError::NoAnswer { seconds: 0 });
            }
            guest.shutdown = Some(Shutdown::Suspend);
            Ok(())
        })
    }

    fn state(&mut self) -> DomainResult<Vec<Piece>> {
        Ok(vec![Piece { kind: state::MANAGER, index: 0, bytes: b"simulated".to_vec() }])
    }

    fn resume(&mut self) -> DomainResult<()> {
        self.domain.resume().map_err(|error| failed("resuming of a simulated domain", error))
    }

    fn destroy(&mut self) -> DomainResult<()> {
        self.domain.destroy().map_err(|error| failed("destruction of a simulated domain", error))
    }
}

/// A simulated domain that arrives.
pub(super) struct SimIncoming {
    world: Arc<World>,
    domid: u32,
    arrival: Arrival,
    memory: Mutex<Vec<Page>>,
    domain: Option<Arc<SimDomain>>,
    kept: bool,
}

impl SimIncoming {
    pub(super) fn create(
        world: &Arc<World>,
        arrival: Arrival,
        description: &Description,
    ) -> DomainResult<Self> {
        let memory_kib = description.max_pages * 4;
        let mut state = world.state.lock().unwrap();
        let free = world.free_kib(&state);
        if memory_kib > free || description.nr_pages > PAGES {
            let message = format!("{memory_kib} KiB of memory are needed, {free} KiB are free");
            return Err(Refusal { cause: RefusalCause::Memory, message }.into());
        }
        let domid = state.next_domid;
        state.next_domid += 1;
        // Holds the memory until the real one is known.
        let empty = json!({
            "image": { "kind": "capsule", "size": 0, "words": [] }, "program": "spin", "stop_asked": false,
            "output": [], "taken": 0, "input": [], "input_closed": true, "stdin": false,
            "memory_kib": memory_kib, "vcpus": 1, "wake_ns": null,
        });
        let placeholder = load(empty.to_string().as_bytes(), &Arrival { uuid: SPARE, ..arrival.clone() });
        state.domains.insert(domid, placeholder.expect("the placeholder is well formed"));
        drop(state);
        let memory = Mutex::new(vec![[0; PAGE_SIZE]; PAGES as usize]);
        Ok(Self { world: world.clone(), domid, arrival, memory, domain: None, kept: false })
    }

    fn write(&self, pfn: u64, content: &Page) -> DomainResult<()> {
        let mut memory = self.memory.lock().unwrap();
        let page = memory.get_mut(pfn as usize).ok_or(DomainError::Ended)?;
        page.copy_from_slice(content);
        Ok(())
    }
}

impl DestinationDomain for SimIncoming {
    fn mfn_of(&self, pfn: Pfn) -> Option<Mfn> {
        (pfn.0 < PAGES).then_some(Mfn(pfn.0))
    }

    fn write_pages(&self, pfns: &[Pfn], _types: &[PageType], pages: &[Page]) -> DomainResult<()> {
        pfns.iter().zip(pages).try_for_each(|(pfn, page)| self.write(pfn.0, page))
    }

    fn clear_pages(&self, pages: PfnRange) -> DomainResult<()> {
        (pages.first.0..pages.first.0 + pages.count).try_for_each(|pfn| self.write(pfn, &[0; PAGE_SIZE]))
    }

    fn finish(&mut self, _last: FinalState) -> DomainResult<()> {
        let bytes = self.memory.lock().unwrap()[..STATE_PAGES as usize].concat();
        let guest =
            load(&bytes, &self.arrival).ok_or_else(|| failed("restoring", "its memory makes no sense"))?;
        self.world.with(|state| state.domains.insert(self.domid, guest));
        let uuid = self.arrival.uuid;
        self.domain = Some(Arc::new(SimDomain {
            world: self.world.clone(),
            domid: self.domid,
            uuid,
            steps: Vec::new(),
        }));
        Ok(())
    }

    fn activate(&mut self) -> DomainResult<()> {
        let domain = self.domain.as_ref().ok_or(DomainError::Ended)?;
        self.kept = true;
        domain.unpause().map_err(|error| failed("starting of a simulated domain", error))
    }

    fn destroy(&mut self) {
        if !std::mem::replace(&mut self.kept, true) {
            self.world.with(|state| state.domains.remove(&self.domid));
        }
    }
}

impl Drop for SimIncoming {
    fn drop(&mut self) {
        DestinationDomain::destroy(self);
    }
}

impl Incoming for SimIncoming {
    fn domid(&self) -> u32 {
        self.domid
    }

    fn domain(&self) -> DomainResult<Arc<dyn Domain>> {
        let domain = self.domain.clone().ok_or(DomainError::Ended)?;
        Ok(domain)
    }
}
