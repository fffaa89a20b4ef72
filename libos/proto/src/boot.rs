//! The boot module: what `fcapd` tells a capsule at start of day.
//!
//! It travels as the domain's boot module (`start_info.mod_start`, `mod_len`),
//! because the kernel command line holds only 1,024 bytes. A capsule started by
//! another toolstack has no such module and takes its arguments from the command
//! line instead.
//!
//! Layout: [`MAGIC`] (8 bytes), then records `{ u32 kind, u32 len, len bytes,
//! zero padding to 8 }`, little endian, ended by [`Kind::End`]. Records of an
//! unknown kind are skipped, so that newer managers can start older capsules.

/// "fcapboot" in memory order.
pub const MAGIC: u64 = u64::from_le_bytes(*b"fcapboot");

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// No more records.
    End = 0,
    /// 32 bytes of entropy for this start alone.
    Seed = 1,
    /// One argument, UTF-8; in order, the first is the program's name.
    Arg = 2,
    /// One environment variable, UTF-8, `NAME=value`.
    Env = 3,
    /// The capsule's name, UTF-8.
    Name = 4,
}

/// The records of a boot module: kind as a number, and body.
///
/// Yields nothing for bytes that do not begin with [`MAGIC`], and stops at the
/// first record that does not fit.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Reads the module in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes.strip_prefix(&MAGIC.to_le_bytes()).unwrap_or(&[]) }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.rest.split_at_checked(8)?;
        let (kind, len) = head.split_at(4);
        let kind = u32::from_le_bytes(kind.try_into().ok()?);
        let len = u32::from_le_bytes(len.try_into().ok()?) as usize;
        let body = rest.get(..len)?;
        self.rest = rest.get(len.checked_next_multiple_of(8)?..).unwrap_or(&[]);
        (kind != Kind::End as u32).then_some((kind, body))
    }
}

/// Appends the magic, which comes before all records.
pub fn begin(module: &mut impl Extend<u8>) {
    module.extend(MAGIC.to_le_bytes());
}

/// Appends one record.
///
/// # Panics
/// If `body` is 4 GiB or longer.
pub fn record(module: &mut impl Extend<u8>, kind: Kind, body: &[u8]) {
    let len = u32::try_from(body.len()).expect("a record's body is under 4 GiB");
    module.extend((kind as u32).to_le_bytes());
    module.extend(len.to_le_bytes());
    module.extend(body.iter().copied());
    module.extend(core::iter::repeat_n(0, body.len().next_multiple_of(8) - body.len()));
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn records_come_back_as_written(bodies in proptest::collection::vec(any::<Vec<u8>>(), 0..20)) {
            let mut module = Vec::new();
            begin(&mut module);
            for body in &bodies {
                record(&mut module, Kind::Arg, body);
            }
            record(&mut module, Kind::End, &[]);
            let read: Vec<_> = Records::new(&module).collect();
            prop_assert_eq!(read.len(), bodies.len());
            for ((kind, body), expected) in read.into_iter().zip(&bodies) {
                prop_assert_eq!(kind, Kind::Arg as u32);
                prop_assert_eq!(body, &expected[..]);
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let mut module = MAGIC.to_le_bytes().to_vec();
            module.extend(bytes);
            for (_, body) in Records::new(&module) {
                prop_assert!(body.len() <= module.len());
            }
        }
    }
}
