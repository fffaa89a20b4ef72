//! Text that others wrote.

/// The text with everything escaped that could drive a terminal or mislead a reader, and cut
/// to `max` bytes.
pub fn printable(text: &str, max: usize) -> String {
    // Marks that reorder what follows, and separators that some viewers take for line ends.
    let misleading = |c| matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    let mut out = String::new();
    for c in text.trim_end().chars() {
        let before = out.len();
        if c.is_control() || misleading(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        if out.len() > max {
            out.truncate(before);
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn printable_text_drives_no_terminal(text: String, max in 0usize..200) {
            let out = printable(&text, max);
            prop_assert!(out.len() <= max);
            prop_assert!(!out.chars().any(char::is_control));
        }
    }
}
