//! Names of capsules for capsules: RFC 1035, and RFC 3596 for IPv6.
//!
//! Each network's gateway answers for the names of the capsules in it, on all nodes, bare (`db`)
//! and with a suffix (`db.fcap`), and for their addresses. Other names go to the node's own name
//! server. Negative answers have no SOA record, so that nobody keeps them (RFC 2308, section 5):
//! the capsule that is not there yet may be in a moment.

pub mod server;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use simple_dns::rdata::{A, AAAA, PTR, RData};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, ResourceRecord};

/// What is behind the names of capsules.
const SUFFIX: &str = "fcap";
/// How long an answer may be kept, in seconds. A name may be another capsule's soon.
const TTL: u32 = 5;
/// Longest query: what fits into a packet that every IPv6 network passes whole.
pub const MAX_QUERY: usize = 1232;
/// Bytes of the header, RFC 1035, section 4.1.1.
const HEADER: usize = 12;
/// Most additional records of a query: an OPT record, and a signature.
const MAX_ADDITIONAL: u16 = 2;

/// The names and addresses of a network.
pub trait Zone {
    /// The addresses of the capsule with this name, whatever its letters' case.
    fn addresses(&self, name: &str) -> Option<(Ipv4Addr, Ipv6Addr)>;
    /// The name of the capsule with this address.
    fn name(&self, address: IpAddr) -> Option<String>;
    /// Whether the address is one of the network's.
    fn has(&self, address: IpAddr) -> bool;
}

/// What to do about a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Send this.
    Answer(Vec<u8>),
    /// Another name server knows.
    Forward,
    /// Nothing: it is no query.
    Nothing,
}

/// Answers a query, which may be any bytes.
pub fn answer(zone: &impl Zone, query: &[u8]) -> Reply {
    let Some(header) = query.first_chunk::<HEADER>() else { return Reply::Nothing };
    let half = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // Responses are not answered, or two servers could keep each other busy.
    if header[2] & 0x80 != 0 || query.len() > MAX_QUERY {
        return Reply::Nothing;
    }
    let fail = |code| failure(query, code).map_or(Reply::Nothing, Reply::Answer);
    // Before anything is parsed: memory is taken for as many records as are announced.
    if half(4) != 1 || half(6) != 0 || half(8) != 0 || half(10) > MAX_ADDITIONAL {
        return fail(RCODE::FormatError);
    }
    let Ok(packet) = Packet::parse(query) else { return fail(RCODE::FormatError) };
    if packet.opcode() != OPCODE::StandardQuery {
        return fail(RCODE::NotImplemented);
    }
    let Some(question) = packet.questions.first() else { return fail(RCODE::FormatError) };
    let ours = question.qclass == QCLASS::CLASS(CLASS::IN) || question.qclass == QCLASS::ANY;
    let found = match text(&question.qname) {
        Some(name) if ours => find(zone, &name),
        _ => return Reply::Forward,
    };
    let records = match found {
        Found::Elsewhere => return Reply::Forward,
        Found::Nothing => None,
        Found::Addresses(v4, v6) => Some(vec![RData::A(A::from(v4)), RData::AAAA(AAAA::from(v6))]),
        Found::Name(name) => match Name::new(&name) {
            Ok(name) => Some(vec![RData::PTR(PTR(name.into_owned()))]),
            Err(_) => None,
        },
    };
    let reply = reply(&packet, question, records);
    reply.build_bytes_vec_compressed().map_or_else(|_| fail(RCODE::ServerFailure), Reply::Answer)
}

fn reply<'a>(query: &Packet<'a>, question: &Question<'a>, records: Option<Vec<RData<'a>>>) -> Packet<'a> {
    let mut reply = Packet::new_reply(query.id());
    reply.set_flags(PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_AVAILABLE);
    if query.has_flags(PacketFlag::RECURSION_DESIRED) {
        reply.set_flags(PacketFlag::RECURSION_DESIRED);
    }
    if records.is_none() {
        *reply.rcode_mut() = RCODE::NameError;
    }
    let wanted = |data: &RData<'_>| match question.qtype {
        QTYPE::ANY => true,
        QTYPE::TYPE(kind) => kind == data.type_code(),
        _ => false,
    };
    let records = records.into_iter().flatten().filter(wanted);
    let name = &question.qname;
    reply.answers.extend(records.map(|data| ResourceRecord::new(name.clone(), CLASS::IN, TTL, data)));
    reply.questions.push(question.clone());
    reply
}

/// A reply that only says why there is no answer; nothing for what has no header.
pub fn failure(query: &[u8], code: RCODE) -> Option<Vec<u8>> {
    let header = query.first_chunk::<HEADER>()?;
    let mut reply = [0; HEADER];
    reply[..2].copy_from_slice(&header[..2]);
    // A response to this operation; recursion as it was asked for, and available.
    reply[2] = 0x80 | header[2] & 0x79;
    reply[3] = 0x80 | (code as u8) & 0x0f;
    Some(reply.to_vec())
}

/// The text of a name, if it has only what names of capsules and hosts have.
fn text(name: &Name<'_>) -> Option<String> {
    let mut text = String::new();
    for label in name.as_bytes() {
        if !label.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    Some(text)
}

enum Found {
    Addresses(Ipv4Addr, Ipv6Addr),
    Name(String),
    /// There is no such name.
    Nothing,
    /// It is not ours to say.
    Elsewhere,
}

fn find(zone: &impl Zone, name: &str) -> Found {
    if let Some((v4, v6)) = zone.addresses(name) {
        return Found::Addresses(v4, v6);
    }
    if let Some(address) = reverse(name) {
        return match zone.name(address) {
            Some(name) => Found::Name(name),
            None if zone.has(address) => Found::Nothing,
            None => Found::Elsewhere,
        };
    }
    let (bare, suffixed) = match name.rsplit_once('.') {
        Some((bare, SUFFIX)) => (bare, true),
        _ => (name, false),
    };
    if suffixed && let Some((v4, v6)) = zone.addresses(bare) {
        return Found::Addresses(v4, v6);
    }
    // Bare names are nobody's outside (RFC 6762 and common sense); the root is asked about often.
    let ours = suffixed || name == SUFFIX || !name.is_empty() && !name.contains('.');
    if ours { Found::Nothing } else { Found::Elsewhere }
}

/// The address that a name under `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let bytes: Vec<u8> = digits.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?;
        let [d, c, b, a] = bytes[..] else { return None };
        return Some(IpAddr::from([a, b, c, d]));
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut address = 0u128;
    let mut count = 0;
    for (at, digit) in digits.split('.').enumerate() {
        if at >= 32 || digit.len() != 1 {
            return None;
        }
        address |= u128::from(u8::from_str_radix(digit, 16).ok()?) << (4 * at);
        count = at + 1;
    }
    (count == 32).then(|| IpAddr::from(address.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use simple_dns::TYPE;

    const V4: Ipv4Addr = Ipv4Addr::new(10, 88, 1, 2);
    const V6: Ipv6Addr = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0x0a58, 0x0102);

    struct OneCapsule(&'static str);

    impl Zone for OneCapsule {
        fn addresses(&self, name: &str) -> Option<(Ipv4Addr, Ipv6Addr)> {
            name.eq_ignore_ascii_case(self.0).then_some((V4, V6))
        }
        fn name(&self, address: IpAddr) -> Option<String> {
            (address == IpAddr::V4(V4) || address == IpAddr::V6(V6)).then(|| self.0.to_owned())
        }
        fn has(&self, address: IpAddr) -> bool {
            match address {
                IpAddr::V4(address) => address.octets()[..2] == [10, 88],
                IpAddr::V6(address) => address.segments()[..4] == [0xfd88, 0, 0, 0],
            }
        }
    }

    fn query(name: &str, kind: QTYPE) -> Vec<u8> {
        let mut packet = Packet::new_query(0x1234);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        packet.questions.push(Question::new(Name::new(name).unwrap(), kind, QCLASS::CLASS(CLASS::IN), false));
        packet.build_bytes_vec().unwrap()
    }

    /// Reply code and answers; `None` for what is forwarded.
    fn ask(name: &str, kind: QTYPE) -> Option<(RCODE, Vec<String>)> {
        let query = query(name, kind);
        match answer(&OneCapsule("Db-1"), &query) {
            Reply::Answer(reply) => {
                let reply = Packet::parse(&reply).unwrap();
                assert_eq!(reply.id(), 0x1234);
                assert!(reply.has_flags(PacketFlag::RESPONSE | PacketFlag::RECURSION_DESIRED));
                assert_eq!(reply.questions[0].qname, Name::new(name).unwrap());
                let text = |record: &ResourceRecord<'_>| match &record.rdata {
                    RData::A(a) => Ipv4Addr::from(a.address).to_string(),
                    RData::AAAA(aaaa) => Ipv6Addr::from(aaaa.address).to_string(),
                    RData::PTR(PTR(name)) => name.to_string(),
                    other => panic!("{other:?}"),
                };
                Some((reply.rcode(), reply.answers.iter().map(text).collect()))
            }
            Reply::Forward => None,
            Reply::Nothing => panic!("no reply to {name}"),
        }
    }

    #[test]
    fn capsules_are_found_by_name() {
        let (v4, v6) = (V4.to_string(), V6.to_string());
        let yes = |list: &[&String]| Some((RCODE::NoError, list.iter().map(ToString::to_string).collect()));
        for name in ["db-1", "DB-1", "db-1.fcap", "Db-1.FCAP"] {
            assert_eq!(ask(name, TYPE::A.into()), yes(&[&v4]), "{name}");
            assert_eq!(ask(name, TYPE::AAAA.into()), yes(&[&v6]), "{name}");
            assert_eq!(ask(name, QTYPE::ANY), yes(&[&v4, &v6]), "{name}");
            // The name is there, and has no such record.
            assert_eq!(ask(name, TYPE::MX.into()), yes(&[]), "{name}");
            assert_eq!(ask(name, QTYPE::AXFR), yes(&[]), "{name}");
        }
    }

    #[test]
    fn names_of_nobody_are_denied_and_others_forwarded() {
        let denied = Some((RCODE::NameError, Vec::new()));
        for name in ["web", "db-1.web.fcap", "web.fcap", "fcap", "db-1.fcap.fcap"] {
            assert_eq!(ask(name, TYPE::A.into()), denied, "{name}");
        }
        for name in ["example.org", "db-1.example.org", ".", "1.2.3.4", "fcap.org"] {
            assert_eq!(ask(name, TYPE::A.into()), None, "{name}");
        }
    }

    #[test]
    fn addresses_have_names_too() {
        let name = Some((RCODE::NoError, vec!["Db-1".to_owned()]));
        assert_eq!(ask("2.1.88.10.in-addr.arpa", TYPE::PTR.into()), name);
        let nibbles: Vec<String> = V6
            .octets()
            .iter()
            .rev()
            .flat_map(|byte| [byte & 15, byte >> 4])
            .map(|n| format!("{n:x}"))
            .collect();
        assert_eq!(ask(&format!("{}.IP6.arpa", nibbles.join(".")), TYPE::PTR.into()), name);
        let denied = Some((RCODE::NameError, Vec::new()));
        assert_eq!(ask("3.1.88.10.in-addr.arpa", TYPE::PTR.into()), denied);
        for elsewhere in
            ["8.8.8.8.in-addr.arpa", "88.10.in-addr.arpa", "x.1.88.10.in-addr.arpa", "0.ip6.arpa"]
        {
            assert_eq!(ask(elsewhere, TYPE::PTR.into()), None, "{elsewhere}");
        }
    }

    #[test]
    fn what_is_no_query_is_refused_or_ignored() {
        let zone = OneCapsule("db");
        let good = query("db", TYPE::A.into());
        let code = |bytes: &[u8]| match answer(&zone, bytes) {
            Reply::Answer(reply) => Packet::parse(&reply).unwrap().rcode(),
            other => panic!("{other:?}"),
        };
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(code(&good), RCODE::NoError);
        // An update; two questions, none, an answer, many additional records; a name cut off.
        assert_eq!(code(&with(2, 5 << 3)), RCODE::NotImplemented);
        for (at, byte) in [(5, 2), (5, 0), (7, 1), (9, 1), (10, 255), (11, 3), (12, 60)] {
            assert_eq!(code(&with(at, byte)), RCODE::FormatError, "{at}");
        }
        assert_eq!(code(&good[..13]), RCODE::FormatError);
        assert_eq!(answer(&zone, &with(2, 0x80)), Reply::Nothing);
        assert_eq!(answer(&zone, &good[..11]), Reply::Nothing);
        assert_eq!(answer(&zone, &[good, vec![0; MAX_QUERY]].concat()), Reply::Nothing);
        // A name that points at itself.
        let mut endless = query("db", TYPE::A.into());
        endless.truncate(HEADER);
        endless.extend([0xc0, 12, 0, 1, 0, 1]);
        assert_eq!(code(&endless), RCODE::FormatError);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_shortly_or_not_at_all(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), plausible: bool) {
            if plausible && bytes.len() > HEADER {
                bytes[2] &= 0x01;
                let additional = bytes[11] % 3;
                bytes[4..HEADER].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, additional]);
            }
            if let Reply::Answer(reply) = answer(&OneCapsule("db"), &bytes) {
                prop_assert!(reply.len() <= 512);
                prop_assert_eq!(&reply[..2], &bytes[..2]);
                prop_assert!(reply[2] & 0x80 != 0);
            }
        }

        #[test]
        fn spoiled_queries_are_answered_shortly_or_not_at_all(at in 0usize..33, byte: u8) {
            let mut bytes = query("db-1.some.where.fcap", TYPE::A.into());
            bytes[at] = byte;
            if let Reply::Answer(reply) = answer(&OneCapsule("db-1"), &bytes) {
                prop_assert!(reply.len() <= 512 && reply[2] & 0x80 != 0);
            }
        }
    }
}
