//! What capsules write, made safe for a terminal.
//!
//! A terminal obeys control sequences: they can retitle the window, fill the
//! clipboard, redefine keys, or hide what follows. Output of a capsule is
//! anybody's text, so on its way to a terminal it keeps only printable
//! characters, line ends, tabs, and colours (`ESC [ … m`). Everything else is
//! shown as text: `\x07` for a bell. Pipes and files get the bytes as they are.

use std::fmt::Write as _;

/// Longest colour sequence that is passed on.
const MAX_COLOUR: usize = 32;

/// Makes a stream of bytes safe, whatever the pieces it comes in.
#[derive(Debug)]
pub struct Sanitizer {
    /// The start of a sequence or of a character whose end has not come yet.
    pending: Vec<u8>,
    colours: bool,
    coloured: bool,
}

impl Sanitizer {
    /// Passes colours on or drops them.
    pub fn new(colours: bool) -> Self {
        Self { pending: Vec::new(), colours, coloured: false }
    }

    /// What to show for `bytes`. May hold back a few that are not complete.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let input = std::mem::take(&mut self.pending);
        let mut out = String::with_capacity(input.len());
        let mut rest = &input[..];
        while !rest.is_empty() {
            let Some(used) = self.take(rest, &mut out) else {
                self.pending = rest.to_vec();
                break;
            };
            rest = &rest[used..];
        }
        out
    }

    /// What is left at the end of the stream, with colours switched off.
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        for byte in std::mem::take(&mut self.pending) {
            escape(byte, &mut out);
        }
        if std::mem::take(&mut self.coloured) {
            out.push_str("\x1b[0m");
        }
        out
    }

    /// Takes one character or sequence from the front and tells its length; none if its end has not come.
    fn take(&mut self, rest: &[u8], out: &mut String) -> Option<usize> {
        match rest[0] {
            b'\n' | b'\t' | b' '..=b'~' => {
                let plain =
                    rest.iter().take_while(|byte| matches!(byte, b'\n' | b'\t' | b' '..=b'~')).count();
                out.extend(rest[..plain].iter().map(|&byte| char::from(byte)));
                Some(plain)
            }
            // Only as a part of a line's end: alone it would overwrite the line.
            b'\r' => match rest.get(1) {
                None => None,
                Some(b'\n') => Some(1),
                Some(_) => Some(shown(b'\r', out)),
            },
            0x1b => self.colour(rest, out),
            0x80.. => character(rest, out),
            control => Some(shown(control, out)),
        }
    }

    fn colour(&mut self, rest: &[u8], out: &mut String) -> Option<usize> {
        let parameters = match rest.get(1) {
            None => return None,
            Some(b'[') => {
                rest[2..].iter().take_while(|byte| matches!(byte, b'0'..=b'9' | b';' | b':')).count()
            }
            Some(_) => return Some(shown(0x1b, out)),
        };
        let len = 3 + parameters;
        match rest.get(len - 1) {
            _ if len > MAX_COLOUR => Some(shown(0x1b, out)),
            None => None,
            Some(b'm') if !self.colours => Some(len),
            Some(b'm') => {
                out.extend(rest[..len].iter().map(|&byte| char::from(byte)));
                self.coloured = !matches!(&rest[2..len - 1], b"" | b"0");
                Some(len)
            }
            Some(_) => Some(shown(0x1b, out)),
        }
    }
}

/// One character beyond ASCII.
fn character(rest: &[u8], out: &mut String) -> Option<usize> {
    let len = match rest[0] {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        other => return Some(shown(other, out)),
    };
    let have = &rest[..len.min(rest.len())];
    match std::str::from_utf8(have) {
        Ok(text) => {
            out.extend(text.chars().map(printable));
            Some(len)
        }
        Err(error) if error.error_len().is_none() && have.len() < len => None,
        Err(_) => Some(shown(rest[0], out)),
    }
}

/// The character, unless it is a control character or one that reorders or hides others.
fn printable(c: char) -> char {
    let hides = matches!(c,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}');
    if c.is_control() || hides { char::REPLACEMENT_CHARACTER } else { c }
}

fn shown(byte: u8, out: &mut String) -> usize {
    escape(byte, out);
    1
}

fn escape(byte: u8, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = write!(out, "\\x{byte:02x}");
}

/// One line of somebody's text for a message or a table: no control characters at all.
pub fn one_line(text: &str) -> String {
    text.chars().map(printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn safe(bytes: &[u8]) -> String {
        let mut sanitizer = Sanitizer::new(true);
        sanitizer.push(bytes) + &sanitizer.finish()
    }

    #[test]
    fn text_lines_and_colours_pass() {
        assert_eq!(safe("a\tb\r\nzwölf €\n".as_bytes()), "a\tb\nzwölf €\n");
        assert_eq!(safe(b"\x1b[1;31mred\x1b[0m"), "\x1b[1;31mred\x1b[0m");
        assert_eq!(safe(b"\x1b[31mred"), "\x1b[31mred\x1b[0m");
    }

    #[test]
    fn colours_can_be_dropped() {
        assert_eq!(Sanitizer::new(false).push(b"\x1b[31mred\x1b[0m\x07"), "red\\x07");
    }

    #[test]
    fn what_drives_a_terminal_is_shown_instead() {
        assert_eq!(safe(b"\x1b]0;title\x07"), "\\x1b]0;title\\x07");
        assert_eq!(safe(b"\x1b[2J"), "\\x1b[2J");
        assert_eq!(safe(b"50%\r60%"), "50%\\x0d60%");
        assert_eq!(safe(b"\xff\x9b2J"), "\\xff\\x9b2J");
        assert_eq!(safe("\u{9b}2J\u{202e}".as_bytes()), "\u{fffd}2J\u{fffd}");
        assert_eq!(one_line("a\nb\x1b"), "a\u{fffd}b\u{fffd}");
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_the_same_safe_text(bytes: Vec<u8>, piece in 1usize..9) {
            let whole = safe(&bytes);
            let mut sanitizer = Sanitizer::new(true);
            let mut pieces = String::new();
            for piece in bytes.chunks(piece) {
                pieces += &sanitizer.push(piece);
            }
            pieces += &sanitizer.finish();
            prop_assert_eq!(&pieces, &whole);
            for (at, c) in whole.char_indices().filter(|(_, c)| c.is_control()) {
                let colour = c == '\x1b' && whole[at + 1..].starts_with('[');
                prop_assert!(colour || c == '\n' || c == '\t', "{:?}", whole);
            }
        }
    }
}
