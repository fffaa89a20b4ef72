//! Sizes of nodes, and what they cost.

use fcap_api::cluster::{Capacity, Flavor, FlavorSpec};

/// Millionths in the currency's unit.
pub const MICROS: u64 = 1_000_000;
/// Memory that Xen and dom0 keep of a node unless its flavor says otherwise.
pub const RESERVED_MEMORY_MIB: u64 = 384;
/// More than any machine costs: prices above are slips of the pen.
const MAX_PRICE: f64 = 1e6;
const MAX_VCPUS: u32 = 4096;
const MAX_MEMORY_MIB: u64 = 1 << 26;

/// A flavor that makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FlavorError {
    /// Its name.
    #[error("the flavor name {name:?} is no name: use letters, digits, '_', '.' and '-'")]
    Name {
        /// What was given.
        name: String,
    },
    /// No price.
    #[error("flavor {name} has no price: give price_per_hour, as in 0.04")]
    NoPrice {
        /// The flavor.
        name: String,
    },
    /// A price that is none.
    #[error(
        "the price of flavor {name} is {price}; an hour must cost more than zero, and at most {MAX_PRICE}"
    )]
    Price {
        /// The flavor.
        name: String,
        /// What was given.
        price: f64,
    },
    /// A price below what is counted.
    #[error("the price of flavor {name} is {price}, less than the millionth that is counted in")]
    PriceTooSmall {
        /// The flavor.
        name: String,
        /// What was given.
        price: f64,
    },
    /// Processors or memory.
    #[error("flavor {name} has {what}; a node needs at least {least} and has at most {most}")]
    Size {
        /// The flavor.
        name: String,
        /// What was given.
        what: String,
        /// Least that makes sense.
        least: u64,
        /// Most that makes sense.
        most: u64,
    },
    /// Two of one name.
    #[error("there are two flavors named {name}: remove or rename one")]
    Twice {
        /// The name.
        name: String,
    },
}

/// Checks a flavor that somebody wrote.
///
/// # Errors
/// Says what is wrong with it: above all a price that is absent, zero, negative or no number.
pub fn check(spec: &FlavorSpec) -> Result<Flavor, FlavorError> {
    let name = spec.name.clone();
    if !is_name(&name) {
        return Err(FlavorError::Name { name });
    }
    let Some(price) = spec.price_per_hour else { return Err(FlavorError::NoPrice { name }) };
    // Written so that NaN is refused too.
    if !(price > 0.0 && price <= MAX_PRICE) {
        return Err(FlavorError::Price { name, price });
    }
    let price_micros = (price * MICROS as f64).round() as u64;
    if price_micros == 0 {
        return Err(FlavorError::PriceTooSmall { name, price });
    }
    if !(1..=MAX_VCPUS).contains(&spec.vcpus) {
        let what = format!("{} vcpus", spec.vcpus);
        return Err(FlavorError::Size { name, what, least: 1, most: MAX_VCPUS.into() });
    }
    let reserved = spec.reserved_memory_mib.unwrap_or(RESERVED_MEMORY_MIB);
    if spec.memory_mib <= reserved || spec.memory_mib > MAX_MEMORY_MIB {
        let what = format!("{} MiB of memory, of which {reserved} are Xen's and dom0's", spec.memory_mib);
        return Err(FlavorError::Size {
            name,
            what,
            least: reserved.saturating_add(1),
            most: MAX_MEMORY_MIB,
        });
    }
    let capacity =
        Capacity { cpu_milli: u64::from(spec.vcpus) * 1000, memory_kib: (spec.memory_mib - reserved) * 1024 };
    Ok(Flavor { name, vcpus: spec.vcpus, memory_mib: spec.memory_mib, price_micros, capacity })
}

/// Checks all flavors, the first error first.
///
/// # Errors
/// As [`check`], and when two have one name.
pub fn check_all(specs: &[FlavorSpec]) -> Result<Vec<Flavor>, FlavorError> {
    let flavors = specs.iter().map(check).collect::<Result<Vec<_>, _>>()?;
    for (index, flavor) in flavors.iter().enumerate() {
        if flavors[..index].iter().any(|other| other.name == flavor.name) {
            return Err(FlavorError::Twice { name: flavor.name.clone() });
        }
    }
    Ok(flavors)
}

/// Whether it is a name of the kind that flavors and policies have.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=fcap_api::MAX_NAME).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(price: Option<f64>) -> FlavorSpec {
        FlavorSpec {
            name: "small".into(),
            vcpus: 1,
            memory_mib: 1024,
            reserved_memory_mib: None,
            price_per_hour: price,
        }
    }

    #[test]
    fn a_price_becomes_whole_millionths() {
        let flavor = check(&spec(Some(0.01))).unwrap();
        assert_eq!(flavor.price_micros, 10_000);
        assert_eq!(flavor.capacity, Capacity { cpu_milli: 1000, memory_kib: 640 * 1024 });
    }

    #[test]
    fn prices_that_are_none_are_refused_and_say_so() {
        for (price, part) in [
            (None, "has no price"),
            (Some(0.0), "is 0;"),
            (Some(-0.0), "is -0;"),
            (Some(-0.04), "is -0.04;"),
            (Some(f64::NAN), "is NaN;"),
            (Some(f64::INFINITY), "is inf;"),
            (Some(1e7), "at most 1000000"),
            (Some(1e-9), "less than the millionth"),
        ] {
            let error = check(&spec(price)).unwrap_err().to_string();
            assert!(error.contains("small") && error.contains(part), "{price:?}: {error}");
        }
    }

    #[test]
    fn sizes_and_names_that_make_no_sense_are_refused() {
        let good = spec(Some(1.0));
        for (bad, part) in [
            (FlavorSpec { vcpus: 0, ..good.clone() }, "0 vcpus"),
            (FlavorSpec { vcpus: u32::MAX, ..good.clone() }, "vcpus"),
            (FlavorSpec { memory_mib: 384, ..good.clone() }, "384 MiB"),
            (FlavorSpec { memory_mib: u64::MAX, ..good.clone() }, "MiB"),
            (FlavorSpec { reserved_memory_mib: Some(u64::MAX), ..good.clone() }, "MiB"),
            (FlavorSpec { name: String::new(), ..good.clone() }, "no name"),
            (FlavorSpec { name: "a b".into(), ..good.clone() }, "no name"),
        ] {
            let error = check(&bad).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let error = check_all(&[good.clone(), good]).unwrap_err().to_string();
        assert_eq!(error, "there are two flavors named small: remove or rename one");
    }
}
