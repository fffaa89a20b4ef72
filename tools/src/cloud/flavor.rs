//! Sizes of nodes.

use serde::Serialize;

use super::{CloudError, Result};

/// A named size of node.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Flavor {
    /// Its name.
    pub name: &'static str,
    /// Processors.
    pub cpus: u32,
    /// Memory of the whole machine: Xen, dom0 and capsules.
    pub memory_mib: u32,
    /// What an hour costs: the local cloud is free, but policies need something to weigh.
    pub price_per_hour: f64,
}

/// All flavors, the default first.
pub const FLAVORS: [Flavor; 3] = [
    Flavor { name: "small", cpus: 1, memory_mib: 1024, price_per_hour: 0.01 },
    Flavor { name: "medium", cpus: 2, memory_mib: 2048, price_per_hour: 0.02 },
    Flavor { name: "large", cpus: 4, memory_mib: 4096, price_per_hour: 0.04 },
];

impl Flavor {
    /// The flavor of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> Result<&'static Self> {
        FLAVORS
            .iter()
            .find(|flavor| flavor.name == name)
            .ok_or_else(|| CloudError::NoSuchFlavor { name: name.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavors_are_found_by_name() {
        assert_eq!(Flavor::named("medium").unwrap().cpus, 2);
        let error = Flavor::named("huge").unwrap_err().to_string();
        assert_eq!(error, "no flavor \"huge\"; there are small, medium, large");
    }
}
