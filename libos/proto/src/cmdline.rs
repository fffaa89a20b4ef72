//! The kernel command line, split into words as a shell would.

/// Takes the first word off `line`, handing its bytes to `push`; returns what
/// follows it, or `None` if there is no word.
///
/// White space separates words. Between single quotes everything stands for
/// itself, between double quotes all but backslash, and a backslash takes the
/// special meaning from the byte after it. A quote that is not closed reaches to
/// the end.
pub fn word(line: &[u8], mut push: impl FnMut(u8)) -> Option<&[u8]> {
    let mut rest = line.trim_ascii_start();
    if rest.is_empty() {
        return None;
    }
    let mut quote = None;
    while let [byte, after @ ..] = rest {
        match (*byte, quote) {
            (byte, None) if byte.is_ascii_whitespace() => break,
            (b'\'' | b'"', None) => quote = Some(*byte),
            (byte, Some(open)) if byte == open => quote = None,
            (b'\\', None | Some(b'"')) => {
                let Some((&escaped, after)) = after.split_first() else { return Some(&[]) };
                push(escaped);
                rest = after;
                continue;
            }
            (byte, _) => push(byte),
        }
        rest = after;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::{string::String, vec::Vec};

    fn words(line: &str) -> Vec<String> {
        let mut rest = line.as_bytes();
        let mut words = Vec::new();
        loop {
            let mut bytes = Vec::new();
            let Some(after) = word(rest, |byte| bytes.push(byte)) else { return words };
            rest = after;
            words.push(String::from_utf8_lossy(&bytes).into_owned());
        }
    }

    #[test]
    fn words_are_split_as_a_shell_would() {
        assert_eq!(words("  a  bc\td "), ["a", "bc", "d"]);
        assert_eq!(words(r#"A='x y' "it's" a\ b "q\"q" '\'"#), ["A=x y", "it's", "a b", "q\"q", "\\"]);
        assert_eq!(words("a '' b"), ["a", "", "b"]);
        assert_eq!(words(r#""open end"#), ["open end"]);
        assert_eq!(words("end\\"), ["end"]);
        assert!(words(" \t ").is_empty());
    }

    proptest! {
        #[test]
        fn any_line_is_split_without_panic(line: String) {
            prop_assert!(words(&line).iter().map(String::len).sum::<usize>() <= line.len() * 3);
        }

        #[test]
        fn quoted_words_come_back(list in proptest::collection::vec("[^']*", 0..6)) {
            let line: Vec<String> = list.iter().map(|word| std::format!("'{word}'")).collect();
            prop_assert_eq!(words(&line.join(" ")), list);
        }
    }
}
