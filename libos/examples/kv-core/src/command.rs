//! What each command does.
//!
//! Answers and errors are worded as those of Redis, whose clients look at them.

use crate::{
    glob,
    memory::{Buffer, OutOfMemory},
    reply,
    request::{Command, integer, shown},
    store::{CountError, Deadline, MAX_KEY, Store},
};
use alloc::format;

/// Bytes that a pattern may have: it is compared with each key.
const MAX_PATTERN: usize = 1024;

/// What the connection does after a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Takes the next one.
    Continue,
    /// Ends, as the client wishes.
    Quit,
}

/// What there is to know of the server besides its store.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Commands so far.
    pub commands: u64,
    /// Connections.
    pub clients: u32,
    /// Seconds since it started.
    pub uptime: u64,
}

/// Why a command does nothing; each is told to the client.
enum Refusal<'a> {
    Arguments,
    Unknown,
    Syntax,
    NotInteger,
    Expiry,
    Memory,
    Key,
    Pattern,
    Database,
    Other(&'a str),
}

impl From<OutOfMemory> for Refusal<'_> {
    fn from(OutOfMemory: OutOfMemory) -> Self {
        Self::Memory
    }
}

type Done<'a> = Result<(), Refusal<'a>>;

/// Does what `command` says, and appends the answer to `out`.
pub fn execute(store: &mut Store, figures: &Figures, command: Command<'_>, out: &mut Buffer) -> Flow {
    let Some(name) = command.get(0) else { return Flow::Continue };
    let mut upper = [0; 8];
    let upper = match upper.get_mut(..name.len()) {
        Some(upper) => {
            upper.copy_from_slice(name);
            upper.make_ascii_uppercase();
            &*upper
        }
        None => &[],
    };
    let start = out.bytes().len();
    let done = run(store, figures, upper, command, out);
    // An answer is given as a whole, or not at all.
    let done =
        if out.has_overflowed() { Err(Refusal::Other("OOM the answer has no room in memory")) } else { done };
    if let Err(refusal) = done {
        out.truncate(start);
        refuse(&refusal, command, out);
    }
    if upper == b"QUIT" { Flow::Quit } else { Flow::Continue }
}

fn run<'a>(
    store: &mut Store,
    figures: &Figures,
    name: &[u8],
    command: Command<'a>,
    out: &mut Buffer,
) -> Done<'a> {
    let arg = |at: usize| command.get(at).ok_or(Refusal::Arguments);
    let key = |at: usize| arg(at).and_then(checked_key);
    let exactly = |count: usize| if command.count() == count { Ok(()) } else { Err(Refusal::Arguments) };
    match name {
        b"GET" => {
            exactly(2)?;
            bulk_or_null(out, store.get(&command[1]));
        }
        b"SET" => set(store, command, out)?,
        b"PING" => match command.count() {
            1 => reply::simple(out, "PONG"),
            2 => reply::bulk(out, &command[1]),
            _ => return Err(Refusal::Arguments),
        },
        b"ECHO" => {
            exactly(2)?;
            reply::bulk(out, &command[1]);
        }
        b"DEL" | b"UNLINK" | b"EXISTS" => {
            key(1)?;
            let keys = command.iter_from(1);
            let count = if name == b"EXISTS" {
                keys.filter(|key| store.contains(key)).count()
            } else {
                keys.filter(|key| store.remove(key)).count()
            };
            reply::integer(out, count as i64);
        }
        b"INCR" | b"DECR" => {
            exactly(2)?;
            add(store, key(1)?, if name == b"INCR" { 1 } else { -1 }, out)?;
        }
        b"INCRBY" | b"DECRBY" => {
            exactly(3)?;
            let by = integer(arg(2)?).ok_or(Refusal::NotInteger)?;
            let by = if name == b"INCRBY" { Some(by) } else { by.checked_neg() };
            add(store, key(1)?, by.ok_or(Refusal::Other("ERR decrement would overflow"))?, out)?;
        }
        b"APPEND" => {
            exactly(3)?;
            let len = store.append(key(1)?, &command[2])?;
            reply::integer(out, len as i64);
        }
        b"STRLEN" => {
            exactly(2)?;
            reply::integer(out, store.get(&command[1]).map_or(0, <[u8]>::len) as i64);
        }
        b"MGET" => {
            arg(1)?;
            reply::array(out, command.count() - 1);
            command.iter_from(1).for_each(|key| bulk_or_null(out, store.get(key)));
        }
        b"MSET" => mset(store, command, out)?,
        b"EXPIRE" | b"PEXPIRE" => {
            exactly(3)?;
            let unit = if name == b"EXPIRE" { 1000 } else { 1 };
            expire(store, &command[1], &command[2], unit, out)?;
        }
        b"PERSIST" => {
            exactly(2)?;
            let had_end = store.deadline(&command[1]).flatten().is_some();
            store.expire(&command[1], None)?;
            reply::integer(out, had_end.into());
        }
        b"TTL" | b"PTTL" => {
            exactly(2)?;
            let left = match store.deadline(&command[1]) {
                None => -2,
                Some(None) => -1,
                Some(Some(end)) => {
                    let left = end.saturating_sub(store.now());
                    (if name == b"TTL" { left.div_ceil(1000) } else { left }) as i64
                }
            };
            reply::integer(out, left);
        }
        b"TYPE" => {
            exactly(2)?;
            reply::simple(out, if store.contains(&command[1]) { "string" } else { "none" });
        }
        b"KEYS" => {
            exactly(2)?;
            keys(store, &command[1], out)?;
        }
        b"DBSIZE" => {
            exactly(1)?;
            reply::integer(out, store.count() as i64);
        }
        b"FLUSHALL" | b"FLUSHDB" => {
            store.clear();
            reply::simple(out, "OK");
        }
        b"SELECT" => {
            exactly(2)?;
            match integer(&command[1]).ok_or(Refusal::NotInteger)? {
                0 => reply::simple(out, "OK"),
                _ => return Err(Refusal::Database),
            }
        }
        b"CONFIG" => config(store, command, out)?,
        b"INFO" => info(store, figures, out),
        // Clients ask for it to help people type; there is nothing they need.
        b"COMMAND" => reply::array(out, 0),
        b"QUIT" => reply::simple(out, "OK"),
        _ => return Err(Refusal::Unknown),
    }
    Ok(())
}

fn refuse(refusal: &Refusal<'_>, command: Command<'_>, out: &mut Buffer) {
    let name = shown(&command[0]);
    let text = match refusal {
        Refusal::Arguments => {
            &*format!("ERR wrong number of arguments for '{}' command", name.to_ascii_lowercase())
        }
        Refusal::Unknown => &format!("ERR unknown command '{name}'"),
        Refusal::Syntax => "ERR syntax error",
        Refusal::NotInteger => "ERR value is not an integer or out of range",
        Refusal::Expiry => &format!("ERR invalid expire time in '{}' command", name.to_ascii_lowercase()),
        Refusal::Memory => "OOM command not allowed when used memory > 'maxmemory'",
        Refusal::Key => &format!("ERR key larger than {MAX_KEY} bytes"),
        Refusal::Pattern => &format!("ERR pattern larger than {MAX_PATTERN} bytes"),
        Refusal::Database => "ERR DB index is out of range",
        Refusal::Other(text) => text,
    };
    reply::error(out, text);
}

fn checked_key(key: &[u8]) -> Result<&[u8], Refusal<'static>> {
    if key.len() > MAX_KEY { Err(Refusal::Key) } else { Ok(key) }
}

fn bulk_or_null(out: &mut Buffer, value: Option<&[u8]>) {
    match value {
        Some(value) => reply::bulk(out, value),
        None => reply::null(out),
    }
}

/// The end of a key that is to live for `amount` units of `unit` milliseconds.
fn end(store: &Store, amount: &[u8], unit: i64) -> Result<i64, Refusal<'static>> {
    let amount = integer(amount).ok_or(Refusal::NotInteger)?;
    let ms = amount.checked_mul(unit).ok_or(Refusal::Expiry)?;
    ms.checked_add_unsigned(store.now()).ok_or(Refusal::Expiry)
}

/// `SET key value [EX seconds | PX milliseconds | KEEPTTL] [NX | XX]`
fn set<'a>(store: &mut Store, command: Command<'a>, out: &mut Buffer) -> Done<'a> {
    let [key, value] = [command.get(1), command.get(2)].map(|arg| arg.ok_or(Refusal::Arguments));
    let (key, value) = (checked_key(key?)?, value?);
    let mut deadline = None;
    let mut must_exist = None;
    let mut options = command.iter_from(3);
    while let Some(option) = options.next() {
        let is = |name: &str| option.eq_ignore_ascii_case(name.as_bytes());
        if (is("NX") || is("XX")) && must_exist.is_none() {
            must_exist = Some(is("XX"));
        } else if is("KEEPTTL") && deadline.is_none() {
            deadline = Some(Deadline::Keep);
        } else if (is("EX") || is("PX")) && deadline.is_none() {
            let amount = options.next().ok_or(Refusal::Syntax)?;
            let end = end(store, amount, if is("EX") { 1000 } else { 1 })?;
            let end = u64::try_from(end).ok().filter(|&end| end > store.now()).ok_or(Refusal::Expiry)?;
            deadline = Some(Deadline::At(end));
        } else {
            return Err(Refusal::Syntax);
        }
    }
    if must_exist.is_some_and(|must| store.contains(key) != must) {
        reply::null(out);
        return Ok(());
    }
    store.set(key, value, deadline.unwrap_or(Deadline::Never))?;
    reply::simple(out, "OK");
    Ok(())
}

fn add<'a>(store: &mut Store, key: &[u8], by: i64, out: &mut Buffer) -> Done<'a> {
    match store.add(key, by) {
        Ok(sum) => reply::integer(out, sum),
        Err(CountError::NotInteger) => return Err(Refusal::NotInteger),
        Err(CountError::Overflow) => {
            return Err(Refusal::Other("ERR increment or decrement would overflow"));
        }
        Err(CountError::OutOfMemory(error)) => return Err(error.into()),
    }
    Ok(())
}

/// `MSET key value [key value ...]`; when memory is short, some may be set.
fn mset<'a>(store: &mut Store, command: Command<'a>, out: &mut Buffer) -> Done<'a> {
    if command.count() < 3 || command.count().is_multiple_of(2) {
        return Err(Refusal::Arguments);
    }
    let pairs = || command.iter_from(1).step_by(2).zip(command.iter_from(2).step_by(2));
    pairs().try_for_each(|(key, _)| checked_key(key).map(|_| ()))?;
    for (key, value) in pairs() {
        store.set(key, value, Deadline::Never)?;
    }
    reply::simple(out, "OK");
    Ok(())
}

/// A time that has passed removes the key.
fn expire<'a>(store: &mut Store, key: &[u8], amount: &[u8], unit: i64, out: &mut Buffer) -> Done<'a> {
    let end = end(store, amount, unit)?;
    let found = match u64::try_from(end) {
        Ok(end) if end > store.now() => store.expire(key, Some(end))?,
        _ => store.remove(key),
    };
    reply::integer(out, found.into());
    Ok(())
}

fn keys<'a>(store: &Store, pattern: &[u8], out: &mut Buffer) -> Done<'a> {
    if pattern.len() > MAX_PATTERN {
        return Err(Refusal::Pattern);
    }
    let fitting = || store.keys().filter(|key| glob::fits(pattern, key));
    reply::array(out, fitting().count());
    fitting().for_each(|key| reply::bulk(out, key));
    Ok(())
}

/// `CONFIG GET pattern`
fn config<'a>(store: &Store, command: Command<'a>, out: &mut Buffer) -> Done<'a> {
    let pattern = match command.count() {
        3 if command[1].eq_ignore_ascii_case(b"GET") => command[2].to_ascii_lowercase(),
        _ => return Err(Refusal::Other("ERR only CONFIG GET with one pattern is there")),
    };
    if pattern.len() > MAX_PATTERN {
        return Err(Refusal::Pattern);
    }
    let limit = format!("{}", store.memory().limit());
    let settings = [
        ("maxmemory", &*limit),
        ("maxmemory-policy", "noeviction"),
        ("databases", "1"),
        ("save", ""),
        ("appendonly", "no"),
    ];
    let fitting = || settings.iter().filter(|(name, _)| glob::fits(&pattern, name.as_bytes()));
    reply::array(out, fitting().count() * 2);
    for (name, value) in fitting() {
        reply::bulk(out, name.as_bytes());
        reply::bulk(out, value.as_bytes());
    }
    Ok(())
}

fn info(store: &mut Store, figures: &Figures, out: &mut Buffer) {
    let keys = store.count();
    let text = format!(
        "# Server\r\nserver_name:fcap-kv\r\nuptime_in_seconds:{}\r\n\
         # Clients\r\nconnected_clients:{}\r\n\
         # Memory\r\nused_memory:{}\r\nmaxmemory:{}\r\nmaxmemory_policy:noeviction\r\n\
         # Stats\r\ntotal_commands_processed:{}\r\nexpired_keys:{}\r\n\
         # Keyspace\r\ndb0:keys={keys},expires={}\r\n",
        figures.uptime,
        figures.clients,
        store.memory().used(),
        store.memory().limit(),
        figures.commands,
        store.expired(),
        store.ending(),
    );
    reply::bulk(out, text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        memory::Memory,
        request::{MAX_ARGS, Parser},
    };
    use alloc::{string::String, vec, vec::Vec};
    use proptest::prelude::*;

    struct Server {
        memory: Memory,
        store: Store,
        parser: Parser,
    }

    impl Server {
        fn new(limit: usize) -> Self {
            let memory = Memory::new(limit);
            Self { store: Store::new(&memory, (3, 4)), memory, parser: Parser::new(1 << 20) }
        }

        fn args(&mut self, args: &[&[u8]]) -> Vec<u8> {
            let mut input = format!("*{}\r\n", args.len()).into_bytes();
            for arg in args {
                input.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
                input.extend_from_slice(arg);
                input.extend_from_slice(b"\r\n");
            }
            let mut out = Buffer::new(&self.memory);
            let command = self.parser.parse(&input).unwrap().unwrap();
            execute(&mut self.store, &Figures::default(), command, &mut out);
            out.bytes().to_vec()
        }

        /// The answer to a line of words.
        fn ask(&mut self, line: &str) -> String {
            let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            String::from_utf8(self.args(&words)).unwrap()
        }
    }

    /// Lines and their answers, one after the other.
    fn check(talk: &[(&str, &str)]) {
        let mut server = Server::new(1 << 20);
        for (line, answer) in talk {
            assert_eq!(server.ask(line), format!("{answer}\r\n"), "{line}");
        }
    }

    #[test]
    fn values_are_set_read_and_removed() {
        check(&[
            ("PING", "+PONG"),
            ("ping hello", "$5\r\nhello"),
            ("ECHO a", "$1\r\na"),
            ("GET a", "$-1"),
            ("SET a 1", "+OK"),
            ("get a", "$1\r\n1"),
            ("MSET b 2 c 3", "+OK"),
            ("MGET a x c", "*3\r\n$1\r\n1\r\n$-1\r\n$1\r\n3"),
            ("EXISTS a b x a", ":3"),
            ("DBSIZE", ":3"),
            ("APPEND a 23", ":3"),
            ("APPEND new x", ":1"),
            ("STRLEN a", ":3"),
            ("STRLEN x", ":0"),
            ("TYPE a", "+string"),
            ("DEL a b x", ":2"),
            ("KEYS n*", "*1\r\n$3\r\nnew"),
            ("FLUSHALL", "+OK"),
            ("DBSIZE", ":0"),
        ]);
    }

    #[test]
    fn set_takes_conditions() {
        check(&[
            ("SET a 1 XX", "$-1"),
            ("SET a 1 NX", "+OK"),
            ("SET a 2 nx", "$-1"),
            ("SET a 3 xx px 100000", "+OK"),
            ("TTL a", ":100"),
            ("SET a 4 KEEPTTL", "+OK"),
            ("PTTL a", ":100000"),
            ("SET a 5 EX 10 PX 10", "-ERR syntax error"),
            ("SET a 5 NX XX", "-ERR syntax error"),
            ("SET a 5 EX", "-ERR syntax error"),
            ("SET a 5 EX 0", "-ERR invalid expire time in 'set' command"),
            ("SET a 5 EX -1", "-ERR invalid expire time in 'set' command"),
            ("SET a 5 EX 9223372036854775807", "-ERR invalid expire time in 'set' command"),
            ("SET a 5 EX x", "-ERR value is not an integer or out of range"),
            ("GET a", "$1\r\n4"),
        ]);
    }

    #[test]
    fn numbers_are_counted() {
        check(&[
            ("INCR n", ":1"),
            ("DECR n", ":0"),
            ("DECRBY n 5", ":-5"),
            ("INCRBY n 10", ":5"),
            ("INCRBY n x", "-ERR value is not an integer or out of range"),
            ("DECRBY n -9223372036854775808", "-ERR decrement would overflow"),
            ("INCRBY n 9223372036854775807", "-ERR increment or decrement would overflow"),
            ("SET s text", "+OK"),
            ("INCR s", "-ERR value is not an integer or out of range"),
        ]);
    }

    #[test]
    fn keys_end() {
        let mut server = Server::new(1 << 20);
        server.ask("SET a 1");
        assert_eq!(server.ask("TTL a"), ":-1\r\n");
        assert_eq!(server.ask("TTL x"), ":-2\r\n");
        assert_eq!(server.ask("EXPIRE x 5"), ":0\r\n");
        assert_eq!(server.ask("EXPIRE a 5"), ":1\r\n");
        assert_eq!(server.ask("PERSIST a"), ":1\r\n");
        assert_eq!(server.ask("PERSIST a"), ":0\r\n");
        assert_eq!(server.ask("PEXPIRE a 5000"), ":1\r\n");
        server.store.advance(4001);
        assert_eq!(server.ask("TTL a"), ":1\r\n");
        server.store.advance(5000);
        assert_eq!(server.ask("GET a"), "$-1\r\n");
        assert_eq!(server.ask("SET a 2 NX"), "+OK\r\n");
        assert_eq!(server.ask("EXPIRE a -1"), ":1\r\n");
        assert_eq!(server.ask("EXISTS a"), ":0\r\n");
    }

    #[test]
    fn what_clients_ask_at_first_is_answered() {
        check(&[
            ("CONFIG GET save", "*2\r\n$4\r\nsave\r\n$0\r\n"),
            ("CONFIG GET appendonly", "*2\r\n$10\r\nappendonly\r\n$2\r\nno"),
            ("CONFIG GET MAXMEMORY", "*2\r\n$9\r\nmaxmemory\r\n$7\r\n1048576"),
            ("CONFIG GET none", "*0"),
            ("CONFIG SET save x", "-ERR only CONFIG GET with one pattern is there"),
            ("COMMAND DOCS", "*0"),
            ("SELECT 0", "+OK"),
            ("SELECT 1", "-ERR DB index is out of range"),
        ]);
        assert!(Server::new(1 << 20).ask("INFO").contains("db0:keys=0,expires=0\r\n"));
    }

    #[test]
    fn what_is_no_command_is_told_so() {
        check(&[
            ("NOPE a", "-ERR unknown command 'NOPE'"),
            ("GET", "-ERR wrong number of arguments for 'get' command"),
            ("GET a b", "-ERR wrong number of arguments for 'get' command"),
            ("MSET a", "-ERR wrong number of arguments for 'mset' command"),
            ("MSET a b c", "-ERR wrong number of arguments for 'mset' command"),
            ("DEL", "-ERR wrong number of arguments for 'del' command"),
        ]);
        let mut server = Server::new(1 << 20);
        let long = server.args(&[&[b'x'; 100], b"\r\n+OK"]);
        assert_eq!(long.iter().filter(|&&byte| byte == b'\n').count(), 1);
        assert_eq!(server.args(&[b"a\r\n+OK"]), b"-ERR unknown command 'a  +OK'\r\n");
    }

    #[test]
    fn keys_and_patterns_are_bounded() {
        let mut server = Server::new(1 << 24);
        let long = vec![b'k'; MAX_KEY + 1];
        for command in [&b"SET"[..], b"MSET", b"APPEND"] {
            assert_eq!(server.args(&[command, &long, b"v"]), b"-ERR key larger than 65536 bytes\r\n");
        }
        assert_eq!(server.args(&[b"KEYS", &long]), b"-ERR pattern larger than 1024 bytes\r\n");
        assert_eq!(server.args(&[b"GET", &long]), b"$-1\r\n");
    }

    #[test]
    fn a_full_store_says_so() {
        let mut server = Server::new(20_000);
        let full = b"-OOM command not allowed when used memory > 'maxmemory'\r\n";
        assert_eq!(server.args(&[b"SET", b"a", &[0; 20_000]]), full);
        assert_eq!(server.args(&[b"APPEND", b"a", &[0; 20_000]]), full);
        assert_eq!(server.ask("SET a small"), "+OK\r\n");
    }

    #[test]
    fn an_answer_that_has_no_room_is_an_error_and_nothing_else() {
        let mut server = Server::new(30_000);
        assert_eq!(server.args(&[b"SET", b"a", &[b'x'; 8000]]), b"+OK\r\n");
        let oom = b"-OOM the answer has no room in memory\r\n";
        assert_eq!(server.args(&[b"MGET", b"a", b"a", b"a", b"a", b"a"]), oom);
        assert_eq!(server.args(&[b"STRLEN", b"a"]), b":8000\r\n");
    }

    #[test]
    fn as_many_arguments_as_there_may_be_are_taken() {
        let mut server = Server::new(1 << 24);
        let mut args: Vec<&[u8]> = vec![b"EXISTS"];
        args.resize(MAX_ARGS, b"a");
        assert_eq!(server.args(&args), b":0\r\n");
    }

    proptest! {
        #[test]
        fn every_command_gets_one_answer(
            name in prop_oneof![
                Just("SET"), Just("GET"), Just("MGET"), Just("MSET"), Just("DEL"), Just("EXPIRE"),
                Just("INCRBY"), Just("APPEND"), Just("KEYS"), Just("CONFIG"), Just("TTL"), Just("INFO"),
                Just("SELECT"), Just("PERSIST"), Just("FLUSHALL"), Just("\u{7f}\r\n"),
            ],
            args in proptest::collection::vec("[a-c0-9*\\r\\n]{0,3}|EX|NX|GET", 0..5),
        ) {
            let mut server = Server::new(1 << 20);
            let args: Vec<&[u8]> =
                core::iter::once(name).chain(args.iter().map(String::as_str)).map(str::as_bytes).collect();
            let answer = server.args(&args);
            prop_assert!(matches!(answer[0], b'+' | b'-' | b':' | b'$' | b'*'));
            prop_assert!(answer.ends_with(b"\r\n"));
            if answer[0] == b'-' {
                prop_assert_eq!(answer.iter().filter(|&&byte| byte == b'\n').count(), 1);
            }
        }
    }
}
