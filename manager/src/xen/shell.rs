//! Domains without memory whose network interface waits already.
//!
//! Of what the start of a networked capsule takes, most is not about this capsule: xenstored
//! gets to know a domain, netback makes a device, and dom0's kernel tells everybody of it. All of
//! that needs a domain's number, one page that stays the ring to xenstored, and a grant of it. So
//! it is done beforehand; [`build`](super::builder::build) puts the rest of the memory into the
//! domain, and [`Shell::name`] says whose it has become.

use xen_proto::frame::PAGE_SIZE;

use super::{
    builder::{self, Host, Registration, STORE_GRANT, failed, home, store_failed},
    vif::{self, Change},
};
use crate::toolstack::{Result, Vif};

/// A domain that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shell {
    /// Its number.
    pub domid: u32,
    /// The only frame that it has: its xenstore ring.
    pub store_mfn: u64,
}

impl Shell {
    /// Number of the interface that it has.
    pub const HANDLE: u32 = 0;
    /// What it is called until it is somebody's.
    const NAME: &str = "fcap-spare";
    /// Of its interface until then; nobody's, because it ends with no address of a network.
    const MAC: [u8; 6] = [0x0a, 0xfc, 0, 0, 0, 0];

    /// Makes one with this handle, and waits for its interface.
    ///
    /// # Errors
    /// If Xen, xenstored or netback fails. Nothing is left behind then.
    pub fn build(host: &Host, handle: [u8; 16]) -> Result<Self> {
        let domid = builder::create_empty(host, handle, 1, 1, true)?;
        Self::furnish(host, domid).inspect_err(|_| {
            if let Err(error) = builder::remove(host, domid) {
                tracing::error!(domid, %error, "a domain held ready stays behind");
            }
        })
    }

    fn furnish(host: &Host, domid: u32) -> Result<Self> {
        let store_mfn = builder::populate(&host.hypercalls, domid, 0, 1)?[0];
        let grants = host.hypercalls.grant_frame(domid);
        let grants = grants.map_err(|error| failed("asking Xen for a table of grants", error))?;
        let mapping = host.foreign.map(domid, &[store_mfn, grants]);
        let mapping = mapping.map_err(|error| failed("mapping of the domain's memory", error))?;
        mapping.zero(0, PAGE_SIZE);
        builder::grant_to_dom0(&mapping, PAGE_SIZE, STORE_GRANT, store_mfn)?;
        drop(mapping);
        let vif = Vif { handle: Self::HANDLE, mac: Self::MAC, rate_kbit: None };
        let registration =
            Registration { name: Self::NAME.into(), store_mfn, machine: None, vifs: vec![vif] };
        builder::register(host, domid, &registration)?;
        vif::wait_for_device(domid, Self::HANDLE)?;
        Ok(Self { domid, store_mfn })
    }

    /// Gives one that was built in its name and its interfaces, of which it has the first.
    ///
    /// # Errors
    /// If xenstored refuses.
    pub fn name(host: &Host, domid: u32, name: &str, vifs: &[Vif]) -> Result<()> {
        let (standing, others): (Vec<&Vif>, Vec<&Vif>) =
            vifs.iter().partition(|vif| vif.handle == Self::HANDLE);
        let mut changes = vec![Change::Write(format!("{}/name", home(domid)), name.into())];
        changes.extend(standing.into_iter().flat_map(|vif| vif::changes(domid, vif)));
        let requests: Vec<_> = changes.iter().map(Change::request).collect();
        // No one of them needs another, and nobody looks at them before the guest connects.
        host.store.all(&requests).map_err(store_failed)?;
        if others.is_empty() {
            return Ok(());
        }
        let others: Vec<Vif> = others.into_iter().cloned().collect();
        let nodes = vif::nodes(domid, &others);
        let requests: Vec<_> = nodes.iter().map(Change::request).collect();
        host.store.transaction(&requests, &[]).map_err(store_failed)
    }
}
