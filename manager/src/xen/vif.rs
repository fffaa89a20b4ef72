//! Network interfaces of domains: what xenstore says of them, and how they go away.
//!
//! netback, in dom0's kernel, finds the nodes of a back end, makes a device for it, and connects
//! it to the guest once both say that they are ready (`xen/include/public/io/netif.h`,
//! `drivers/net/xen-netback/xenbus.c`). No script is run: whoever looks after dom0's network
//! sees the device come ([`crate::net::linux`]).
//!
//! The guest owns the state of its front end and may add keys beside it; all else it can only
//! read. It is not asked when an interface goes: without its nodes netback lets go of the
//! guest's memory by itself, whatever the guest does.

use std::{
    io,
    time::{Duration, Instant},
};

use xen_proto::{
    DomId,
    xenstore::{Access, Error as Refusal, Perm, Request},
};

use super::{
    builder::{Host, failed, home, store_failed},
    xenstore,
};
use crate::{
    net::linux::{Devices, port_name},
    toolstack::{Result, Vif},
};

/// Back ends of network interfaces, by domain.
const BACKENDS: &str = "/local/domain/0/backend/vif";
/// Where netback writes why it has given up an interface, by domain.
const ERRORS: &str = "/local/domain/0/error/backend/vif";
/// First state of both ends; a back end has another one once netback has seen it.
const INITIALISING: &str = "1";
/// Interval for which netback lets a guest send a part of what it may.
const RATE_INTERVAL_US: u64 = 50_000;
/// How long netback may take to make a device or to remove one: usually some milliseconds, but
/// the node may have hardly any processor time.
const PATIENCE: Duration = Duration::from_secs(60);

fn backends(domid: u32) -> String {
    format!("{BACKENDS}/{domid}")
}

fn backend(domid: u32, handle: u32) -> String {
    format!("{BACKENDS}/{domid}/{handle}")
}

fn frontend(domid: u32, handle: u32) -> String {
    format!("{}/device/vif/{handle}", home(domid))
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A change of xenstore.
#[derive(Debug)]
pub enum Change {
    /// Writes a value.
    Write(String, String),
    /// Sets permissions.
    SetPerms(String, [Perm; 2]),
}

impl Change {
    /// As a request.
    pub fn request(&self) -> Request<'_> {
        match self {
            Self::Write(path, value) => Request::Write { path, value: value.as_bytes() },
            Self::SetPerms(path, perms) => Request::SetPerms { path, perms },
        }
    }
}

/// What makes the interfaces of a domain, in this order and in one transaction.
///
/// A node that is written inherits the permissions of its parent, so those of a directory come
/// between what the guest may not change and what it may.
pub fn nodes(domid: u32, vifs: &[Vif]) -> Vec<Change> {
    let guest = DomId(domid as u16);
    let perm = |access, domid| Perm { access, domid };
    let guests = [perm(Access::None, guest), perm(Access::Read, DomId::DOM0)];
    let ours = [perm(Access::None, DomId::DOM0), perm(Access::Read, guest)];
    let mut changes = Vec::new();
    for vif in vifs {
        let handle = vif.handle;
        let (front, back) = (frontend(domid, handle), backend(domid, handle));
        let mac = mac_text(vif.mac);
        let front_node = |node: &str, value: &str| Change::Write(format!("{front}/{node}"), value.into());
        let back_node = |node: &str, value: &str| Change::Write(format!("{back}/{node}"), value.into());
        changes.extend([
            // The parents are readable for the guest, and so are these.
            front_node("backend", &back),
            front_node("backend-id", "0"),
            front_node("handle", &handle.to_string()),
            front_node("mac", &mac),
            Change::SetPerms(front.clone(), guests),
            front_node("state", INITIALISING),
            back_node("frontend", &front),
            Change::SetPerms(back.clone(), ours),
            back_node("frontend-id", &domid.to_string()),
            back_node("handle", &handle.to_string()),
            back_node("mac", &mac),
            back_node("online", "1"),
            // It must be there.
            back_node("script", ""),
            // The device is a port of its bridge before a guest can have connected.
            back_node("hotplug-status", "connected"),
        ]);
        changes.extend(vif.rate_kbit.map(|kbit| back_node("rate", &rate(kbit))));
        changes.push(back_node("state", INITIALISING));
    }
    changes
}

/// What makes of an interface that was made for nobody, and that no guest has connected to, this
/// one. netback reads these nodes when the guest connects.
pub fn changes(domid: u32, vif: &Vif) -> Vec<Change> {
    let (front, back) = (frontend(domid, vif.handle), backend(domid, vif.handle));
    let mac = mac_text(vif.mac);
    let mut changes =
        vec![Change::Write(format!("{front}/mac"), mac.clone()), Change::Write(format!("{back}/mac"), mac)];
    changes.extend(vif.rate_kbit.map(|kbit| Change::Write(format!("{back}/rate"), rate(kbit))));
    changes
}

/// The rate as netback reads it: bytes for each interval, and the interval in microseconds.
fn rate(kbit: u32) -> String {
    let bytes = u64::from(kbit) * 1000 / 8 * RATE_INTERVAL_US / 1_000_000;
    // It takes 0 for no limit.
    format!("{},{RATE_INTERVAL_US}", bytes.max(1))
}

/// Removes all interfaces of a domain, which may be in any state, or gone. When this returns,
/// netback has nothing of the domain any more.
///
/// # Errors
/// If xenstored or netlink fails.
pub fn remove(host: &Host, domid: u32) -> Result<()> {
    let backends = backends(domid);
    let handles = children(host, &backends)?;
    if handles.is_empty() {
        return Ok(());
    }
    let listen = |error| failed("watching of network devices", error);
    let mut devices = Devices::listen().map_err(listen)?;
    let until = Instant::now() + PATIENCE;
    for handle in &handles {
        // As long as netback has not made the device it writes to the back end's nodes, and
        // would bring them back.
        let name = port_name(domid, *handle);
        if state(host, &format!("{backends}/{handle}"))?.as_deref() == Some(INITIALISING)
            && !devices.wait_for(&name, true, until).map_err(listen)?
        {
            tracing::warn!(name, "netback does not make a device");
        }
    }
    let front = format!("{}/device/vif", home(domid));
    for path in [&front, &backends] {
        ignore_missing(host.store.request(Request::Rm(path)))?;
    }
    for handle in handles {
        let name = port_name(domid, handle);
        if !devices.wait_for(&name, false, until).map_err(listen)? {
            tracing::error!(name, "netback does not remove its device");
        }
    }
    // Should it have written something after all: why it gave up, or what it did not see removed.
    for path in [&backends, &format!("{ERRORS}/{domid}")] {
        ignore_missing(host.store.request(Request::Rm(path)))?;
    }
    Ok(())
}

/// Waits until netback has made the device of an interface whose nodes are written.
///
/// # Errors
/// If netlink fails, or netback does not make it.
pub fn wait_for_device(domid: u32, handle: u32) -> Result<()> {
    let name = port_name(domid, handle);
    let call = || format!("making of the network device {name} by netback");
    let listening = Devices::listen();
    let mut devices = listening.map_err(|error| failed("watching of network devices", error))?;
    match devices.wait_for(&name, true, Instant::now() + PATIENCE) {
        Ok(true) => Ok(()),
        Ok(false) => Err(failed(call(), io::ErrorKind::TimedOut.into())),
        Err(error) => Err(failed(call(), error)),
    }
}

/// Domains that have, or had, interfaces.
///
/// # Errors
/// If xenstored fails.
pub fn domains(host: &Host) -> Result<Vec<u32>> {
    children(host, BACKENDS)
}

/// Children of a node whose names are numbers.
pub(super) fn children(host: &Host, path: &str) -> Result<Vec<u32>> {
    match host.store.request(Request::Directory(path)) {
        Ok(names) => {
            let names = names.split(|&byte| byte == 0).filter_map(|name| std::str::from_utf8(name).ok());
            Ok(names.filter_map(|name| name.parse().ok()).collect())
        }
        Err(xenstore::Error::Refused { source: Refusal::NotFound, .. }) => Ok(Vec::new()),
        Err(error) => Err(store_failed(error)),
    }
}

fn state(host: &Host, back: &str) -> Result<Option<String>> {
    match host.store.request(Request::Read(&format!("{back}/state"))) {
        Ok(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
        Err(xenstore::Error::Refused { source: Refusal::NotFound, .. }) => Ok(None),
        Err(error) => Err(store_failed(error)),
    }
}

fn ignore_missing(reply: std::result::Result<Vec<u8>, xenstore::Error>) -> Result<()> {
    match reply {
        Ok(_) | Err(xenstore::Error::Refused { source: Refusal::NotFound, .. }) => Ok(()),
        Err(error) => Err(store_failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(changes: &[Change], path: &str) -> Option<String> {
        changes.iter().find_map(|change| match change {
            Change::Write(other, value) if other == path => Some(value.clone()),
            _ => None,
        })
    }

    #[test]
    fn both_ends_name_each_other() {
        let vif = Vif { handle: 1, mac: [0x0a, 0xfc, 10, 88, 1, 2], rate_kbit: Some(8000) };
        let changes = nodes(7, &[vif]);
        let (front, back) = ("/local/domain/7/device/vif/1", "/local/domain/0/backend/vif/7/1");
        assert_eq!(written(&changes, &format!("{front}/backend")).as_deref(), Some(back));
        assert_eq!(written(&changes, &format!("{back}/frontend")).as_deref(), Some(front));
        assert_eq!(written(&changes, &format!("{front}/mac")).as_deref(), Some("0a:fc:0a:58:01:02"));
        // 8 Mbit/s are 1,000,000 bytes a second.
        assert_eq!(written(&changes, &format!("{back}/rate")).as_deref(), Some("50000,50000"));
    }

    #[test]
    fn a_guest_can_change_its_state_and_nothing_that_was_written_before() {
        let vif = Vif { handle: 0, mac: [2; 6], rate_kbit: None };
        let changes = nodes(7, &[vif]);
        let at = |path: &str, wants_perms: bool| {
            changes.iter().position(|change| match change {
                Change::Write(other, _) => !wants_perms && other == path,
                Change::SetPerms(other, _) => wants_perms && other == path,
            })
        };
        let front = "/local/domain/7/device/vif/0";
        let open = at(front, true).unwrap();
        for node in ["backend", "backend-id", "mac", "handle"] {
            assert!(at(&format!("{front}/{node}"), false).unwrap() < open, "{node}");
        }
        assert!(at(&format!("{front}/state"), false).unwrap() > open);
        assert!(written(&changes, "/local/domain/0/backend/vif/7/0/rate").is_none());
    }

    #[test]
    fn an_interface_that_was_made_for_nobody_becomes_any() {
        let blank = Vif { handle: 0, mac: [2; 6], rate_kbit: None };
        let vif = Vif { mac: [0x0a, 0xfc, 10, 88, 1, 2], rate_kbit: Some(8000), ..blank.clone() };
        let mut standing = std::collections::BTreeMap::new();
        for change in nodes(7, &[blank]).into_iter().chain(changes(7, &vif)) {
            if let Change::Write(path, value) = change {
                standing.insert(path, value);
            }
        }
        for change in nodes(7, &[vif]) {
            if let Change::Write(path, value) = change {
                assert_eq!(standing.remove(&path), Some(value), "{path}");
            }
        }
        assert!(standing.is_empty(), "{standing:?}");
    }

    #[test]
    fn the_slowest_rate_is_not_none() {
        assert_eq!(rate(0), "1,50000");
        assert_eq!(rate(1), "6,50000");
        assert_eq!(rate(u32::MAX), "26843545593,50000");
    }
}
