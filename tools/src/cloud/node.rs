//! One node of a local cloud: from template to identity, and its end.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fcap_api::{Adopt, Lan as Card};
use fcap_tls::{Authority, Subject};
use serde_json::json;

use super::lan::{self, Lan};
use super::qemu::{Begin, Machine, Running, name_of};
use super::template::Template;
use super::{AtPath, CloudError, Flavor, Node, Place, Result, make_private, process, random_hex};

/// A clone answers within a second; a busy computer may need many times that.
const RESUME_LIMIT: Duration = Duration::from_secs(60);

/// What is written of the node in `folder`, if it has come up.
pub(super) fn read(folder: &Path) -> Option<Node> {
    serde_json::from_slice(&fs::read(folder.join("node.json")).ok()?).ok()
}

/// Ends the machine of `folder`, if it runs, and removes the folder.
pub(super) fn remove(folder: &Path) -> Result<()> {
    process::end_all(folder);
    if folder.exists() {
        fs::remove_dir_all(folder).at("remove", folder)?;
    }
    Ok(())
}

/// Clones the template into the place and gives the clone its identity, with a certificate of the
/// cloud's authority. A `tied` one ends with the calling thread; the `tag` says who wanted it.
pub(super) fn start(
    place: &Place,
    template: &Template,
    flavor: &Flavor,
    lan: &Lan,
    authority: &Authority,
    tied: bool,
    tag: Option<&str>,
) -> Result<Node> {
    let Place { index, folder } = place;
    make_private(folder)?;
    let machine = Machine {
        folder,
        flavor,
        accelerator: template.accelerator,
        memory: &template.memory(),
        shell: template.variant.has_shell(),
        tied,
        begin: Begin::Clone { lan },
    };
    let mut running = machine.start()?;
    running.prepare_migration()?;
    running.migrate("migrate-incoming", template.devices())?;
    running.execute("cont", json!({}))?;
    let node = Node {
        name: name_of(folder),
        index: *index,
        flavor: flavor.name.into(),
        port: running.port,
        shell_port: running.shell_port,
        token: random_hex(32)?,
        pid: running.child.id(),
        accelerator: template.accelerator,
        variant: template.variant,
        started_ms: u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX),
        tag: tag.map(str::to_owned),
        is_member: true,
    };
    adopt(&node, &template.token()?, authority, &mut running)?;
    // Complete under its own name, or not there at all.
    let (half, whole) = (folder.join("node.json.half"), folder.join("node.json"));
    let text = serde_json::to_vec_pretty(&node).expect("a node is serialized");
    fs::write(&half, text).at("write", &half)?;
    fs::rename(&half, &whole).at("write", &whole)?;
    Ok(node)
}

/// The first request to a clone, which its daemon answers as soon as it runs again.
fn adopt(node: &Node, token: &str, authority: &Authority, running: &mut Running) -> Result<()> {
    let member = authority.identity(&Subject::node(&node.name)?, fcap_tls::VALIDITY)?;
    let identity = Adopt {
        name: node.name.clone(),
        flavor: Some(node.flavor.clone()),
        token: node.token.clone(),
        seed: random_hex(32)?,
        wall_time_ns: u64::try_from(since_epoch().as_nanos()).unwrap_or(u64::MAX),
        lan: Some(Card {
            mac: lan::mac(node.index),
            address: lan::address(node.index),
            prefix: lan::PREFIX,
            mtu: lan::MTU,
        }),
        identity: Some(member.to_pem()),
    };
    let body = serde_json::to_vec(&identity).expect("an identity is serialized");
    let failed = |answer: String| CloudError::Adopt { node: node.name.clone(), answer };
    let sent = agent()
        .post(format!("{}/v1/node/adopt", node.url()))
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .send(&body[..]);
    let mut response = match sent {
        Ok(response) => response,
        Err(ureq::Error::Timeout(_)) => return Err(running.silent(RESUME_LIMIT)),
        Err(error) => {
            running.check()?;
            return Err(failed(error.to_string()));
        }
    };
    if response.status().is_success() {
        return Ok(());
    }
    let text = response.body_mut().read_to_string().unwrap_or_default();
    Err(failed(format!("{} {text}", response.status())))
}

/// For requests to nodes.
pub(super) fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().timeout_global(Some(RESUME_LIMIT));
    config.http_status_as_error(false).build().into()
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
