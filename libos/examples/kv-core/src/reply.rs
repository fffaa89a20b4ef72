//! Answers into bytes: RESP version 2.

use crate::memory::Buffer;

/// `+OK` and the like.
pub fn simple(out: &mut Buffer, text: &str) {
    out.push(b"+");
    out.push(text.as_bytes());
    out.push(b"\r\n");
}

/// An error; its first word is its kind. Line ends in it would end it.
pub fn error(out: &mut Buffer, text: &str) {
    out.push(b"-");
    text.split(['\r', '\n']).for_each(|piece| out.push(piece.as_bytes()));
    out.push(b"\r\n");
}

/// A number.
pub fn integer(out: &mut Buffer, number: i64) {
    number_line(out, b':', number < 0, number.unsigned_abs());
}

/// Bytes.
pub fn bulk(out: &mut Buffer, bytes: &[u8]) {
    number_line(out, b'$', false, bytes.len() as u64);
    out.push(bytes);
    out.push(b"\r\n");
}

/// No bytes: there are none.
pub fn null(out: &mut Buffer) {
    out.push(b"$-1\r\n");
}

/// The start of an array of so many answers.
pub fn array(out: &mut Buffer, count: usize) {
    number_line(out, b'*', false, count as u64);
}

/// Writes a number in decimal to the end of `digits`, and returns where it starts.
pub(crate) fn decimal(digits: &mut [u8], mut number: u64) -> usize {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return at;
        }
    }
}

fn number_line(out: &mut Buffer, kind: u8, negative: bool, number: u64) {
    let mut line = [0; 24];
    line[22..].copy_from_slice(b"\r\n");
    let mut at = decimal(&mut line[..22], number);
    if negative {
        at -= 1;
        line[at] = b'-';
    }
    at -= 1;
    line[at] = kind;
    out.push(&line[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    #[test]
    fn answers_are_written_as_the_protocol_has_them() {
        let mut out = Buffer::new(&Memory::new(usize::MAX));
        simple(&mut out, "OK");
        error(&mut out, "ERR no\r\n+OK");
        integer(&mut out, i64::MIN);
        integer(&mut out, 0);
        array(&mut out, 12);
        bulk(&mut out, b"a\r\nb");
        bulk(&mut out, b"");
        null(&mut out);
        assert_eq!(
            core::str::from_utf8(out.bytes()),
            Ok(
                "+OK\r\n-ERR no+OK\r\n:-9223372036854775808\r\n:0\r\n*12\r\n$4\r\na\r\nb\r\n$0\r\n\r\n$-1\r\n"
            )
        );
    }
}
