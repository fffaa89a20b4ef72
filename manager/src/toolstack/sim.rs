//! A hypervisor in memory, for tests and for trying things out without one.
//!
//! Its images are text: `SIM:` and a program with its arguments, to which the capsule's
//! arguments are added. Programs:
//!
//! | program | does |
//! |---|---|
//! | `hello` | greets, and ends with exit code 0 |
//! | `args` | prints its arguments and environment, a line each |
//! | `exit N` | ends with exit code N |
//! | `echo` | writes what it reads, until the end of input |
//! | `count` | prints how many bytes it has read, at the end of input |
//! | `flood [N]` | writes without end, or N bytes |
//! | `tick [MS]` | writes a line with a number every so often |
//! | `sleep MS` | ends after a while |
//! | `spin` | uses processor time until it is stopped, as much as its cap allows of one |
//! | `stubborn` | as `spin`, but does nothing that it is asked to |
//! | `hold KIB` | uses so much of its memory until it is stopped |
//! | `net` | prints the addresses of its network interfaces, a line each; wants a network |
//! | `serve` | waits until it is stopped; wants a network |
//! | `panic`, `leak`, `fault`, `crash` | end in these ways |
//!
//! `SIMK:` makes another kernel of it, which gets no arguments and leaves no epitaph. Input
//! and output go through rings as short as the real ones. A [`World`] outlives its
//! toolstacks, as a real hypervisor outlives daemons.

mod moving;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fcap_api::ImageKind;
use fcap_migrate::domain::{Description, DomainResult};
use xen_proto::boot::{Kind, Net, Records};
use xen_proto::console::{EndKind, IN_LEN, OUT_LEN};

use super::{
    Arrival, Domain, DomainInfo, DomainSpec, Epitaph, Error, Event, EventSink, Host, Image, Incoming,
    Outgoing, Result, Shutdown, Toolstack, Tracking, Uuid,
};
use moving::{SPARE, SimIncoming, SimSource};

/// Least memory of every simulated image.
const MIN_MEMORY_KIB: u64 = 512;
/// Longest image that is taken for a program.
const MAX_PROGRAM: usize = 4096;
/// Programs that are linked with the network.
const NETWORKED: [&str; 2] = ["net", "serve"];
/// How often a world's thread looks whether the world still exists.
const LOOK: Duration = Duration::from_millis(200);

/// Simulated hardware.
pub struct World {
    state: Mutex<State>,
    /// Tells the clock that there is something earlier to wait for.
    alarm: Condvar,
    memory_kib: u64,
    cpus: u32,
    started: Instant,
}

struct State {
    domains: BTreeMap<u32, Guest>,
    next_domid: u32,
    sink: Option<EventSink>,
    /// Domains whose consoles have something new, and whether any has ended: still to be told.
    news: (Vec<u32>, bool),
}

struct Guest {
    spec: DomainSpec,
    program: Program,
    paused: bool,
    shutdown: Option<Shutdown>,
    epitaph: Option<Epitaph>,
    stop_asked: bool,
    output: Vec<u8>,
    taken: u32,
    input: Vec<u8>,
    input_closed: bool,
    /// When a program that waits for time to pass goes on.
    wake: Option<Instant>,
    /// What it has used until `running_since`.
    cpu_time: Duration,
    running_since: Option<Instant>,
}

#[derive(Clone, Debug)]
enum Program {
    Print(Vec<u8>, Box<Program>),
    Exit(i32),
    Echo,
    Count(u64),
    Flood(Option<u64>),
    Tick(u64, Duration),
    Sleep(Duration),
    Spin,
    Serve,
    Stubborn,
    Hold(u64),
    End(EndKind, &'static str),
    Crash,
}

/// A text that is taken for a program.
struct SimImage {
    kind: ImageKind,
    size: u64,
    words: Vec<String>,
}

impl Image for SimImage {
    fn kind(&self) -> ImageKind {
        self.kind
    }

    fn min_memory_kib(&self) -> u64 {
        if self.kind == ImageKind::Data { 0 } else { MIN_MEMORY_KIB }
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn wants_network(&self) -> bool {
        self.kind == ImageKind::Capsule
            && self.words.first().is_some_and(|word| NETWORKED.contains(&word.as_str()))
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

fn parse_program(words: &[String]) -> Result<Program> {
    let number = |default: Option<u64>| match (words.get(1), default) {
        (None, Some(default)) => Ok(default),
        (word, _) => word
            .and_then(|word| word.parse().ok())
            .ok_or_else(|| Error::BadImage("the simulated program needs a number as its argument".into())),
    };
    let print = |text: String, then| Program::Print(text.into_bytes(), Box::new(then));
    let end = |text: &str, kind, message| print(format!("{text}\n"), Program::End(kind, message));
    Ok(match words.first().map_or("", String::as_str) {
        "hello" => print("Hello from a simulated capsule!\n".into(), Program::Exit(0)),
        "args" | "net" => print(String::new(), Program::Exit(0)),
        "exit" => Program::Exit(number(None)? as i32),
        "echo" => Program::Echo,
        "count" => Program::Count(0),
        "flood" => Program::Flood(words.get(1).map(|_| number(None)).transpose()?),
        "tick" => Program::Tick(0, Duration::from_millis(number(Some(100))?)),
        "sleep" => Program::Sleep(Duration::from_millis(number(None)?)),
        "spin" => Program::Spin,
        "serve" => Program::Serve,
        "stubborn" => Program::Stubborn,
        "hold" => Program::Hold(number(None)?),
        "panic" => end("about to panic", EndKind::Panicked, "panicked at src/main.rs:3:5: as it was told"),
        "leak" => end("leaking", EndKind::OutOfMemory, "no memory left for 4096 bytes"),
        "fault" => end("about to fault", EndKind::Fault, "page fault at 0x0"),
        "crash" => Program::Crash,
        other => {
            let other: String = other.chars().take(40).collect();
            return Err(Error::BadImage(format!("the simulator has no program {other:?}")));
        }
    })
}

impl Program {
    /// Memory that it cannot do without.
    fn used_kib(&self) -> u64 {
        match self {
            Self::Hold(kib) => *kib,
            _ => MIN_MEMORY_KIB,
        }
    }
}

/// An interface as the program `net` prints it.
fn describe(net: Net) -> String {
    let mac = net.mac.map(|byte| format!("{byte:02x}")).join(":");
    let v4 = [net.ipv4, net.gateway4, net.dns4].map(Ipv4Addr::from);
    let v6 = [net.ipv6, net.gateway6, net.dns6].map(Ipv6Addr::from);
    format!(
        "{mac} mtu {} {}/{} via {} dns {} {}/{} via {} dns {}",
        net.mtu, v4[0], net.prefix4, v4[1], v4[2], v6[0], net.prefix6, v6[1], v6[2]
    )
}

impl World {
    /// A machine with so many processors and so much memory.
    pub fn new(cpus: u32, memory_kib: u64) -> Arc<Self> {
        let state = State { domains: BTreeMap::new(), next_domid: 1, sink: None, news: (Vec::new(), false) };
        let world = Arc::new(Self {
            state: Mutex::new(state),
            alarm: Condvar::new(),
            memory_kib,
            cpus,
            started: Instant::now(),
        });
        let weak = Arc::downgrade(&world);
        std::thread::spawn(move || run_clock(&weak));
        world
    }

    /// A toolstack for this machine. Events go to it from now on, no more to an earlier one.
    pub fn toolstack(self: &Arc<Self>, sink: EventSink) -> Sim {
        let mut state = self.state.lock().unwrap();
        state.sink = Some(sink);
        // Half a domain that an earlier daemon left.
        state.domains.retain(|_, guest| guest.spec.uuid != SPARE);
        drop(state);
        Sim { world: self.clone() }
    }

    /// Ends a domain as if somebody else had done it.
    pub fn destroy(&self, domid: u32) {
        self.with(|state| {
            state.domains.remove(&domid);
            state.news.1 = true;
        });
    }

    /// Numbers of all domains.
    pub fn domids(&self) -> Vec<u32> {
        self.state.lock().unwrap().domains.keys().copied().collect()
    }

    /// Command line of a domain's kernel.
    pub fn command_line(&self, domid: u32) -> Option<String> {
        let state = self.state.lock().unwrap();
        state.domains.get(&domid).map(|guest| guest.spec.command_line.clone())
    }

    /// Changes something. What there is to tell about it is told by the world's own thread.
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock().unwrap());
        self.alarm.notify_one();
        result
    }

    fn free_kib(&self, state: &State) -> u64 {
        let held: u64 = state.domains.values().map(|guest| guest.spec.memory_kib).sum();
        self.memory_kib.saturating_sub(held)
    }
}

/// Tells about what has happened, and wakes programs that wait for time to pass, as long as
/// the world exists.
fn run_clock(world: &Weak<World>) {
    while let Some(world) = world.upgrade() {
        let mut state = world.state.lock().unwrap();
        let now = Instant::now();
        let due = |guest: &Guest| guest.wake.is_some_and(|wake| wake <= now);
        let domids: Vec<u32> =
            state.domains.iter().filter(|(_, guest)| due(guest)).map(|(domid, _)| *domid).collect();
        domids.into_iter().for_each(|domid| state.step(domid));
        let (consoles, ended) = std::mem::take(&mut state.news);
        if ended || !consoles.is_empty() {
            let sink = state.sink.clone();
            drop(state);
            if let Some(sink) = sink {
                consoles.into_iter().for_each(|domid| sink(Event::Console(domid)));
                ended.then(|| sink(Event::Domains));
            }
            continue;
        }
        let next = state.domains.values().filter_map(|guest| guest.wake).min();
        let wait = next.map_or(LOOK, |next| next.saturating_duration_since(now).min(LOOK));
        let _ = world.alarm.wait_timeout(state, wait);
    }
}

impl State {
    /// Lets a program go on until it has to wait.
    fn step(&mut self, domid: u32) {
        let Some(guest) = self.domains.get_mut(&domid) else { return };
        if guest.paused || guest.shutdown.is_some() {
            return;
        }
        let (before_out, before_in) = (guest.output.len(), guest.input.len());
        guest.run();
        if guest.output.len() != before_out || guest.input.len() != before_in {
            self.news.0.push(domid);
        }
        self.news.1 |= guest.shutdown.is_some();
    }
}

impl Guest {
    fn run(&mut self) {
        if !self.stop_asked && self.wake.is_some_and(|wake| wake > Instant::now()) {
            return;
        }
        self.wake = None;
        loop {
            let room = OUT_LEN - self.output.len();
            if self.stop_asked && !matches!(self.program, Program::Stubborn) {
                return self.end(EndKind::Stopped, 143, "");
            }
            match &mut self.program {
                Program::Print(text, then) => {
                    let now = room.min(text.len());
                    self.output.extend(text.drain(..now));
                    if !text.is_empty() {
                        return;
                    }
                    self.program = (**then).clone();
                }
                Program::Exit(code) => {
                    let code = *code;
                    return self.end(EndKind::Exited, code, "");
                }
                Program::Echo => {
                    let now = room.min(self.input.len());
                    self.output.extend(self.input.drain(..now));
                    if self.input.is_empty() && self.input_closed {
                        return self.end(EndKind::Exited, 0, "");
                    }
                    return;
                }
                Program::Count(count) => {
                    *count += self.input.len() as u64;
                    self.input.clear();
                    if !self.input_closed {
                        return;
                    }
                    let text = format!("{count}\n").into_bytes();
                    self.program = Program::Print(text, Box::new(Program::Exit(0)));
                }
                Program::Flood(left) => {
                    let now = left.map_or(room, |left| room.min(usize::try_from(left).unwrap_or(room)));
                    self.output.extend((0..now).map(|i| if i % 64 == 63 { b'\n' } else { b'x' }));
                    if let Some(left) = left {
                        *left -= now as u64;
                        if *left == 0 {
                            return self.end(EndKind::Exited, 0, "");
                        }
                    }
                    return;
                }
                Program::Tick(count, every) => {
                    let line = format!("tick {}\n", *count + 1);
                    if line.len() <= room {
                        *count += 1;
                        self.output.extend(line.bytes());
                        self.wake = Some(Instant::now() + *every);
                    }
                    return;
                }
                Program::Sleep(time) => {
                    let until = Instant::now() + *time;
                    self.wake = Some(until);
                    self.program = Program::Exit(0);
                    return;
                }
                Program::Spin | Program::Serve | Program::Stubborn | Program::Hold(_) => return,
                Program::End(kind, message) => {
                    let (kind, message) = (*kind, *message);
                    return self.end(kind, 0, message);
                }
                Program::Crash => {
                    self.shutdown = Some(Shutdown::Crash);
                    return;
                }
            }
        }
    }

    fn end(&mut self, kind: EndKind, exit_code: i32, message: &str) {
        let image = self.spec.image.as_any().downcast_ref::<SimImage>();
        if image.is_some_and(|image| image.kind == ImageKind::Capsule) {
            let backtrace = if message.is_empty() { Vec::new() } else { vec![0xffff_ffff_8000_1234] };
            self.epitaph = Some(Epitaph { kind, exit_code, message: message.into(), backtrace });
        }
        self.shutdown = Some(Shutdown::Poweroff);
    }

    fn cpu_time(&self) -> Duration {
        let spinning = matches!(self.program, Program::Spin | Program::Stubborn) && self.shutdown.is_none();
        let now = self.running_since.filter(|_| spinning).map_or(Duration::ZERO, |since| since.elapsed());
        let share = if self.spec.cpu_cap == 0 { 1.0 } else { f64::from(self.spec.cpu_cap) / 100.0 };
        self.cpu_time + now.mul_f64(share) + Duration::from_micros(50)
    }

    fn info(&self, domid: u32) -> DomainInfo {
        DomainInfo {
            domid,
            uuid: self.spec.uuid,
            paused: self.paused,
            shutdown: self.shutdown,
            dying: false,
            cpu_time_ns: u64::try_from(self.cpu_time().as_nanos()).unwrap_or(u64::MAX),
            memory_kib: self.spec.memory_kib,
            vcpus: self.spec.vcpus,
        }
    }
}

/// A toolstack for a [`World`].
pub struct Sim {
    world: Arc<World>,
}

/// A domain of a [`World`].
struct SimDomain {
    world: Arc<World>,
    domid: u32,
    /// To notice when the number has been given to another one.
    uuid: Uuid,
    steps: Vec<(&'static str, u64)>,
}

impl Toolstack for Sim {
    fn host(&self) -> Result<Host> {
        let state = self.world.state.lock().unwrap();
        Ok(Host {
            hypervisor: "simulator".into(),
            cpus: self.world.cpus,
            memory_kib: self.world.memory_kib,
            free_memory_kib: self.world.free_kib(&state),
            log_dirty: false,
            dom0_cpu_time_ns: u64::try_from(self.world.started.elapsed().as_nanos()).unwrap_or(u64::MAX),
        })
    }

    fn parse_image(&self, bytes: Bytes) -> Result<Arc<dyn Image>> {
        let size = bytes.len() as u64;
        let image = |kind, words| -> Arc<dyn Image> { Arc::new(SimImage { kind, size, words }) };
        if bytes.starts_with(b"\x7fELF") {
            return Err(Error::BadImage(
                "this is an ELF file, and the simulator runs only SIM: programs".into(),
            ));
        }
        let (kind, program) = match (bytes.strip_prefix(b"SIM:"), bytes.strip_prefix(b"SIMK:")) {
            (Some(program), _) => (ImageKind::Capsule, program),
            (_, Some(program)) => (ImageKind::Kernel, program),
            _ => return Ok(image(ImageKind::Data, Vec::new())),
        };
        if program.len() > MAX_PROGRAM {
            return Err(Error::BadImage("a simulated program has at most 4,096 bytes".into()));
        }
        let text = std::str::from_utf8(program)
            .map_err(|_| Error::BadImage("a simulated program must be UTF-8".into()))?;
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        // With a number in place of those that the capsule's arguments may bring.
        parse_program(&[words.clone(), vec!["1".into()]].concat())?;
        Ok(image(kind, words))
    }

    fn create(&self, spec: &DomainSpec) -> Result<Arc<dyn Domain>> {
        let image = spec.image.as_any().downcast_ref::<SimImage>();
        let image = image.ok_or_else(|| Error::BadImage("this is no simulated image".into()))?;
        if spec.memory_kib < MIN_MEMORY_KIB {
            return Err(Error::NotEnoughMemory { needed_kib: MIN_MEMORY_KIB, given_kib: spec.memory_kib });
        }
        let started = Instant::now();
        let (mut words, mut arguments, mut environment) = (image.words.clone(), Vec::new(), Vec::new());
        let mut interfaces = Vec::new();
        for (kind, body) in spec.module.iter().flat_map(|module| Records::new(module)) {
            let text = String::from_utf8_lossy(body).into_owned();
            match kind {
                kind if kind == Kind::Arg as u32 => arguments.push(text),
                kind if kind == Kind::Env as u32 => environment.push(text),
                kind if kind == Kind::Net as u32 => interfaces.extend(Net::parse(body).map(describe)),
                _ => {}
            }
        }
        words.extend(arguments.iter().skip(1).cloned());
        let printed = match words.first().map_or("", String::as_str) {
            "args" => Some([arguments, environment].concat()),
            "net" => Some(interfaces),
            _ => None,
        };
        let program = match printed {
            Some(lines) => {
                let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
                Program::Print(text.into_bytes(), Box::new(Program::Exit(0)))
            }
            None => parse_program(&words)?,
        };
        let mut state = self.world.state.lock().unwrap();
        let free = self.world.free_kib(&state);
        if spec.memory_kib > free {
            let asked = spec.memory_kib;
            return Err(Error::NoRoom(format!("{asked} KiB of memory are asked for, {free} KiB are free")));
        }
        let domid = state.next_domid;
        state.next_domid += 1;
        let guest = Guest {
            spec: spec.clone(),
            program,
            paused: true,
            shutdown: None,
            epitaph: None,
            stop_asked: false,
            output: Vec::new(),
            taken: 0,
            input: Vec::new(),
            input_closed: !spec.stdin,
            wake: None,
            cpu_time: Duration::ZERO,
            running_since: None,
        };
        state.domains.insert(domid, guest);
        let steps = vec![("simulated", u64::try_from(started.elapsed().as_nanos()).unwrap_or(0))];
        Ok(Arc::new(SimDomain { world: self.world.clone(), domid, uuid: spec.uuid, steps }))
    }

    fn domains(&self) -> Result<Vec<DomainInfo>> {
        let state = self.world.state.lock().unwrap();
        let complete = state.domains.iter().filter(|(_, guest)| guest.spec.uuid != SPARE);
        Ok(complete.map(|(domid, guest)| guest.info(*domid)).collect())
    }

    fn adopt(&self, domid: u32) -> Result<Arc<dyn Domain>> {
        let state = self.world.state.lock().unwrap();
        let uuid = state.domains.get(&domid).ok_or(Error::Gone)?.spec.uuid;
        Ok(Arc::new(SimDomain { world: self.world.clone(), domid, uuid, steps: Vec::new() }))
    }

    fn activate(&self, domid: u32) -> Result<()> {
        self.adopt(domid)?.unpause()
    }

    fn destroy(&self, domid: u32) -> Result<()> {
        self.world.destroy(domid);
        Ok(())
    }

    fn incoming(&self, arrival: Arrival, description: &Description) -> DomainResult<Box<dyn Incoming>> {
        Ok(Box::new(SimIncoming::create(&self.world, arrival, description)?))
    }

    fn set_pool(&self, _size: u32) -> Result<()> {
        Ok(())
    }

    fn pool_ready(&self) -> u32 {
        0
    }

    fn release_ready(&self) -> bool {
        false
    }
}

impl SimDomain {
    fn with<T>(&self, change: impl FnOnce(&mut Guest) -> Result<T>) -> Result<T> {
        self.world.with(|state| {
            let guest = state.domains.get_mut(&self.domid).filter(|guest| guest.spec.uuid == self.uuid);
            let result = change(guest.ok_or(Error::Gone)?)?;
            state.step(self.domid);
            Ok(result)
        })
    }
}

impl Domain for SimDomain {
    fn domid(&self) -> u32 {
        self.domid
    }

    fn build_steps(&self) -> Vec<(&'static str, u64)> {
        self.steps.clone()
    }

    fn unpause(&self) -> Result<()> {
        self.with(|guest| {
            guest.paused = false;
            guest.running_since = Some(Instant::now());
            Ok(())
        })
    }

    fn pause(&self) -> Result<()> {
        self.with(|guest| {
            guest.cpu_time = guest.cpu_time();
            guest.running_since = None;
            guest.paused = true;
            guest.wake = None;
            Ok(())
        })
    }

    fn request_stop(&self) -> Result<()> {
        self.with(|guest| {
            guest.stop_asked = true;
            Ok(())
        })
    }

    fn set_scheduling(&self, cpu_cap: u16, weight: u16) -> Result<()> {
        self.with(|guest| {
            guest.cpu_time = guest.cpu_time();
            guest.running_since = guest.running_since.map(|_| Instant::now());
            (guest.spec.cpu_cap, guest.spec.weight) = (cpu_cap, weight);
            Ok(())
        })
    }

    fn resize(&self, memory_kib: u64) -> Result<u64> {
        self.world.with(|state| {
            let free = self.world.free_kib(state);
            let guest = state.domains.get_mut(&self.domid).filter(|guest| guest.spec.uuid == self.uuid);
            let guest = guest.ok_or(Error::Gone)?;
            if matches!(guest.program, Program::Stubborn) {
                return Err(Error::NoAnswer { seconds: 0 });
            }
            let held = guest.spec.memory_kib;
            if memory_kib.saturating_sub(held) > free {
                let more = memory_kib - held;
                return Err(Error::NoRoom(format!(
                    "{more} KiB more of memory are asked for, {free} KiB are free"
                )));
            }
            guest.spec.memory_kib = match memory_kib < held {
                true => memory_kib.max(guest.program.used_kib()).min(held),
                false => memory_kib,
            };
            Ok(guest.spec.memory_kib)
        })
    }

    fn rename(&self, name: &str) -> Result<()> {
        self.with(|guest| {
            name.clone_into(&mut guest.spec.name);
            Ok(())
        })
    }

    fn destroy(&self) -> Result<()> {
        let mut state = self.world.state.lock().unwrap();
        if state.domains.get(&self.domid).is_some_and(|guest| guest.spec.uuid == self.uuid) {
            state.domains.remove(&self.domid);
        }
        Ok(())
    }

    fn read_output(&self, max: usize, keep: &mut dyn FnMut(&[u8]) -> bool) -> Result<usize> {
        self.with(|guest| {
            let count = guest.output.len().min(max);
            if count == 0 || !keep(&guest.output[..count]) {
                return Ok(0);
            }
            guest.output.drain(..count);
            guest.taken = guest.taken.wrapping_add(count as u32);
            Ok(count)
        })
    }

    fn output_position(&self) -> Result<u32> {
        self.with(|guest| Ok(guest.taken))
    }

    fn write_input(&self, bytes: &[u8]) -> Result<usize> {
        self.with(|guest| {
            let count = bytes.len().min(IN_LEN - guest.input.len());
            guest.input.extend(&bytes[..count]);
            Ok(count)
        })
    }

    fn close_input(&self) -> Result<()> {
        self.with(|guest| {
            guest.input_closed = true;
            Ok(())
        })
    }

    fn epitaph(&self) -> Option<Epitaph> {
        let state = self.world.state.lock().unwrap();
        state.domains.get(&self.domid).and_then(|guest| guest.epitaph.clone())
    }

    fn outgoing(&self, _tracking: Tracking) -> DomainResult<Box<dyn Outgoing>> {
        Ok(Box::new(SimSource::new(self)))
    }

    fn resume(&self) -> Result<()> {
        self.with(|guest| {
            if guest.shutdown == Some(Shutdown::Suspend) {
                guest.shutdown = None;
            }
            Ok(())
        })
    }
}
