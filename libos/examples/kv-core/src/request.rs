//! Commands out of bytes: RESP version 2, as clients send it, and lines for people.
//!
//! A command is an array of strings, `*2\r\n$3\r\nGET\r\n$1\r\nk\r\n`, or a line of words.
//! The parser goes on where it stopped when more bytes are there, so that a command that
//! comes byte by byte costs no more than one that comes at once.

use alloc::{borrow::ToOwned, string::String, vec::Vec};
use core::ops::{Index, Range};

/// Arguments that a command may have.
pub const MAX_ARGS: usize = 64 * 1024;
/// Bytes that a line may have.
const MAX_LINE: usize = 4096;
/// Digits that a number on a line of its own may have: less than 64 bits.
const MAX_DIGITS: usize = 18;

/// What the client sends is no command. Where the next one starts is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The number of arguments is none, or too large.
    #[error("Protocol error: invalid multibulk length")]
    Count,
    /// The length of an argument is none.
    #[error("Protocol error: invalid bulk length")]
    Length,
    /// The whole command has more bytes than are allowed.
    #[error("Protocol error: command larger than {0} bytes")]
    TooLarge(usize),
    /// An argument does not start as it should.
    #[error("Protocol error: expected '$', got '{0}'")]
    NoBulk(char),
    /// An argument is longer than it says.
    #[error("Protocol error: expected the end of a line after a bulk")]
    NoEnd,
    /// A line without end.
    #[error("Protocol error: too big inline request")]
    Line,
}

/// Finds the end of commands and the places of their arguments.
#[derive(Debug)]
pub struct Parser {
    max_command: usize,
    /// The arguments found so far, in a command that starts at 0.
    args: Vec<Range<usize>>,
    state: State,
    /// Bytes dealt with.
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    /// So many arguments are to come.
    Args(usize),
    /// So many, and the next one of so many bytes has begun.
    Bulk {
        left: usize,
        len: usize,
    },
}

/// A command that is there as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    input: &'a [u8],
    args: &'a [Range<usize>],
    /// Bytes of it.
    pub len: usize,
}

impl<'a> Command<'a> {
    /// Number of arguments, the name of the command included. It may be 0: an empty line
    /// means nothing.
    pub fn count(&self) -> usize {
        self.args.len()
    }

    /// The argument at `index`.
    pub fn get(&self, index: usize) -> Option<&'a [u8]> {
        Some(&self.input[self.args.get(index)?.clone()])
    }

    /// The arguments from `index` on.
    pub fn iter_from(&self, index: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let input = self.input;
        self.args.get(index..).unwrap_or_default().iter().map(move |place| &input[place.clone()])
    }
}

impl Index<usize> for Command<'_> {
    type Output = [u8];

    fn index(&self, index: usize) -> &[u8] {
        &self.input[self.args[index].clone()]
    }
}

impl Parser {
    /// A parser of commands of at most `max_command` bytes.
    pub fn new(max_command: usize) -> Self {
        Self { max_command, args: Vec::new(), state: State::Start, at: 0 }
    }

    /// The command that `input` starts with, or `None` if its end is not there yet.
    ///
    /// Until there is one, the next input must begin with the same bytes; after that, with
    /// those behind the command.
    ///
    /// # Errors
    /// If it is none, or too large.
    pub fn parse<'a>(&'a mut self, input: &'a [u8]) -> Result<Option<Command<'a>>, ProtocolError> {
        if self.state == State::Start && self.at == 0 {
            self.args.clear();
        }
        while let Some(state) = self.step(input)? {
            self.state = state;
            if state == State::Args(0) {
                let len = core::mem::take(&mut self.at);
                self.state = State::Start;
                return Ok(Some(Command { input, args: &self.args, len }));
            }
        }
        Ok(None)
    }

    /// Bytes that are missing at least, when there is no whole command yet.
    pub fn missing(&self, input: &[u8]) -> usize {
        match self.state {
            State::Bulk { len, .. } => (self.at + len + 2).saturating_sub(input.len()).max(1),
            State::Start | State::Args(_) => 1,
        }
    }

    /// What comes next, or `None` if there are too few bytes to tell.
    fn step(&mut self, input: &[u8]) -> Result<Option<State>, ProtocolError> {
        match self.state {
            State::Start if input.first().is_some_and(|&byte| byte != b'*') => self.words(input),
            State::Start => {
                let Some(count) = self.number(input, ProtocolError::Count)? else { return Ok(None) };
                // An array that is empty or none means nothing.
                let count = usize::try_from(count).unwrap_or(0);
                if count > MAX_ARGS {
                    return Err(ProtocolError::Count);
                }
                Ok(Some(State::Args(count)))
            }
            State::Args(left) => {
                match input.get(self.at) {
                    None => return Ok(None),
                    Some(b'$') => {}
                    Some(&other) => return Err(ProtocolError::NoBulk(char::from(other))),
                }
                let Some(len) = self.number(input, ProtocolError::Length)? else { return Ok(None) };
                let len = usize::try_from(len).map_err(|_| ProtocolError::Length)?;
                if len > self.max_command.saturating_sub(self.at) {
                    return Err(ProtocolError::TooLarge(self.max_command));
                }
                Ok(Some(State::Bulk { left, len }))
            }
            State::Bulk { left, len } => {
                let end = self.at + len;
                let Some(line_end) = input.get(end..end + 2) else { return Ok(None) };
                if line_end != b"\r\n" {
                    return Err(ProtocolError::NoEnd);
                }
                self.args.push(self.at..end);
                self.at = end + 2;
                Ok(Some(State::Args(left - 1)))
            }
        }
    }

    /// The number on a line, behind its first byte.
    fn number(&mut self, input: &[u8], error: ProtocolError) -> Result<Option<i64>, ProtocolError> {
        let line = input.get(self.at + 1..).unwrap_or_default();
        let first = usize::from(line.first() == Some(&b'-'));
        let (mut number, mut end) = (0, first);
        loop {
            match line.get(end) {
                None => return Ok(None),
                Some(b'\r') if end > first => break,
                Some(digit @ b'0'..=b'9') if end < MAX_DIGITS => {
                    number = number * 10 + i64::from(digit - b'0')
                }
                Some(_) => return Err(error),
            }
            end += 1;
        }
        match line.get(end + 1) {
            None => return Ok(None),
            Some(b'\n') => {}
            Some(_) => return Err(error),
        }
        self.at += 1 + end + 2;
        Ok(Some(if first == 1 { -number } else { number }))
    }

    /// A line of words.
    fn words(&mut self, input: &[u8]) -> Result<Option<State>, ProtocolError> {
        let line = &input[..input.len().min(MAX_LINE)];
        let Some(end) = line.iter().position(|&byte| byte == b'\n') else {
            return if line.len() == MAX_LINE { Err(ProtocolError::Line) } else { Ok(None) };
        };
        let mut at = 0;
        for word in line[..end].split(u8::is_ascii_whitespace) {
            if !word.is_empty() {
                self.args.push(at..at + word.len());
            }
            at += word.len() + 1;
        }
        self.at = end + 1;
        Ok(Some(State::Args(0)))
    }
}

/// A number as Redis reads it: in decimal, without signs and zeros that need not be.
pub(crate) fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first() {
        Some((b'-', digits)) => (true, digits),
        _ => (false, text),
    };
    match digits {
        [] => return None,
        [b'0'] if negative => return None,
        [b'0', _, ..] => return None,
        _ => {}
    }
    // Downwards, as there is one more number below zero than above.
    let number = digits.iter().try_fold(0i64, |number, &byte| {
        let digit = byte.is_ascii_digit().then_some(i64::from(byte.wrapping_sub(b'0')))?;
        number.checked_mul(10)?.checked_sub(digit)
    })?;
    if negative { Some(number) } else { number.checked_neg() }
}

/// The text of an argument, for messages; cut where it gets long.
pub(crate) fn shown(argument: &[u8]) -> String {
    let cut = &argument[..argument.len().min(64)];
    String::from_utf8_lossy(cut).replace(|c: char| c.is_control(), " ").as_str().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, vec};
    use proptest::prelude::*;

    const MAX: usize = 1000;

    type Args = Vec<Vec<u8>>;

    /// All commands of `input`, which comes in pieces; and the bytes that are left.
    fn commands(input: &[u8], piece: usize) -> Result<(Vec<Args>, usize), ProtocolError> {
        let (mut parser, mut buffer, mut found) = (Parser::new(MAX), vec![], vec![]);
        for piece in input.chunks(piece) {
            buffer.extend_from_slice(piece);
            while let Some(command) = parser.parse(&buffer)? {
                found.push(command.iter_from(0).map(<[u8]>::to_vec).collect());
                let len = command.len;
                buffer.drain(..len);
            }
        }
        Ok((found, buffer.len()))
    }

    fn encode(args: &Args) -> Vec<u8> {
        let mut out = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            out.extend_from_slice(arg);
            out.extend_from_slice(b"\r\n");
        }
        out
    }

    #[test]
    fn arrays_and_lines_are_commands() {
        let input = b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n\r\n  set k  v \r\n*0\r\nPING\n*1";
        let (found, left) = commands(input, usize::MAX).unwrap();
        let expected: [&[&[u8]]; 5] = [&[b"GET", b"a\r\nb"], &[], &[b"set", b"k", b"v"], &[], &[b"PING"]];
        assert_eq!(found, expected);
        assert_eq!(left, 2);
    }

    #[test]
    fn what_is_no_command_is_an_error() {
        for (input, error) in [
            ("*x\r\n", ProtocolError::Count),
            ("*70000\r\n", ProtocolError::Count),
            ("*99999999999999999999\r\n", ProtocolError::Count),
            ("*1\r\n*1\r\n", ProtocolError::NoBulk('*')),
            ("*1\r\n$-1\r\n", ProtocolError::Length),
            ("*1\r\n$1x\r\n", ProtocolError::Length),
            ("*1\r\n$1\rx", ProtocolError::Length),
            ("*1\r\n$2000\r\n", ProtocolError::TooLarge(MAX)),
            ("*1\r\n$999999999999999999\r\n", ProtocolError::TooLarge(MAX)),
            ("*1\r\n$1\r\nabc", ProtocolError::NoEnd),
        ] {
            for piece in [1, 3, 100] {
                assert_eq!(commands(input.as_bytes(), piece), Err(error), "{input:?}");
            }
        }
        assert_eq!(commands(&[b'x'; MAX_LINE], 7), Err(ProtocolError::Line));
        assert_eq!(commands(&[b'*'; 100], 1), Err(ProtocolError::Count));
    }

    #[test]
    fn a_command_of_many_arguments_is_bounded_as_a_whole() {
        let args = vec![vec![b'x'; 10]; 100];
        assert_eq!(commands(&encode(&args), 50), Err(ProtocolError::TooLarge(MAX)));
    }

    #[test]
    fn the_parser_says_how_much_a_long_argument_lacks() {
        let mut parser = Parser::new(MAX);
        let input = b"*1\r\n$500\r\nabc";
        assert!(parser.parse(input).unwrap().is_none());
        assert_eq!(parser.missing(input), 499);
    }

    #[test]
    fn integers_are_read_as_redis_reads_them() {
        for (text, number) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("", None),
            ("-", None),
            ("+1", None),
            ("01", None),
            ("-0", None),
            (" 1", None),
        ] {
            assert_eq!(integer(text.as_bytes()), number, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn commands_are_found_whatever_the_pieces(
            sent in proptest::collection::vec(proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..20), 1..5), 0..6),
            piece in 1usize..40,
        ) {
            let input: Vec<u8> = sent.iter().flat_map(encode).collect();
            prop_assert_eq!(commands(&input, piece), Ok((sent, 0)));
        }

        #[test]
        fn pieces_make_no_difference_to_any_bytes(
            input in proptest::collection::vec(prop_oneof![
                Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b'2'), any::<u8>()
            ], 0..100),
            piece in 1usize..10,
        ) {
            prop_assert_eq!(commands(&input, piece), commands(&input, usize::MAX));
        }

        #[test]
        fn integers_are_read_back(number: i64) {
            prop_assert_eq!(integer(format!("{number}").as_bytes()), Some(number));
        }
    }
}
