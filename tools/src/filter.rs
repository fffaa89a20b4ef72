//! What lists and streams are to be cut down to: `--filter KEY=VALUE`, as docker has it.

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    key: &'static str,
    value: String,
}

/// Reads conditions with one of these keys.
pub fn parser(keys: &'static [&'static str]) -> impl Fn(&str) -> Result<Filter, String> + Clone {
    move |text| {
        let known = || format!("write KEY=VALUE with one of the keys {}", keys.join(", "));
        let (key, value) = text.split_once('=').ok_or_else(known)?;
        let key = keys.iter().find(|known| **known == key).ok_or_else(known)?;
        Ok(Filter { key, value: value.to_owned() })
    }
}

/// Whether conditions hold: those of one key are alternatives, and of each key one must hold.
pub fn all_hold(filters: &[Filter], holds: impl Fn(&str, &str) -> bool) -> bool {
    filters
        .iter()
        .all(|filter| filters.iter().any(|other| other.key == filter.key && holds(other.key, &other.value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_have_a_key_that_is_known() {
        let parse = parser(&["node", "event"]);
        assert_eq!(parse("node=a=b"), Ok(Filter { key: "node", value: "a=b".into() }));
        assert_eq!(parse("event="), Ok(Filter { key: "event", value: String::new() }));
        for bad in ["", "node", "=x", "colour=red"] {
            assert!(parse(bad).unwrap_err().contains("node, event"), "{bad}");
        }
    }
}
