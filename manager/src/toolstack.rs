//! What the daemon asks of a hypervisor.
//!
//! Two implementations pass the same test suite: the real one on Xen, and a
//! simulator in memory, with which the daemon runs whole on any machine. All calls
//! block; the daemon makes them from threads that may wait.
//!
//! A [`Toolstack`] keeps no state that matters: after a restart [`Toolstack::domains`]
//! finds what runs, and [`Toolstack::adopt`] takes it back.

pub mod sim;
#[cfg(feature = "xen")]
pub mod xen;

use std::sync::Arc;

use bytes::Bytes;
use fcap_api::ImageKind;
use fcap_migrate::domain::{Description, DestinationDomain, DomainResult, SourceDomain};
use xen_proto::{boot, suspend};

/// Identity of a capsule; also the domain's handle in the hypervisor.
pub type Uuid = [u8; 16];

/// A failed request to the hypervisor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image cannot be run; says why and what would help.
    #[error("{0}")]
    BadImage(String),
    /// The image does not fit into the memory that the capsule is given.
    #[error("the image needs at least {needed_kib} KiB of memory, the capsule is given {given_kib} KiB")]
    NotEnoughMemory {
        /// What would be enough.
        needed_kib: u64,
        /// What was asked for.
        given_kib: u64,
    },
    /// More memory was asked for than this image can use.
    #[error("this image can use at most {limit_kib} KiB of memory, the capsule is given {given_kib} KiB")]
    TooMuchMemory {
        /// The most it can use.
        limit_kib: u64,
        /// What was asked for.
        given_kib: u64,
    },
    /// The node has not enough of something.
    #[error("the node has no room: {0}")]
    NoRoom(String),
    /// The domain cannot change its memory while it runs.
    #[error(
        "its kernel has no balloon that fcap knows, so its memory cannot change while it runs; \
         stop it first, and start it again"
    )]
    NoBalloon,
    /// The domain was asked for something and does not answer.
    #[error("it does not answer within {seconds} s: it computes without ever waiting; it runs on as before")]
    NoAnswer {
        /// How long it was given.
        seconds: u64,
    },
    /// A setting that the hypervisor does not take.
    #[error("{0}")]
    BadSetting(String),
    /// The domain is gone.
    #[error("the capsule's domain is gone")]
    Gone,
    /// Something that should have worked.
    #[error("{call} failed")]
    Failed {
        /// The operation.
        call: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Result of a request to the hypervisor.
pub type Result<T> = std::result::Result<T, Error>;

/// The machine below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// "Xen 4.17.7", or "simulator".
    pub hypervisor: String,
    /// Processors.
    pub cpus: u32,
    /// All memory.
    pub memory_kib: u64,
    /// Memory not given to anybody.
    pub free_memory_kib: u64,
    /// Whether the hypervisor can track dirty pages of PV guests itself.
    pub log_dirty: bool,
    /// Processor time used by dom0 itself since its boot.
    pub dom0_cpu_time_ns: u64,
}

/// A parsed and checked image, shared by all the capsules made of it.
pub trait Image: Send + Sync {
    /// What it is.
    fn kind(&self) -> ImageKind;
    /// Least memory to start it (0 for [`ImageKind::Data`]).
    fn min_memory_kib(&self) -> u64;
    /// Size of the file in bytes.
    fn size(&self) -> u64;
    /// Whether it is a capsule that is linked with the library OS's network.
    fn wants_network(&self) -> bool;
    /// For implementations to find their own type again.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// A domain to be built.
#[derive(Clone)]
pub struct DomainSpec {
    /// Its handle.
    pub uuid: Uuid,
    /// Its name, for people who look with other tools.
    pub name: String,
    /// The kernel.
    pub image: Arc<dyn Image>,
    /// The boot module: fcap's own for capsules (see `xen_proto::boot`), an initrd for others.
    pub module: Option<Bytes>,
    /// Kernel command line, at most 1,023 bytes.
    pub command_line: String,
    /// Memory.
    pub memory_kib: u64,
    /// Memory that it can be given while it runs, at least as much; more for capsules alone.
    pub max_memory_kib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Cap in percent of one processor, 0 for none.
    pub cpu_cap: u16,
    /// Scheduler weight.
    pub weight: u16,
    /// Whether standard input will come.
    pub stdin: bool,
    /// Its network interfaces, by their handles.
    pub vifs: Vec<Vif>,
}

/// A network interface of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vif {
    /// Number of the interface within the domain: `device/vif/N`.
    pub handle: u32,
    /// Its hardware address.
    pub mac: [u8; 6],
    /// Most it may send, in kilobits a second.
    pub rate_kbit: Option<u32>,
}

/// A domain as the hypervisor sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// The hypervisor's number for it.
    pub domid: u32,
    /// Its handle.
    pub uuid: Uuid,
    /// Held by us.
    pub paused: bool,
    /// Set once it has shut down; the domain stays until it is destroyed.
    pub shutdown: Option<Shutdown>,
    /// Being torn down.
    pub dying: bool,
    /// Processor time used by all its vCPUs.
    pub cpu_time_ns: u64,
    /// Memory it holds.
    pub memory_kib: u64,
    /// Virtual processors online.
    pub vcpus: u32,
}

/// Why a domain shut down, in Xen's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// By itself.
    Poweroff,
    /// Wants to be started again.
    Reboot,
    /// To be saved.
    Suspend,
    /// Crashed, or was crashed by the hypervisor.
    Crash,
    /// Its watchdog ran out.
    Watchdog,
}

/// What a capsule left behind in its status area, checked and bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epitaph {
    /// How it ended.
    pub kind: xen_proto::console::EndKind,
    /// Its exit code.
    pub exit_code: i32,
    /// Message, valid UTF-8 (invalid parts replaced), not yet safe for terminals.
    pub message: String,
    /// Return addresses, innermost first.
    pub backtrace: Vec<u64>,
}

/// Something that the daemon should look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The capsule wrote to its console, or read from it so that there is room again.
    Console(u32),
    /// Some domain has shut down or gone: look at all of them.
    Domains,
}

/// Who tells which pages a moving domain writes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tracking {
    /// The best that there is for it.
    #[default]
    Best,
    /// The library OS, which looks at its own page tables.
    Guest,
    /// We, looking at its page tables.
    DirtyBits,
    /// The hypervisor.
    LogDirty,
}

/// Pages of a domain that the toolstack shares with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Places {
    /// The console page.
    pub console: u64,
    /// The xenstore ring.
    pub store: u64,
}

/// A domain that is about to leave. Dropping it changes nothing about the domain.
pub trait Outgoing: SourceDomain + Send {
    /// Which pages the destination must know beforehand.
    fn places(&self) -> DomainResult<Places>;
}

/// What the manager knows of a domain that comes from elsewhere.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its handle once it is complete.
    pub uuid: Uuid,
    /// Its name, for people who look with other tools.
    pub name: String,
    /// Whether it is one of ours.
    pub is_capsule: bool,
    /// As its source said.
    pub places: Places,
    /// Cap in percent of one processor, 0 for none.
    pub cpu_cap: u16,
    /// Scheduler weight.
    pub weight: u16,
    /// Its network interfaces, by their handles.
    pub vifs: Vec<Vif>,
    /// Why it was suspended.
    pub reason: suspend::Reason,
    /// For a second copy: its own name and interfaces.
    pub identity: Option<(String, Vec<boot::Net>)>,
}

/// A domain that comes from elsewhere, in the making. Dropping it removes it, unless it was let
/// run.
pub trait Incoming: DestinationDomain + Send {
    /// The hypervisor's number for it.
    fn domid(&self) -> u32;
    /// The domain, once it is complete.
    fn domain(&self) -> DomainResult<Arc<dyn Domain>>;
}

/// Receives events; called from threads of the toolstack, must not block for long.
pub type EventSink = Arc<dyn Fn(Event) + Send + Sync>;

/// Makes domains.
pub trait Toolstack: Send + Sync {
    /// The machine below, as it is now.
    fn host(&self) -> Result<Host>;

    /// Reads an image, which is hostile input.
    ///
    /// Bytes that are no kernel at all are [`ImageKind::Data`]; a file that claims to be an
    /// ELF kernel and cannot be run is an error that says why.
    fn parse_image(&self, bytes: Bytes) -> Result<Arc<dyn Image>>;

    /// Builds a domain, paused. On failure nothing is left behind.
    fn create(&self, spec: &DomainSpec) -> Result<Arc<dyn Domain>>;

    /// All domains but dom0 and the pool's, in one look.
    fn domains(&self) -> Result<Vec<DomainInfo>>;

    /// Takes back a domain that an earlier run of the daemon made, whether it runs or has shut
    /// down. Fails for one that is only half built, because its maker was killed.
    fn adopt(&self, domid: u32) -> Result<Arc<dyn Domain>>;

    /// Lets a complete domain run that came from elsewhere and that an earlier daemon was about
    /// to let run.
    fn activate(&self, domid: u32) -> Result<()>;

    /// Removes every trace of a domain that cannot be adopted. Does nothing if it is gone.
    fn destroy(&self, domid: u32) -> Result<()>;

    /// Makes room for a domain that comes from elsewhere. On failure nothing is left behind; nor
    /// after the death of this daemon, once the next one has looked, until it is complete.
    fn incoming(&self, arrival: Arrival, description: &Description) -> DomainResult<Box<dyn Incoming>>;

    /// Holds `size` domains ready for each of the specs most recently created (as many as the
    /// implementation finds sensible); 0 destroys them, and whatever else is held ready until it
    /// is needed again.
    fn set_pool(&self, size: u32) -> Result<()>;

    /// Domains that are ready in the pool.
    fn pool_ready(&self) -> u32;

    /// Gives up what is held ready, because its memory is needed; returns whether there was anything.
    fn release_ready(&self) -> bool;
}

/// One domain. Dropping it releases what the daemon holds of it, but does not destroy it.
pub trait Domain: Send + Sync {
    /// The hypervisor's number for it.
    fn domid(&self) -> u32;
    /// Where the time of building it went: steps in order with nanoseconds; empty when adopted.
    fn build_steps(&self) -> Vec<(&'static str, u64)>;
    /// Lets it run.
    fn unpause(&self) -> Result<()>;
    /// Holds it.
    fn pause(&self) -> Result<()>;
    /// Asks it to stop.
    fn request_stop(&self) -> Result<()>;
    /// Sets cap and weight, both at once.
    fn set_scheduling(&self, cpu_cap: u16, weight: u16) -> Result<()>;
    /// Has it hold so much memory, or as near to it as it can come: it keeps what it uses, and there
    /// may be too little on the node. Returns what it holds then. It must run, and nobody may copy
    /// it meanwhile; more than [`DomainSpec::max_memory_kib`] it does not take.
    fn resize(&self, memory_kib: u64) -> Result<u64>;
    /// Changes the name that other tools see.
    fn rename(&self, name: &str) -> Result<()>;
    /// Ends it at once and removes every trace of it. Does nothing if it is gone already.
    fn destroy(&self) -> Result<()>;

    /// Takes what it has written to its console since the last call, at most `max` bytes, and
    /// returns how many. The bytes are first shown to `keep` (not called when there are none);
    /// they are taken from the ring, and the capsule told that there is room, only after it
    /// returned true. So a daemon that is killed in between loses nothing.
    fn read_output(&self, max: usize, keep: &mut dyn FnMut(&[u8]) -> bool) -> Result<usize>;
    /// Bytes taken from its console since it was built, modulo 2^32: the ring's consumer index.
    /// With it an adopting daemon tells what its killed forerunner had kept but not yet taken.
    fn output_position(&self) -> Result<u32>;
    /// Gives it input; returns how many bytes there was room for. [`Event::Console`] tells when
    /// there may be room again.
    fn write_input(&self, bytes: &[u8]) -> Result<usize>;
    /// Says that no more input will come.
    fn close_input(&self) -> Result<()>;
    /// Why it ended, by its own word, once it has.
    fn epitaph(&self) -> Option<Epitaph>;
    /// The domain as one that can leave.
    fn outgoing(&self, tracking: Tracking) -> DomainResult<Box<dyn Outgoing>>;
    /// Lets it go on after it has suspended itself. Does nothing if it has not.
    fn resume(&self) -> Result<()>;
}
