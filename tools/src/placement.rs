//! Which node a new capsule goes to: the one with the most free memory, unless the user names one.
//!
//! A cluster's controller says to which nodes nothing may come.

use crate::client::{Client, ClientError};
use crate::fleet::Fleet;
use fcap_api::{CreateCapsule, DEFAULT_MEMORY_KIB, Node};
use futures_util::future::join_all;

/// No node will do.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// The user named one that is not there.
    #[error("no such node: {asked}; there are: {nodes}")]
    NoSuchNode {
        /// The name.
        asked: String,
        /// Names that would do.
        nodes: String,
    },
    /// Nothing may come to any node.
    #[error("all nodes are cordoned: {nodes}; `fcap node uncordon` lets capsules come again")]
    AllCordoned {
        /// The nodes.
        nodes: String,
    },
    /// No node answers.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Chooses a node for `spec`.
///
/// # Errors
/// When the named node does not exist, or no node answers.
pub async fn choose<'a>(
    fleet: &'a Fleet,
    spec: &CreateCapsule,
    wanted: Option<&str>,
    controller: Option<&Client>,
) -> Result<&'a Client, PlacementError> {
    if let ([only], None, None) = (fleet.nodes(), wanted, controller) {
        return Ok(only);
    }
    let mut nodes = Vec::new();
    let mut failure = None;
    for (client, answer) in fleet.nodes().iter().zip(join_all(fleet.nodes().iter().map(Client::node)).await) {
        match answer {
            Ok(node) => nodes.push((client, node)),
            Err(error) => failure = Some(error),
        }
    }
    if let (None, Some(controller)) = (wanted, controller) {
        let closed = controller.cluster_nodes().await?.into_iter().filter(|node| node.cordoned);
        let closed: Vec<String> = closed.map(|node| node.name).collect();
        nodes.retain(|(_, node)| !closed.contains(&node.name));
        if nodes.is_empty() && failure.is_none() {
            return Err(PlacementError::AllCordoned { nodes: closed.join(", ") });
        }
    }
    let best = match wanted {
        Some(name) => nodes.iter().position(|(_, node)| node.name == name),
        None => roomiest(nodes.iter().map(|(_, node)| node), spec.memory_kib.unwrap_or(DEFAULT_MEMORY_KIB)),
    };
    match (best, failure, wanted) {
        (Some(at), ..) => Ok(nodes[at].0),
        (None, Some(error), _) => Err(error.into()),
        (None, None, wanted) => {
            let names: Vec<&str> = nodes.iter().map(|(_, node)| node.name.as_str()).collect();
            Err(PlacementError::NoSuchNode {
                asked: wanted.unwrap_or("any").to_owned(),
                nodes: names.join(", "),
            })
        }
    }
}

/// Where the free memory is largest; among equals, where the fewest capsules are. When it fits
/// nowhere, that node still answers best how much is missing.
fn roomiest<'a>(nodes: impl Iterator<Item = &'a Node>, memory_kib: u64) -> Option<usize> {
    nodes
        .enumerate()
        .max_by_key(|(_, node)| {
            let fits = node.free_memory_kib >= memory_kib;
            (fits, node.free_memory_kib, std::cmp::Reverse(node.capsules))
        })
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(free_memory_kib: u64, capsules: u32) -> Node {
        Node {
            name: "n".into(),
            flavor: None,
            hypervisor: "simulator".into(),
            cpus: 1,
            memory_kib: 1 << 20,
            free_memory_kib,
            capsules,
            uptime_ms: 0,
            log_dirty: false,
            pool_size: 0,
            pool_ready: 0,
            dom0_cpu_time_ns: 0,
        }
    }

    #[test]
    fn the_roomiest_node_is_chosen_and_then_the_least_busy() {
        let nodes = [node(100, 0), node(500, 9), node(500, 3)];
        assert_eq!(roomiest(nodes.iter(), 200), Some(2));
        assert_eq!(roomiest(nodes.iter(), 1000), Some(2));
        assert_eq!(roomiest([].iter(), 1), None);
    }
}
