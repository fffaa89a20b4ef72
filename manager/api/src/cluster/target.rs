//! Where Prometheus finds the nodes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What Prometheus is to ask for the numbers of a node, as its service discovery over HTTP wants to
/// be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MetricsTarget {
    /// Addresses: the controller's, which asks the node.
    pub targets: Vec<String>,
    /// Labels of all that is told: `node`, `instance`, and `flavor` if it has one;
    /// `__metrics_path__` says what to ask for.
    pub labels: BTreeMap<String, String>,
}
