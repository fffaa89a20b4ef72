//! Questions to name servers, and their answers (RFC 1035, RFC 3596).

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The port of name servers.
pub const PORT: u16 = 53;
/// Longest answer that may come without being asked for (RFC 1035, 4.2.1).
pub const MESSAGE_MAX: usize = 512;

const HEADER_LEN: usize = 12;
const CLASS_INTERNET: u16 = 1;
const TYPE_A: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_AAAA: u16 = 28;
/// Longest name, and longest label of it.
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
}

impl Kind {
    fn number(self) -> u16 {
        match self {
            Self::A => TYPE_A,
            Self::Aaaa => TYPE_AAAA,
        }
    }
}

/// What a name server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The addresses; none if the name has none of the kind.
    Addresses(Vec<IpAddr>),
    /// There is no such name.
    NoSuchName,
    /// It cannot tell.
    Failed,
}

/// A question; `None` if the name is not one.
pub fn question(id: u16, name: &str, kind: Kind) -> Option<Vec<u8>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || name.len() > NAME_MAX {
        return None;
    }
    let mut message = Vec::with_capacity(HEADER_LEN + name.len() + 6);
    message.extend(id.to_be_bytes());
    // A standard question, to be followed up by the server; one question, no answers.
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        if label.is_empty() || label.len() > LABEL_MAX || !label.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend(kind.number().to_be_bytes());
    message.extend(CLASS_INTERNET.to_be_bytes());
    Some(message)
}

/// Reads the answer to `question`; `None` if the message is malformed or no answer to it.
pub fn answer(question: &[u8], message: &[u8]) -> Option<Answer> {
    const RESPONSE: u8 = 0x80;
    let (header, _) = message.split_first_chunk::<HEADER_LEN>()?;
    let asked = question.get(HEADER_LEN..)?;
    let repeated = message.get(HEADER_LEN..HEADER_LEN + asked.len())?;
    let same = header[..2] == question[..2] && repeated.eq_ignore_ascii_case(asked);
    if header[2] & RESPONSE == 0 || header[4..6] != [0, 1] || !same {
        return None;
    }
    match header[3] & 0x0f {
        0 => {}
        3 => return Some(Answer::NoSuchName),
        _ => return Some(Answer::Failed),
    }
    let kind = u16::from_be_bytes(asked[asked.len() - 4..][..2].try_into().ok()?);
    let mut rest = &message[HEADER_LEN + asked.len()..];
    let mut addresses = Vec::new();
    for _ in 0..u16::from_be_bytes([header[6], header[7]]) {
        // An answer that was cut off is as good as what there is of it.
        let Some((found, data, behind)) = record(rest) else { break };
        rest = behind;
        // Names in between are followed by the server, which sends their addresses as well.
        if found == kind && kind != TYPE_CNAME {
            addresses.extend(address(data));
        }
    }
    Some(Answer::Addresses(addresses))
}

/// Kind and data of the first record, and what follows it.
fn record(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let bytes = skip_name(bytes)?;
    let (head, rest) = bytes.split_first_chunk::<10>()?;
    let len = u16::from_be_bytes([head[8], head[9]]);
    let (data, rest) = rest.split_at_checked(len.into())?;
    let class = u16::from_be_bytes([head[2], head[3]]);
    let kind = u16::from_be_bytes([head[0], head[1]]);
    // What is of another class is of no kind that anybody asks for.
    Some((if class == CLASS_INTERNET { kind } else { 0 }, data, rest))
}

/// What follows a name, which may end in a pointer to another.
fn skip_name(mut bytes: &[u8]) -> Option<&[u8]> {
    const POINTER: u8 = 0xc0;
    loop {
        let (&len, rest) = bytes.split_first()?;
        match len {
            0 => return Some(rest),
            POINTER.. => return rest.get(1..),
            _ if usize::from(len) > LABEL_MAX => return None,
            _ => bytes = rest.get(len.into()..)?,
        }
    }
}

fn address(data: &[u8]) -> Option<IpAddr> {
    match data.len() {
        4 => data.first_chunk::<4>().map(|&octets| Ipv4Addr::from(octets).into()),
        16 => data.first_chunk::<16>().map(|&octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    fn answered(kind: Kind, records: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
        let question = question(0x1234, "db.example", kind).unwrap();
        let mut message = question.clone();
        message[2] |= 0x80;
        message[7] = records.len() as u8;
        records.iter().for_each(|record| message.extend_from_slice(record));
        (question, message)
    }

    const A: &[u8] = &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 88, 1, 2];
    const CNAME: &[u8] = &[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 3, 1, b'x', 0];

    #[test]
    fn questions_are_as_name_servers_want_them() {
        let question = question(0x1234, "db.example.", Kind::Aaaa).unwrap();
        assert_eq!(&question[..12], [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&question[12..], b"\x02db\x07example\0\0\x1c\0\x01");
        for name in ["", ".", "a..b", "a b", &"x".repeat(64), &"x.".repeat(128)] {
            assert_eq!(super::question(1, name, Kind::A), None, "{name}");
        }
    }

    #[test]
    fn answers_give_addresses_behind_other_names() {
        let (question, message) = answered(Kind::A, &[CNAME, A]);
        let expected = Answer::Addresses(vec![IpAddr::V4(Ipv4Addr::new(10, 88, 1, 2))]);
        assert_eq!(answer(&question, &message), Some(expected));
        // Cut off: what is there counts.
        let short = &message[..message.len() - 1];
        assert_eq!(answer(&question, short), Some(Answer::Addresses(vec![])));
    }

    #[test]
    fn answers_to_other_questions_are_none() {
        let (question, message) = answered(Kind::A, &[A]);
        let mut other = message.clone();
        other[1] ^= 1;
        assert_eq!(answer(&question, &other), None);
        let mut other = message.clone();
        other[13] = b'x';
        assert_eq!(answer(&question, &other), None);
        let mut none = message;
        none[3] = 3;
        assert_eq!(answer(&question, &none), Some(Answer::NoSuchName));
    }

    proptest! {
        #[test]
        fn any_message_is_read_without_panic(bytes: Vec<u8>) {
            let (question, mut message) = answered(Kind::A, &[A]);
            message[7] = 20;
            message.extend(bytes);
            let _ = answer(&question, &message);
        }
    }
}
