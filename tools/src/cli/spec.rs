//! What `fcap run` and `fcap create` take: an image and how to run it.

use super::network::{bring, parse_name};
use super::port::parse_publish;
use crate::client::{Client, ClientError};
use crate::fleet::Fleet;
use crate::human::parse_memory_kib;
use crate::image::resolve::{Resolved, resolve};
use crate::image::{ImageError, LocalImage};
use crate::placement;
use crate::target::Globals;
use anyhow::{Context as _, bail};
use fcap_api::{CreateCapsule, DEFAULT_NETWORK, ErrorCode, PublishPort, RestartPolicy};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Exit code of fcap's own failures, as docker uses it.
const FAILED: u8 = 125;
/// Exit code for images that cannot be run.
const CANNOT_RUN: u8 = 126;
/// Exit code for images that are not there.
const NOT_FOUND: u8 = 127;

/// What `--network` takes for having no network.
const NO_NETWORK: &str = "none";

/// Largest file of environment variables.
const MAX_ENV_FILE: u64 = 1 << 20;

/// Options of a new capsule.
#[derive(Debug, clap::Args)]
pub(super) struct SpecArgs {
    /// Name of the capsule; one is made up otherwise
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Memory, such as 64m or 1g [default: 16m]
    #[arg(short, long, value_name = "SIZE", value_parser = parse_memory_kib, help_heading = "Resources")]
    memory: Option<u64>,
    /// Memory that `fcap update -m` can give it while it runs [default: its memory]
    #[arg(long, value_name = "SIZE", value_parser = parse_memory_kib, help_heading = "Resources")]
    memory_max: Option<u64>,
    /// Virtual processors [default: 1]
    #[arg(long, value_name = "N", help_heading = "Resources")]
    vcpus: Option<u32>,
    /// Most processor time, in percent of one processor; 0 is no limit
    #[arg(long, value_name = "PERCENT", value_parser = parse_cap, default_value = "0", help_heading = "Resources")]
    cpu_cap: u16,
    /// Share of processor time under contention [default: 256]
    #[arg(long, value_name = "WEIGHT", help_heading = "Resources")]
    weight: Option<u16>,
    /// Environment variable; KEY alone takes the value from here
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    env: Vec<String>,
    /// File of environment variables, one KEY=VALUE a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Label, for filters
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// What to do when it ends: no, on-failure[:N], always, unless-stopped
    #[arg(long, value_name = "POLICY", value_parser = parse_restart, default_value = "no")]
    restart: RestartPolicy,
    /// Remove it with its logs when it ends
    #[arg(long)]
    rm: bool,
    /// Node to run it on; the one with most free memory otherwise
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Give it standard input; it is at its end from the start otherwise
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Port of the node that leads to a port of the capsule; a free one when HOST is left out
    #[arg(short, long, value_name = "[HOST:]PORT[/udp]", value_parser = parse_publish, help_heading = "Network")]
    publish: Vec<PublishPort>,
    /// Network to be in, or none [default: "default" for applications that use the network]
    #[arg(long, value_name = "NAME", value_parser = parse_name, help_heading = "Network")]
    network: Vec<String>,
    /// Most it may send in a second, such as 500k, 10m or 1g bits
    #[arg(long, value_name = "BITS", value_parser = parse_rate, help_heading = "Network")]
    net_rate: Option<u32>,
    /// Initial file system of a Linux kernel
    #[arg(long, value_name = "FILE", help_heading = "Other kernels")]
    initrd: Option<PathBuf>,
    /// Command line of a Linux kernel
    #[arg(long, value_name = "TEXT", help_heading = "Other kernels")]
    append: Option<String>,
    /// Image and its arguments: a path, a name that `fcap build` made, or sha256:DIGEST
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "IMAGE [ARG]")]
    image: Vec<String>,
}

/// What a capsule is made of, read from the user's files.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) spec: CreateCapsule,
    images: Vec<LocalImage>,
    node: Option<String>,
}

impl SpecArgs {
    /// Reads the files. Nobody is spoken to yet.
    pub(super) fn prepare(self) -> anyhow::Result<Prepared> {
        let mut words = self.image.into_iter();
        let image = words.next().context("no image was named")?;
        let mut spec = CreateCapsule {
            name: self.name,
            args: words.collect(),
            env: environment(&self.env_file, &self.env)?,
            memory_kib: self.memory,
            max_memory_kib: self.memory_max,
            vcpus: self.vcpus,
            cpu_cap: self.cpu_cap,
            weight: self.weight,
            labels: labels(&self.label)?,
            restart: self.restart,
            remove: self.rm,
            stdin: self.interactive,
            append: self.append,
            networks: networks(self.network)?,
            ports: self.publish,
            net_rate_kbit: self.net_rate,
            ..CreateCapsule::default()
        };
        if spec.remove && spec.restart != RestartPolicy::No {
            bail!("--rm and --restart exclude each other: what is removed cannot be started again");
        }
        let here = std::env::current_dir().context("the working directory")?;
        let path = std::env::var("FCAP_PATH").ok();
        let mut images = Vec::new();
        match resolve(&image, &here, path.as_deref())? {
            Resolved::Digest(digest) => {
                spec.image_name = Some(crate::output::short_id(&digest, false));
                spec.image = digest;
            }
            Resolved::File(file) => {
                let image = LocalImage::read(&file)?;
                spec.image_name = Some(image.name.clone());
                spec.image.clone_from(&image.digest);
                images.push(image);
            }
        }
        if let Some(path) = &self.initrd {
            let initrd = LocalImage::read_data(path)?;
            spec.initrd = Some(initrd.digest.clone());
            images.push(initrd);
        }
        Ok(Prepared { spec, images, node: self.node })
    }
}

impl Prepared {
    /// Chooses a node and completes what is left open until then.
    pub(super) async fn place<'a>(
        &mut self,
        globals: &Globals,
        fleet: &'a Fleet,
    ) -> anyhow::Result<&'a Client> {
        let controller = globals.local_controller(fleet).await?;
        let wanted = self.node.as_deref();
        let node = placement::choose(fleet, &self.spec, wanted, controller.as_ref()).await?;
        if let Some(name) = &self.spec.name {
            fleet.check_name(name, node).await?;
        }
        let networks = self.spec.networks.iter().flatten().cloned();
        let networks: Vec<String> = networks.filter(|name| name != DEFAULT_NETWORK).collect();
        if !networks.is_empty() && fleet.nodes().len() > 1 {
            bring(fleet, node, &networks).await?;
        }
        if self.spec.image.len() < "sha256:".len() + 64 {
            self.spec.image = complete(node, &self.spec.image).await?;
        }
        Ok(node)
    }

    /// Makes a request with the spec. Images are sent only when the node says that it lacks one:
    /// usually it does not, and nothing is asked twice.
    pub(super) async fn submit<T>(
        &self,
        node: &Client,
        request: impl AsyncFn(&CreateCapsule) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        match request(&self.spec).await {
            Err(error) if error.code() == Some(ErrorCode::NoSuchImage) && !self.images.is_empty() => {}
            outcome => return outcome,
        }
        for image in &self.images {
            image.ensure_on(node).await?;
        }
        request(&self.spec).await
    }
}

/// The one image of a node whose digest starts so.
async fn complete(node: &Client, start: &str) -> anyhow::Result<String> {
    let mut fits: Vec<String> = node
        .images()
        .await?
        .into_iter()
        .map(|image| image.digest)
        .filter(|digest| digest.starts_with(start))
        .collect();
    match (fits.pop(), fits.is_empty()) {
        (Some(digest), true) => Ok(digest),
        (Some(_), false) => bail!("{start} fits several images; `fcap image ls --no-trunc` shows them"),
        (None, _) => {
            let looked = format!("node {}", node.address());
            Err(ImageError::NotFound { name: start.to_owned(), looked }.into())
        }
    }
}

/// The exit code for what kept a capsule from running.
pub(super) fn failure_code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<ImageError>() {
        return if matches!(error, ImageError::NotFound { .. }) { NOT_FOUND } else { CANNOT_RUN };
    }
    match error.downcast_ref::<ClientError>().and_then(ClientError::code) {
        Some(ErrorCode::NoSuchImage) => NOT_FOUND,
        Some(ErrorCode::BadImage) => CANNOT_RUN,
        _ => FAILED,
    }
}

fn environment(files: &[PathBuf], pairs: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut env = BTreeMap::new();
    for file in files {
        let text = read_env_file(file).with_context(|| format!("environment file {}", file.display()))?;
        for line in
            text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            variable(line, &mut env)?;
        }
    }
    for pair in pairs {
        variable(pair, &mut env)?;
    }
    Ok(env)
}

fn read_env_file(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_ENV_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// `KEY=VALUE`, or `KEY` with the value it has here; nothing, when it has none.
fn variable(text: &str, env: &mut BTreeMap<String, String>) -> anyhow::Result<()> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, if text.is_empty() { None } else { std::env::var(text).ok() }),
    };
    if key.is_empty() || key.contains(char::is_whitespace) || key.contains('\0') {
        bail!("{text:?} is no environment variable: write KEY=VALUE");
    }
    env.extend(value.map(|value| (key.to_owned(), value)));
    Ok(())
}

fn labels(pairs: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    for pair in pairs {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if key.is_empty() {
            bail!("{pair:?} is no label: write KEY=VALUE");
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// Networks by name, or the word for having none.
fn networks(names: Vec<String>) -> anyhow::Result<Option<Vec<String>>> {
    match &names[..] {
        [] => Ok(None),
        [none] if none == NO_NETWORK => Ok(Some(Vec::new())),
        _ if names.iter().any(|name| name == NO_NETWORK) => {
            bail!("--network {NO_NETWORK} stands alone: it is for capsules without any network")
        }
        _ => Ok(Some(names)),
    }
}

/// Bits a second, in kilobits rounded up: `500k`, `10m`, `1g`, or plain bits.
fn parse_rate(text: &str) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let scale = match unit.trim_end_matches("bit") {
        "" => 1,
        "k" => 1_000,
        "m" => 1_000_000,
        "g" => 1_000_000_000,
        _ => 0u64,
    };
    let bits = number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)).unwrap_or(0);
    u32::try_from(bits.div_ceil(1000))
        .ok()
        .filter(|&rate| rate > 0)
        .ok_or_else(|| "not a rate: write 500k, 10m or 1g, in bits a second".to_owned())
}

/// `50` or `50%`.
pub(super) fn parse_cap(text: &str) -> Result<u16, String> {
    let number = text.strip_suffix('%').unwrap_or(text);
    number.parse().map_err(|_| "not a percentage of one processor: write 50 for half of one".to_owned())
}

/// Docker's words for restart policies.
pub(super) fn parse_restart(text: &str) -> Result<RestartPolicy, String> {
    match text.split_once(':').map_or((text, None), |(word, number)| (word, Some(number))) {
        ("no", None) => Ok(RestartPolicy::No),
        ("always", None) => Ok(RestartPolicy::Always),
        ("unless-stopped", None) => Ok(RestartPolicy::UnlessStopped),
        ("on-failure", None) => Ok(RestartPolicy::OnFailure { max_retries: None }),
        ("on-failure", Some(number)) => number
            .parse()
            .map(|number| RestartPolicy::OnFailure { max_retries: Some(number) })
            .map_err(|_| "the number of restarts is not one: write on-failure:3".to_owned()),
        _ => Err("not a policy: write no, on-failure, on-failure:3, always or unless-stopped".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_and_caps_are_read() {
        assert_eq!(parse_restart("no"), Ok(RestartPolicy::No));
        assert_eq!(parse_restart("on-failure:3"), Ok(RestartPolicy::OnFailure { max_retries: Some(3) }));
        for bad in ["", "on-failure:", "on-failure:x", "always:1", "sometimes"] {
            assert!(parse_restart(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_cap("50%"), Ok(50));
        assert_eq!(parse_cap("0"), Ok(0));
        for bad in ["", "%", "-1", "70000", "half"] {
            assert!(parse_cap(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_and_rates_are_read() {
        let names = |list: &[&str]| networks(list.iter().map(ToString::to_string).collect());
        assert_eq!(names(&[]).unwrap(), None);
        assert_eq!(names(&["none"]).unwrap(), Some(Vec::new()));
        assert_eq!(names(&["a", "b"]).unwrap().unwrap().len(), 2);
        assert!(names(&["a", "none"]).is_err());
        for (text, kbit) in [("500k", 500), ("10m", 10_000), ("1G", 1_000_000), ("1500", 2), ("64kbit", 64)] {
            assert_eq!(parse_rate(text), Ok(kbit), "{text}");
        }
        for bad in ["", "0", "k", "1.5m", "-1", "10t", "99999g", "99999999999999999999"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn later_variables_win_and_files_may_have_comments() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "# a comment\n\nA=1\nB=two words = fine\n").unwrap();
        let env = environment(&[file], &["A=2".into(), "PATH".into(), "NOT_SET_HERE".into()]).unwrap();
        assert_eq!(env["A"], "2");
        assert_eq!(env["B"], "two words = fine");
        assert_eq!(env["PATH"], std::env::var("PATH").unwrap());
        assert!(!env.contains_key("NOT_SET_HERE"));
        for bad in ["", "=x", "a b=c"] {
            assert!(environment(&[], &[bad.into()]).is_err(), "{bad}");
        }
    }
}
