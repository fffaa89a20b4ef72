//! What plans of a policy keep to.

use fcap_api::cluster::Rules;

use crate::error::{Error, Result};
use crate::plan::Limits;

const WEEK_S: u64 = 7 * 24 * 3600;

/// The usual limits, changed as somebody wants.
///
/// # Errors
/// Names the rule that makes no sense.
pub fn limits(rules: &Rules) -> Result<Limits> {
    let usual = Limits::default();
    let number = |name: &str, given: Option<u64>, least: u64, most: u64, usual: u64| match given {
        Some(number) if !(least..=most).contains(&number) => {
            Err(Error::BadRequest(format!("rule {name} is {number}; it can be {least} to {most}")))
        }
        Some(number) => Ok(number),
        None => Ok(usual),
    };
    let count = |name: &str, given: Option<u64>, least: u64, most: u64, usual: usize| {
        number(name, given, least, most, usual as u64).map(|number| number as usize)
    };
    Ok(Limits {
        moves_at_once: count("parallel", rules.parallel, 1, 64, usual.moves_at_once)?,
        moves_at_once_per_node: count(
            "parallel_per_node",
            rules.parallel_per_node,
            1,
            64,
            usual.moves_at_once_per_node,
        )?,
        moves: count("moves", rules.moves, 0, 100_000, usual.moves)?,
        nodes: count("nodes", rules.nodes, 0, 100_000, usual.nodes)?,
        least_nodes: count("least_nodes", rules.least_nodes, 0, 100_000, usual.least_nodes)?,
        cooldown_ms: number("cooldown_s", rules.cooldown_s, 0, WEEK_S, usual.cooldown_ms / 1000)? * 1000,
        node_age_ms: number("node_age_s", rules.node_age_s, 0, WEEK_S, usual.node_age_ms / 1000)? * 1000,
        cpu_percent: number("cpu_percent", rules.cpu_percent, 1, 1000, usual.cpu_percent)?,
        gain_percent: number("gain_percent", rules.gain_percent, 0, 100, usual.gain_percent)?,
        saving_percent: number("saving_percent", rules.saving_percent, 0, 100, usual.saving_percent)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_is_as_usual() {
        assert_eq!(limits(&Rules::default()).unwrap(), Limits::default());
        let rules = Rules { cooldown_s: Some(30), parallel: Some(2), ..Rules::default() };
        let expected = Limits { cooldown_ms: 30_000, moves_at_once: 2, ..Limits::default() };
        assert_eq!(limits(&rules).unwrap(), expected);
    }

    #[test]
    fn rules_that_make_no_sense_are_refused() {
        let error = |rules: Rules| limits(&rules).unwrap_err().to_string();
        let none = Rules::default();
        assert_eq!(
            error(Rules { parallel: Some(0), ..none.clone() }),
            "rule parallel is 0; it can be 1 to 64"
        );
        assert_eq!(
            error(Rules { cooldown_s: Some(u64::MAX), ..none.clone() }),
            "rule cooldown_s is 18446744073709551615; it can be 0 to 604800"
        );
        assert_eq!(
            error(Rules { gain_percent: Some(101), ..none }),
            "rule gain_percent is 101; it can be 0 to 100"
        );
    }
}
