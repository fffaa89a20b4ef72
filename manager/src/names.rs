//! Names of capsules.

use fcap_api::MAX_NAME;
pub use fcap_http::text::printable;

/// Checks a name that somebody chose.
///
/// # Errors
/// Says what is wrong with it; the name itself is not repeated, as it may be anything.
pub fn check(name: &str) -> Result<(), String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() {
        return Err("the name is empty".into());
    }
    if name.len() > MAX_NAME {
        return Err(format!("the name has {} bytes, at most {MAX_NAME} are allowed", name.len()));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(inner) {
        return Err(
            "a name starts with a letter or digit, and has only letters, digits, '_', '.' and '-'".into()
        );
    }
    Ok(())
}

/// A made-up name; not necessarily free.
pub fn random() -> String {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).expect("the kernel gives randomness");
    let pick = |words: &[&'static str], a, b| words[usize::from(u16::from_le_bytes([a, b])) % words.len()];
    let [a, b, c, d] = bytes;
    format!("{}-{}", pick(&QUALITIES, a, b), pick(&THINGS, c, d))
}

const QUALITIES: [&str; 64] = [
    "amber", "ample", "agile", "airy", "azure", "bold", "brave", "brief", "bright", "brisk", "calm",
    "candid", "clear", "clever", "cosy", "crisp", "deft", "eager", "early", "easy", "even", "exact", "fair",
    "fine", "firm", "fleet", "fond", "frank", "free", "fresh", "gentle", "glad", "golden", "grand", "green",
    "handy", "hardy", "honest", "keen", "kind", "lean", "light", "lively", "lucid", "mellow", "merry",
    "mild", "neat", "nimble", "noble", "plain", "prime", "proud", "quick", "quiet", "rapid", "ready",
    "silver", "smart", "solid", "steady", "sunny", "swift", "tidy",
];

const THINGS: [&str; 64] = [
    "acorn", "anchor", "apple", "arrow", "badger", "beacon", "beetle", "birch", "bridge", "brook", "button",
    "cedar", "cherry", "cloud", "comet", "compass", "coral", "cricket", "dune", "ember", "falcon", "feather",
    "fern", "finch", "fjord", "forest", "garnet", "glacier", "harbor", "heron", "island", "juniper",
    "kettle", "lantern", "lemon", "linden", "lotus", "maple", "marble", "meadow", "meteor", "moss", "nutmeg",
    "oasis", "olive", "orchid", "otter", "pebble", "pepper", "pine", "plover", "prairie", "quartz", "raven",
    "reed", "river", "saddle", "sparrow", "spruce", "summit", "thistle", "tulip", "walnut", "willow",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "0", "web-1.example_x", &"n".repeat(63)] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "-a",
            ".a",
            "_a",
            "a b",
            "a/b",
            "a\n",
            "a\u{1b}[31m",
            "ä",
            "a\0",
            &"n".repeat(64),
            &"n".repeat(300),
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn made_up_names_are_good_names() {
        (0..1000).for_each(|_| assert_eq!(check(&random()), Ok(())));
    }
}
