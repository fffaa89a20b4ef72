//! Who this node is.
//!
//! A node that is cloned from a template wakes up as one of many that are all the same:
//! whoever cloned it gives it a name, a token and entropy of its own, and tells it the time.
//! That happens once after each boot.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;
use fcap_api::{Adopt, Lan};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::net::linux;
use crate::store::Store;

/// Where the identity is kept in the state directory.
const FILE: &str = "node.json";
/// The card that leads to other nodes.
const LAN_CARD: &str = "eth1";
/// Least and most length of a token.
const TOKEN_LEN: std::ops::RangeInclusive<usize> = 16..=256;

/// Name, flavor and token of this node.
pub struct Identity {
    /// Whether the machine is ours to change: its name, its clock.
    real: bool,
    token_file: Option<PathBuf>,
    inner: Mutex<Inner>,
}

struct Inner {
    name: String,
    flavor: Option<String>,
    adopted: bool,
    /// SHA-256 of the token; comparing digests tells nothing about the token by its time.
    token: Option<[u8; 32]>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    name: String,
    flavor: Option<String>,
}

impl Identity {
    /// Reads what is kept of the node's identity. A node that is not `real` changes nothing of
    /// the machine when it is adopted.
    ///
    /// # Errors
    /// When files cannot be read, or the token is none.
    pub fn load(store: &Store, token_file: Option<PathBuf>, real: bool) -> anyhow::Result<Self> {
        let token = token_file.as_deref().map(read_token).transpose()?;
        let kept: Option<Kept> = store.read_own(FILE).context("failed to read the node's identity")?;
        let kept = kept.filter(|kept| kept.boot_id == boot_id());
        let member = crate::cluster::name(store)?;
        let inner = match kept {
            Some(kept) => Inner { name: kept.name, flavor: kept.flavor, adopted: true, token },
            None => {
                let name = nix::unistd::gethostname()?.into_string().unwrap_or_default();
                let name = if name.is_empty() { "node".into() } else { name };
                let name = member.unwrap_or(name);
                Inner { name, flavor: None, adopted: false, token }
            }
        };
        Ok(Self { real, token_file, inner: Mutex::new(inner) })
    }

    /// The node's name.
    pub fn name(&self) -> String {
        self.inner.lock().unwrap().name.clone()
    }

    /// Its flavor, if somebody said.
    pub fn flavor(&self) -> Option<String> {
        self.inner.lock().unwrap().flavor.clone()
    }

    /// Whether this is the node's token.
    pub fn accepts(&self, token: &[u8]) -> bool {
        self.inner.lock().unwrap().token == Some(Sha256::digest(token).into())
    }

    /// Takes on an identity.
    ///
    /// # Errors
    /// When it has one already, the request is bad, or the system refuses.
    pub fn adopt(&self, store: &Store, adopt: &Adopt) -> Result<()> {
        let bad = |message: &str| Err(Error::BadRequest(message.to_owned()));
        crate::names::check(&adopt.name).map_err(Error::BadRequest)?;
        if !TOKEN_LEN.contains(&adopt.token.len()) || !adopt.token.bytes().all(|b| b.is_ascii_graphic()) {
            return bad("token must be 16 to 256 printable characters without spaces");
        }
        let Some(seed) = decode_seed(&adopt.seed) else { return bad("seed must be 64 hex digits") };
        if adopt.flavor.as_ref().is_some_and(|flavor| crate::names::check(flavor).is_err()) {
            return bad("flavor must be a name");
        }
        let lan = match &adopt.lan {
            Some(lan) => Some((check_lan(lan)?, lan)),
            None => None,
        };
        let mut inner = self.inner.lock().unwrap();
        if inner.adopted {
            return Err(Error::WrongState(format!("this node has been adopted already, as {}", inner.name)));
        }
        if self.real {
            // The seed first: ids and seeds that are made from now on are this node's alone.
            crate::xen::sys::reseed(&seed).map_err(Error::disk("mix in the seed"))?;
            nix::unistd::sethostname(&adopt.name)
                .map_err(|e| Error::disk("set the host's name")(e.into()))?;
            let seconds = i64::try_from(adopt.wall_time_ns / 1_000_000_000).unwrap_or(i64::MAX);
            let time = TimeSpec::new(seconds, (adopt.wall_time_ns % 1_000_000_000) as i64);
            clock_settime(ClockId::CLOCK_REALTIME, time)
                .map_err(|e| Error::disk("set the clock")(e.into()))?;
            if let Some((mac, lan)) = lan {
                linux::set_up_card(LAN_CARD, mac, lan.mtu.into(), lan.address, lan.prefix)
                    .map_err(Error::disk(format!("set up {LAN_CARD}, the card between nodes")))?;
            }
        }
        if let Some(path) = &self.token_file {
            write_token(path, &adopt.token).map_err(Error::disk("keep the token"))?;
        }
        let kept = Kept { boot_id: boot_id(), name: adopt.name.clone(), flavor: adopt.flavor.clone() };
        store.write_own(FILE, &kept)?;
        inner.name.clone_from(&adopt.name);
        inner.flavor.clone_from(&adopt.flavor);
        inner.token = Some(Sha256::digest(&adopt.token).into());
        inner.adopted = true;
        Ok(())
    }
}

/// The hardware address of the card between nodes, if all that is said of the card can be.
fn check_lan(lan: &Lan) -> Result<[u8; 6]> {
    let Some(mac) = parse_mac(&lan.mac) else {
        return Err(Error::BadRequest("lan.mac must be a hardware address, as 52:54:00:63:00:01".into()));
    };
    let usable = !(lan.address.is_unspecified() || lan.address.is_multicast() || lan.address.is_loopback());
    if !usable || !(8..=30).contains(&lan.prefix) || !(1280..=9216).contains(&lan.mtu) {
        return Err(Error::BadRequest(
            "lan needs an address of the node's own, a prefix of 8 to 30 bits, and an mtu of 1280 to 9216"
                .into(),
        ));
    }
    Ok(mac)
}

/// The address of one card; the lowest bit of the first byte marks groups.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut parts = text.split(':');
    let mut mac = [0; 6];
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = part
            .bytes()
            .all(|digit| digit.is_ascii_hexdigit())
            .then(|| u8::from_str_radix(part, 16))?
            .ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}

fn read_token(path: &Path) -> anyhow::Result<[u8; 32]> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("failed to read the token in {}", path.display()))?;
    let token = text.trim();
    anyhow::ensure!(
        TOKEN_LEN.contains(&token.len()),
        "the token in {} has {} characters, it must have 16 to 256",
        path.display(),
        token.len()
    );
    Ok(Sha256::digest(token).into())
}

fn write_token(path: &Path, token: &str) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension("new");
    let _ = std::fs::remove_file(&temporary);
    let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
    writeln!(file, "{token}")?;
    std::fs::rename(temporary, path)
}

fn decode_seed(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut seed = [0; 32];
    for (byte, pair) in seed.iter_mut().zip(digits.chunks(2)) {
        let digit = |d: u8| char::from(d).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(seed)
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
