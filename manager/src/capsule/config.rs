//! What a capsule was made with, checked.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use fcap_api::{
    CreateCapsule, DEFAULT_MEMORY_KIB, DEFAULT_NETWORK, DEFAULT_WEIGHT, ImageKind, MAX_NETWORKS, MAX_PORTS,
    Protocol, PublishPort, RestartPolicy,
};
use serde::{Deserialize, Serialize};
use xen_proto::boot;

use crate::error::{Error, Result};
use crate::id::CapsuleId;
use crate::names;
use crate::toolstack::Image;

/// Most processors of a capsule.
const MAX_VCPUS: u32 = 32;
/// Most bytes of a kernel's command line: Xen has room for 1,024 with the NUL.
const MAX_COMMAND_LINE: usize = 1023;
/// Most bytes of the words that a kernel's command line gets for an interface.
const MAX_INTERFACE_WORDS: usize = 105;
/// Most bytes of all arguments and environment variables together, as they travel in the boot module.
const MAX_ARGUMENTS: usize = 256 << 10;
/// Most bytes of what people call an image.
const MAX_IMAGE_NAME: usize = 255;
/// Most memory of a capsule: beyond it sums of bytes would overflow, and no node has it.
const MAX_MEMORY_KIB: u64 = 1 << 40;
/// KiB of a page.
const PAGE_KIB: u64 = 4;

/// What a capsule was made with. Only its name, memory, cap, weight and policy change later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Its identity.
    pub id: CapsuleId,
    /// Its name.
    pub name: String,
    /// Digest of its image.
    pub image: String,
    /// What people call its image.
    pub image_name: String,
    /// What the image is.
    pub kind: ImageKind,
    /// Arguments after the program's name.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Memory that it has now, or at its next start.
    pub memory_kib: u64,
    /// As it was kept; [`Config::max_memory_kib`] says what holds.
    #[serde(default)]
    pub max_memory_kib: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Cap in percent of one processor, 0 for none.
    pub cpu_cap: u16,
    /// Scheduler weight.
    pub weight: u16,
    /// What to do when it ends.
    pub restart: RestartPolicy,
    /// Remove it when it ends.
    pub remove: bool,
    /// Whether standard input will come.
    pub stdin: bool,
    /// Digest of an initrd.
    pub initrd: Option<String>,
    /// Kernel command line.
    pub append: Option<String>,
    /// When it was made.
    pub created_ms: u64,
    /// Its places in networks, in the order of its interfaces.
    #[serde(default)]
    pub networks: Vec<Interface>,
    /// Ports of the node that lead to it.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// Most it may send, in kilobits a second.
    #[serde(default)]
    pub net_rate_kbit: Option<u32>,
    /// How many times it has changed its node.
    #[serde(default)]
    pub generation: u64,
}

/// A place in a network; all else follows from the address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The network's name.
    pub network: String,
    /// IPv4 address.
    pub ipv4: Ipv4Addr,
}

/// A port of the node that leads to a capsule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// The node's port; 0 until one is chosen.
    pub host_port: u16,
    /// The choice is the node's: it may be another one at the next start.
    pub chosen: bool,
    /// The capsule's port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl Port {
    /// As the API shows it, once it is chosen.
    pub fn api(&self) -> Option<fcap_api::PublishedPort> {
        let Self { host_port, port, protocol, .. } = *self;
        (host_port != 0).then_some(fcap_api::PublishedPort { host_port, port, protocol })
    }
}

impl Config {
    /// Checks a request for a capsule named `name` of `image`. With it come the names of the
    /// networks that it is to have places in.
    ///
    /// # Errors
    /// [`Error::BadRequest`] and the like, naming the field and what it may be.
    pub fn check(
        request: CreateCapsule,
        id: CapsuleId,
        name: String,
        image: &dyn Image,
        created_ms: u64,
    ) -> Result<(Self, Vec<String>)> {
        let bad = |message: String| Err(Error::BadRequest(message));
        let memory_kib = request.memory_kib.unwrap_or(DEFAULT_MEMORY_KIB);
        if memory_kib == 0 {
            return bad("memory_kib is 0: a capsule needs memory".into());
        }
        if memory_kib > MAX_MEMORY_KIB {
            return bad(format!("memory_kib is {memory_kib}, at most {MAX_MEMORY_KIB} are possible"));
        }
        if memory_kib < image.min_memory_kib() {
            return Err(crate::toolstack::Error::NotEnoughMemory {
                needed_kib: image.min_memory_kib(),
                given_kib: memory_kib,
            }
            .into());
        }
        let max_memory_kib = request.max_memory_kib.unwrap_or(memory_kib);
        if !(memory_kib..=MAX_MEMORY_KIB).contains(&max_memory_kib) {
            return bad(format!(
                "max_memory_kib is {max_memory_kib}, it can be {memory_kib} (its memory) to {MAX_MEMORY_KIB}"
            ));
        }
        if max_memory_kib > memory_kib && image.kind() == ImageKind::Kernel {
            return bad("max_memory_kib is for capsules: fcap knows no balloon of other kernels".into());
        }
        let vcpus = request.vcpus.unwrap_or(1);
        if !(1..=MAX_VCPUS).contains(&vcpus) {
            return bad(format!("vcpus is {vcpus}, it can be 1 to {MAX_VCPUS}"));
        }
        let weight = request.weight.unwrap_or(DEFAULT_WEIGHT);
        check_weight(weight)?;
        let image_name = match request.image_name {
            Some(name)
                if name.is_empty() || name.len() > MAX_IMAGE_NAME || name.contains(char::is_control) =>
            {
                return bad(format!("image_name must be printable text of 1 to {MAX_IMAGE_NAME} bytes"));
            }
            Some(name) => name,
            None => request.image.chars().skip("sha256:".len()).take(12).collect(),
        };
        for (what, map) in [("environment variable", &request.env), ("label", &request.labels)] {
            if let Some(key) = map.keys().find(|key| key.is_empty() || key.contains(['=', '\0'])) {
                return bad(format!("{what} {key:?}: its name is empty or has a '=' or NUL in it"));
            }
        }
        if request.args.iter().chain(request.env.values()).any(|text| text.contains('\0')) {
            return bad("arguments and environment variables cannot have a NUL in them".into());
        }
        if request.remove && request.restart != RestartPolicy::No {
            return bad("remove and a restart policy exclude each other; choose one".into());
        }
        match image.kind() {
            ImageKind::Capsule if request.initrd.is_some() || request.append.is_some() => {
                return bad("initrd and append are for other kernels; a capsule takes arguments".into());
            }
            ImageKind::Kernel if !request.args.is_empty() || !request.env.is_empty() => {
                return bad(
                    "this image is no capsule: its kernel takes append, not arguments or environment".into(),
                );
            }
            ImageKind::Data => {
                return Err(Error::BadImage(format!(
                    "image {} is not a kernel: not an ELF file for Xen; `fcap build` makes one",
                    request.image
                )));
            }
            ImageKind::Capsule | ImageKind::Kernel => {}
        }
        let networks = check_networks(request.networks, image)?;
        let ports = check_ports(&request.ports, &networks)?;
        if request.net_rate_kbit == Some(0) {
            return bad("net_rate_kbit is 0: leave it out for no limit".into());
        }
        if request.net_rate_kbit.is_some() && networks.is_empty() {
            return bad("net_rate_kbit is for capsules with a network; name one".into());
        }
        if let Some(append) = &request.append
            && (append.len() + networks.len() * MAX_INTERFACE_WORDS > MAX_COMMAND_LINE
                || append.contains(char::is_control))
        {
            let most = MAX_COMMAND_LINE - networks.len() * MAX_INTERFACE_WORDS;
            return bad(format!("append must be printable text of at most {most} bytes"));
        }
        let config = Self {
            id,
            name,
            image: request.image,
            image_name,
            kind: image.kind(),
            args: request.args,
            env: request.env,
            labels: request.labels,
            memory_kib,
            max_memory_kib,
            vcpus,
            cpu_cap: request.cpu_cap,
            weight,
            restart: request.restart,
            remove: request.remove,
            stdin: request.stdin,
            initrd: request.initrd,
            append: request.append,
            created_ms,
            networks: Vec::new(),
            ports,
            net_rate_kbit: request.net_rate_kbit,
            generation: 0,
        };
        let arguments = config.boot_module(&[0; 32], &[]).len();
        if arguments > MAX_ARGUMENTS {
            return bad(format!(
                "arguments and environment take {arguments} bytes, at most {MAX_ARGUMENTS} fit"
            ));
        }
        Ok((config, networks))
    }

    /// Memory that it can have while it runs as it was started.
    pub fn max_memory_kib(&self) -> u64 {
        self.max_memory_kib.max(self.memory_kib)
    }

    /// Gives it other memory, of whole pages. One that is `live` keeps within its largest memory;
    /// for others that grows with it.
    ///
    /// # Errors
    /// If it cannot have so much; says how it could.
    pub fn set_memory(&mut self, memory_kib: u64, live: bool) -> Result<()> {
        let (name, most) = (&self.name, self.max_memory_kib());
        let memory_kib = memory_kib / PAGE_KIB * PAGE_KIB;
        if !(PAGE_KIB..=MAX_MEMORY_KIB).contains(&memory_kib) {
            return Err(Error::BadRequest(format!(
                "capsule {name} cannot have {memory_kib} KiB of memory: {PAGE_KIB} to {MAX_MEMORY_KIB} are possible"
            )));
        }
        if live && memory_kib > most {
            return Err(Error::BadRequest(format!(
                "capsule {name} can have at most {} while it runs, not {}: stop it for that and start it \
                 again, or make it with a larger maximum (`fcap run --memory-max`)",
                mib(most),
                mib(memory_kib)
            )));
        }
        self.max_memory_kib = most.max(memory_kib);
        if self.kind == ImageKind::Kernel {
            self.max_memory_kib = memory_kib;
        }
        self.memory_kib = memory_kib;
        Ok(())
    }

    /// Notes how much memory it holds.
    pub fn note_memory(&mut self, memory_kib: u64) {
        self.max_memory_kib = self.max_memory_kib();
        self.memory_kib = memory_kib;
    }

    /// The command line of another kernel with these interfaces. The words of each interface
    /// follow one another; there is room for them.
    pub fn command_line(&self, interfaces: &[boot::Net]) -> String {
        let mut line = self.append.clone().unwrap_or_default();
        for net in interfaces {
            let mac = net.mac.map(|byte| format!("{byte:02x}")).join(":");
            let [ip, gateway, dns] = [net.ipv4, net.gateway4, net.dns4].map(Ipv4Addr::from);
            if !line.is_empty() {
                line.push(' ');
            }
            line += &format!("fcap.mac={mac} fcap.ip={ip}/{} fcap.gw={gateway} fcap.dns={dns}", net.prefix4);
        }
        line
    }

    /// The boot module of a capsule that starts with this entropy and these interfaces.
    pub fn boot_module(&self, seed: &[u8; 32], interfaces: &[boot::Net]) -> Vec<u8> {
        let mut module = Vec::new();
        boot::begin(&mut module);
        boot::record(&mut module, boot::Kind::Seed, seed);
        boot::record(&mut module, boot::Kind::Name, self.name.as_bytes());
        for arg in std::iter::once(&self.image_name).chain(&self.args) {
            boot::record(&mut module, boot::Kind::Arg, arg.as_bytes());
        }
        for (name, value) in &self.env {
            boot::record(&mut module, boot::Kind::Env, format!("{name}={value}").as_bytes());
        }
        for net in interfaces {
            boot::record(&mut module, boot::Kind::Net, &net.emit());
        }
        boot::record(&mut module, boot::Kind::End, &[]);
        module
    }
}

/// The networks of a new capsule.
fn check_networks(asked: Option<Vec<String>>, image: &dyn Image) -> Result<Vec<String>> {
    let Some(networks) = asked else {
        return Ok(if image.wants_network() { vec![DEFAULT_NETWORK.into()] } else { Vec::new() });
    };
    if networks.len() > MAX_NETWORKS {
        return Err(Error::BadRequest(format!(
            "{} networks are asked for, a capsule can have at most {MAX_NETWORKS}",
            networks.len()
        )));
    }
    for (index, name) in networks.iter().enumerate() {
        if networks[..index].contains(name) {
            let name = names::printable(name, 80);
            return Err(Error::BadRequest(format!("network {name} is asked for twice")));
        }
    }
    Ok(networks)
}

/// The ports of a new capsule.
fn check_ports(asked: &[PublishPort], networks: &[String]) -> Result<Vec<Port>> {
    let bad = |message: String| Err(Error::BadRequest(message));
    if !asked.is_empty() && networks.is_empty() {
        return bad("ports can be published only for a capsule with a network; name one".into());
    }
    if asked.len() > MAX_PORTS {
        return bad(format!("{} ports are to be published, at most {MAX_PORTS} can be", asked.len()));
    }
    for (index, port) in asked.iter().enumerate() {
        if port.port == 0 || port.host_port == Some(0) {
            return bad("a port to be published is 0; ports are 1 to 65535".into());
        }
        let is_same = |other: &PublishPort| {
            other.host_port.is_some() && (other.host_port, other.protocol) == (port.host_port, port.protocol)
        };
        if asked[..index].iter().any(is_same) {
            return bad(format!(
                "port {}/{} of the node is to lead to two places",
                port.host_port.unwrap_or(0),
                port.protocol
            ));
        }
    }
    let port = |port: &PublishPort| Port {
        host_port: port.host_port.unwrap_or(0),
        chosen: port.host_port.is_none(),
        port: port.port,
        protocol: port.protocol,
    };
    Ok(asked.iter().map(port).collect())
}

/// Memory as people read it.
pub fn mib(kib: u64) -> String {
    if kib.is_multiple_of(1024) {
        format!("{} MiB", kib >> 10)
    } else {
        format!("{:.1} MiB", kib as f64 / 1024.0)
    }
}

/// Checks a scheduler weight.
///
/// # Errors
/// [`Error::BadRequest`] for 0, which the scheduler does not take.
pub fn check_weight(weight: u16) -> Result<()> {
    if weight == 0 {
        return Err(Error::BadRequest("weight is 0, it can be 1 to 65535".into()));
    }
    Ok(())
}

/// A name for a new capsule: the one that was asked for, checked, or a made-up one.
///
/// # Errors
/// [`Error::BadRequest`] for a name that cannot be.
pub fn name(asked: Option<&str>, taken: impl Fn(&str) -> bool) -> Result<String> {
    if let Some(name) = asked {
        return names::check(name).map(|()| name.to_owned()).map_err(Error::BadRequest);
    }
    let first = (0..20).map(|_| names::random()).find(|name| !taken(name));
    Ok(first.unwrap_or_else(|| {
        let base = names::random();
        (2u32..).map(|n| format!("{base}-{n}")).find(|name| !taken(name)).expect("there are enough numbers")
    }))
}
