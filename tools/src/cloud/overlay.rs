//! Tells the nodes of a cloud of each other.

use fcap_api::{Overlay, OverlayPeer};

use super::lan::{self, Lan};
use super::{CloudError, Node, Progress, Result, node};

/// Makes `nodes` one overlay; the `new` ones have to join it. A node that was there before and
/// does not answer keeps nobody from joining.
pub(super) fn join(nodes: &[Node], new: &[Node], lan: &Lan, progress: Progress<'_>) -> Result<()> {
    let told: Vec<(&Node, Result<()>)> = std::thread::scope(|scope| {
        let tell = |node| scope.spawn(move || (node, tell(node, nodes, lan)));
        let threads: Vec<_> = nodes.iter().map(tell).collect();
        threads.into_iter().map(|thread| thread.join().expect("telling a node does not panic")).collect()
    });
    for (node, told) in told {
        match told {
            Err(error) if new.contains(node) => return Err(error),
            Err(error) => progress(&error.to_string()),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn tell(node: &Node, nodes: &[Node], lan: &Lan) -> Result<()> {
    let peer = |other: &Node| OverlayPeer {
        name: other.name.clone(),
        address: lan::address(other.index),
        index: other.index,
        url: None,
    };
    let overlay = Overlay {
        index: node.index,
        address: lan::address(node.index),
        peers: nodes.iter().filter(|other| other.name != node.name).map(peer).collect(),
        secret: lan.secret.clone(),
        encrypt: lan.encrypt,
    };
    let body = serde_json::to_vec(&overlay).expect("an overlay is serialized");
    let sent = node::agent()
        .put(format!("{}/v1/node/overlay", node.url()))
        .header("authorization", format!("Bearer {}", node.token))
        .header("content-type", "application/json")
        .send(&body[..]);
    let failed = |answer: String| CloudError::Overlay { node: node.name.clone(), answer };
    let mut response = sent.map_err(|error| failed(error.to_string()))?;
    if response.status().is_success() {
        return Ok(());
    }
    let text = response.body_mut().read_to_string().unwrap_or_default();
    Err(failed(format!("{} {text}", response.status())))
}
