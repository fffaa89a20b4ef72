//! What a machine needs to join.

use std::fmt;
use std::str::FromStr;

use crate::fingerprint::{Fingerprint, parse_hex};

/// Begins a token, and tells its version.
const PREFIX: &str = "fcap1";
/// Longest host with its port.
const MAX_ADDRESS: usize = 300;

/// Lets one machine join a cluster: where its controller is, by what it is known, and the secret
/// that says that the machine may.
///
/// As a text it is `fcap1.SECRET.FINGERPRINT.HOST:PORT`.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: [u8; 16],
    /// Of the authority's certificate.
    pub authority: Fingerprint,
    /// Host and port of the controller.
    controller: String,
}

/// A text that is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no join token: {0}; `fcap node token` makes one")]
pub struct BadToken(&'static str);

impl JoinToken {
    /// A new one for a controller that is reached there, "host:port".
    ///
    /// # Errors
    /// When the address is none.
    pub fn new(authority: Fingerprint, controller: &str) -> Result<Self, BadToken> {
        check_address(controller)?;
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).map_err(|_| BadToken("the system gives no random bytes"))?;
        Ok(Self { secret, authority, controller: controller.to_owned() })
    }

    /// Host and port of the controller.
    pub fn controller(&self) -> &str {
        &self.controller
    }

    /// What the machine shows to the controller.
    pub fn secret(&self) -> String {
        self.secret.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    }

    /// What the controller keeps: nobody who reads it can join with it.
    pub fn digest(&self) -> Fingerprint {
        Fingerprint::of(&self.secret)
    }

    /// The same of a secret that somebody shows; nothing if it is none.
    pub fn digest_of(secret: &str) -> Option<Fingerprint> {
        parse_hex::<16>(secret).map(|secret| Fingerprint::of(&secret))
    }
}

fn check_address(address: &str) -> Result<(), BadToken> {
    let bad = BadToken("its address is not host:port");
    let (host, port) = address.rsplit_once(':').ok_or(bad.clone())?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let plain = match bracketed {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')),
    };
    let is_port =
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|it| it > 0);
    if plain && is_port && address.len() <= MAX_ADDRESS { Ok(()) } else { Err(bad) }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}.{}", self.secret(), self.authority, self.controller)
    }
}

/// Without the secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { secret: _, authority, controller } = self;
        let mut shown = f.debug_struct("JoinToken");
        shown.field("authority", authority).field("controller", controller).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let mut parts = text.trim().splitn(4, '.');
        if parts.next() != Some(PREFIX) {
            return Err(BadToken("it does not begin with fcap1"));
        }
        let mut next = || parts.next().ok_or(BadToken("it is cut off"));
        let secret = parse_hex(next()?).ok_or(BadToken("its secret is not 32 hex digits"))?;
        let authority =
            Fingerprint::parse(next()?).ok_or(BadToken("its fingerprint is not 64 hex digits"))?;
        let controller = next()?.to_owned();
        check_address(&controller)?;
        Ok(Self { secret, authority, controller })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_tells_its_secret_to_nobody_but_who_asks() {
        let token = JoinToken::new(Fingerprint([7; 32]), "10.0.0.1:7071").unwrap();
        assert!(!format!("{token:?}").contains(&token.secret()));
        assert_eq!(JoinToken::digest_of(&token.secret()), Some(token.digest()));
        assert_eq!(JoinToken::digest_of("beef"), None);
    }

    #[test]
    fn addresses_are_host_and_port() {
        for ok in ["a:1", "10.0.0.1:7071", "[::1]:65535", "node-1.example:80"] {
            assert_eq!(check_address(ok), Ok(()), "{ok}");
        }
        for bad in [
            "",
            "a",
            ":1",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a b:1",
            "[::g]:1",
            "::1:1",
            "http://a:1",
            "a/b:1",
        ] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn tokens_are_read_back(secret: [u8; 16], authority: [u8; 32], host in "[a-z0-9][a-z0-9.-]{0,40}", port in 1u16..) {
            let controller = format!("{host}:{port}");
            let token = JoinToken { secret, authority: Fingerprint(authority), controller };
            prop_assert_eq!(format!(" {token}\n").parse::<JoinToken>().unwrap(), token);
        }

        #[test]
        fn nothing_that_is_cut_off_is_a_token(secret: [u8; 16], authority: [u8; 32], at in 0usize..102) {
            let token = JoinToken { secret, authority: Fingerprint(authority), controller: "c:1".into() };
            let text = token.to_string();
            prop_assert!(text[..at].parse::<JoinToken>().is_err());
        }

        #[test]
        fn any_text_is_a_token_or_refused(text in "\\PC{0,200}") {
            if let Ok(token) = text.parse::<JoinToken>() {
                prop_assert!(token.to_string().eq_ignore_ascii_case(text.trim()));
            }
        }
    }
}
