//! Identity of a capsule.

use std::fmt;
use std::str::FromStr;

/// Identity of a capsule for all its life, on whatever node; also the handle of its domain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CapsuleId(pub [u8; 16]);

impl CapsuleId {
    /// A new one, which nobody else has.
    ///
    /// # Panics
    /// If the system has no randomness to give.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the kernel gives randomness");
        Self(bytes)
    }
}

impl fmt::Display for CapsuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CapsuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no id: not 32 lower-case hex digits.
#[derive(Debug, thiserror::Error)]
#[error("a capsule id is 32 lower-case hex digits")]
pub struct NotAnId;

impl FromStr for CapsuleId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(NotAnId);
        }
        u128::from_str_radix(text, 16).map(|n| Self(n.to_be_bytes())).map_err(|_| NotAnId)
    }
}

impl serde::Serialize for CapsuleId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for CapsuleId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_id_comes_back_from_its_text(bytes: [u8; 16]) {
            prop_assert_eq!(CapsuleId(bytes).to_string().parse::<CapsuleId>().unwrap().0, bytes);
        }

        #[test]
        fn other_text_is_refused_without_panic(text: String) {
            prop_assert_eq!(text.parse::<CapsuleId>().is_ok(), text.len() == 32
                && text.bytes().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f')));
        }
    }
}
