//! The policies that come with fcap.

/// A policy that comes with fcap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shipped {
    /// Its name.
    pub name: &'static str,
    /// Its text; the comment at its head says what it does and what can be set.
    pub source: &'static str,
}

/// All of them.
pub const SHIPPED: [Shipped; 5] = [
    Shipped { name: "business-hours", source: include_str!("../../policies/business-hours.luau") },
    Shipped { name: "consolidate", source: include_str!("../../policies/consolidate.luau") },
    Shipped { name: "maintenance", source: include_str!("../../policies/maintenance.luau") },
    Shipped { name: "scale", source: include_str!("../../policies/scale.luau") },
    Shipped { name: "spread", source: include_str!("../../policies/spread.luau") },
];

impl Shipped {
    /// The policy of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SHIPPED.iter().find(|shipped| shipped.name == name)
    }
}
