//! Patterns of `KEYS`: `*`, `?`, `[a-z]`, `[^a-z]`, and `\` before what stands for itself.

/// Whether all of `text` fits the pattern.
///
/// Goes back to the last `*` alone when something does not fit: what a star before that
/// took makes no difference. So time is at most pattern times text.
pub(crate) fn fits(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Behind the last star, and the text that was tried there.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            star = Some((p, t));
            continue;
        }
        let one = text.get(t).map(|&byte| one(&pattern[p..], byte));
        match one {
            Some(Some(len)) => {
                p += len;
                t += 1;
            }
            None if p == pattern.len() => return true,
            None => return false,
            Some(None) => {
                let Some((after, tried)) = star else { return false };
                star = Some((after, tried + 1));
                (p, t) = (after, tried + 1);
            }
        }
    }
}

/// How much of the pattern stands for `byte`, if it does.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [b'[', rest @ ..] => set(rest, byte).map(|len| len + 1),
        [literal, ..] => (*literal == byte).then_some(1),
    }
}

/// The same for what follows a `[`. A set without end goes to the end of the pattern.
fn set(pattern: &[u8], byte: u8) -> Option<usize> {
    let inverted = pattern.first() == Some(&b'^');
    let mut at = usize::from(inverted);
    let mut found = false;
    loop {
        match &pattern[at..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', literal, ..] => {
                found |= *literal == byte;
                at += 2;
            }
            [first, b'-', last, ..] if *last != b']' => {
                found |= (*first.min(last)..=*first.max(last)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= *literal == byte;
                at += 1;
            }
        }
    }
    (found != inverted).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    #[test]
    fn patterns_fit_what_redis_says_they_fit() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "anything", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b", "xxaxxbxx", false),
            ("[]", "x", false),
            ("a[", "a", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(fits(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        let pattern = b"*a".repeat(2000);
        assert!(!fits(&pattern, &[b'a'; 1999]));
    }

    /// The plainest reading of a pattern without sets.
    fn plain(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => (0..=text.len()).any(|at| plain(rest, &text[at..])),
            (Some((b'?', rest)), Some((_, text))) => plain(rest, text),
            (Some((a, rest)), Some((b, text))) => a == b && plain(rest, text),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn stars_and_marks_mean_what_they_mean(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            prop_assert_eq!(fits(pattern.as_bytes(), text.as_bytes()), plain(pattern.as_bytes(), text.as_bytes()));
        }

        #[test]
        fn no_pattern_panics(pattern: Vec<u8>, text: Vec<u8>) {
            fits(&pattern, &text);
        }
    }
}
