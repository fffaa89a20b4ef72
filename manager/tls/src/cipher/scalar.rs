//! ChaCha20 and Poly1305 (RFC 8439) with plain arithmetic of 32 and 64 bits.
//!
//! Nothing but additions, products, exclusive ors, rotations and shifts by fixed amounts: no
//! table, no branch and no address depends on a secret. What is done for each block is written
//! twice, here and as [`assembly`](super::assembly).

use std::slice;

use super::assembly::Assembly;

/// Bytes of a block of ChaCha20.
pub(super) const BLOCK: usize = 64;
/// Bytes of a block of Poly1305.
pub(super) const PART: usize = 16;
/// Bytes of a tag.
pub(super) const TAG: usize = 16;
/// "expand 32-byte k", section 2.3.
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// A key of ChaCha20-Poly1305.
pub(super) struct Key([u32; 8]);

impl Drop for Key {
    fn drop(&mut self) {
        self.0 = [0; 8];
        // Otherwise the store goes, because nobody reads it.
        std::hint::black_box(&mut self.0);
    }
}

impl Key {
    pub(super) fn new(bytes: &[u8; 32]) -> Self {
        Self(words(bytes))
    }

    /// Encrypts in place; returns the tag.
    pub(super) fn seal(&self, nonce: &[u8; 12], header: &[u8], content: &mut [u8]) -> [u8; TAG] {
        self.xor_key_stream(nonce, 1, content);
        self.tag(nonce, header, content)
    }

    /// Decrypts in place; leaves the content as it is and returns `false` when the tag is wrong.
    #[must_use]
    pub(super) fn open(&self, nonce: &[u8; 12], header: &[u8], content: &mut [u8], tag: &[u8; TAG]) -> bool {
        // All bits are looked at, wherever the first difference is.
        let difference = u128::from_le_bytes(self.tag(nonce, header, content)) ^ u128::from_le_bytes(*tag);
        let right = difference == 0;
        if right {
            self.xor_key_stream(nonce, 1, content);
        }
        right
    }

    fn state(&self, nonce: &[u8; 12], counter: u32) -> [u32; 16] {
        let mut state = [0; 16];
        state[..4].copy_from_slice(&CONSTANTS);
        state[4..12].copy_from_slice(&self.0);
        state[12] = counter;
        state[13..].copy_from_slice(&words::<3>(nonce));
        state
    }

    /// Section 2.4.
    fn xor_key_stream(&self, nonce: &[u8; 12], counter: u32, content: &mut [u8]) {
        let mut state = self.state(nonce, counter);
        let (blocks, rest) = content.as_chunks_mut();
        xor(Assembly::find(), &mut state, blocks);
        if !rest.is_empty() {
            let mut last = [0; BLOCK];
            last[..rest.len()].copy_from_slice(rest);
            xor(Assembly::find(), &mut state, slice::from_mut(&mut last));
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }

    /// Section 2.8: of header and content, each filled up to a multiple of 16, and their lengths.
    fn tag(&self, nonce: &[u8; 12], header: &[u8], content: &[u8]) -> [u8; TAG] {
        let mut once = [0; 32];
        self.xor_key_stream(nonce, 0, &mut once);
        let mut poly = Poly::new(&once);
        poly.padded(header);
        poly.padded(content);
        let mut lengths = [0; PART];
        lengths[..8].copy_from_slice(&(header.len() as u64).to_le_bytes());
        lengths[8..].copy_from_slice(&(content.len() as u64).to_le_bytes());
        poly.padded(&lengths);
        poly.finish()
    }
}

/// Little-endian words; `bytes` has four for each.
fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let words = bytes.as_chunks::<4>().0;
    std::array::from_fn(|index| u32::from_le_bytes(words[index]))
}

/// Exclusive or of content and key stream from the state's block on.
fn xor(assembly: Option<Assembly>, state: &mut [u32; 16], content: &mut [[u8; BLOCK]]) {
    if let Some(assembly) = assembly {
        return assembly.xor(state, content);
    }
    for content in content {
        let stream = block(state);
        state[12] = state[12].wrapping_add(1);
        for (bytes, word) in content.as_chunks_mut::<4>().0.iter_mut().zip(stream) {
            *bytes = (u32::from_le_bytes(*bytes) ^ word).to_le_bytes();
        }
    }
}

/// Section 2.3.
fn block(state: &[u32; 16]) -> [u32; 16] {
    let mut x = *state;
    for _ in 0..10 {
        for column in 0..4 {
            quarter(&mut x, [column, 4 + column, 8 + column, 12 + column]);
        }
        for column in 0..4 {
            quarter(&mut x, [column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4]);
        }
    }
    std::array::from_fn(|index| x[index].wrapping_add(state[index]))
}

/// Section 2.1.
fn quarter(x: &mut [u32; 16], [a, b, c, d]: [usize; 4]) {
    x[a] = x[a].wrapping_add(x[b]);
    x[d] = (x[d] ^ x[a]).rotate_left(16);
    x[c] = x[c].wrapping_add(x[d]);
    x[b] = (x[b] ^ x[c]).rotate_left(12);
    x[a] = x[a].wrapping_add(x[b]);
    x[d] = (x[d] ^ x[a]).rotate_left(8);
    x[c] = x[c].wrapping_add(x[d]);
    x[b] = (x[b] ^ x[c]).rotate_left(7);
}

/// Section 2.5, in limbs of 44, 44 and 42 bits.
struct Poly {
    r: [u64; 3],
    h: [u64; 3],
    /// What is added at the end.
    pad: u128,
}

const LOW_44: u64 = (1 << 44) - 1;
const LOW_42: u64 = (1 << 42) - 1;

impl Poly {
    fn new(key: &[u8; 32]) -> Self {
        let [r, pad] = key.as_chunks::<PART>().0 else { unreachable!("32 bytes are two numbers") };
        let r = u128::from_le_bytes(*r) & 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff;
        Self { r: limbs(r), h: [0; 3], pad: u128::from_le_bytes(*pad) }
    }

    /// Bytes filled up with zeros to whole blocks.
    fn padded(&mut self, bytes: &[u8]) {
        let (blocks, rest) = bytes.as_chunks();
        self.blocks(Assembly::find(), blocks);
        if !rest.is_empty() {
            let mut last = [0; PART];
            last[..rest.len()].copy_from_slice(rest);
            self.blocks(Assembly::find(), &[last]);
        }
    }

    /// Whole blocks: h = (h + block) * r, nearly reduced modulo 2^130 - 5.
    fn blocks(&mut self, assembly: Option<Assembly>, blocks: &[[u8; PART]]) {
        let [r0, r1, r2] = self.r;
        // What overflows 132 bits comes back four times, and 2^130 is 5.
        let (s1, s2) = (r1 * 20, r2 * 20);
        if let Some(assembly) = assembly {
            return assembly.multiply(&mut self.h, &[r0, r1, r2, s1, s2], blocks);
        }
        let [mut h0, mut h1, mut h2] = self.h;
        let product = |a: u64, b: u64| u128::from(a) * u128::from(b);
        for block in blocks {
            let [b0, b1, b2] = limbs(u128::from_le_bytes(*block));
            h0 += b0;
            h1 += b1;
            h2 += b2 | 1 << 40;
            let d0 = product(h0, r0) + product(h1, s2) + product(h2, s1);
            let d1 = product(h0, r1) + product(h1, r0) + product(h2, s2) + (d0 >> 44);
            let d2 = product(h0, r2) + product(h1, r1) + product(h2, r0) + (d1 >> 44);
            h0 = (d0 as u64 & LOW_44) + (d2 >> 42) as u64 * 5;
            h1 = (d1 as u64 & LOW_44) + (h0 >> 44);
            h0 &= LOW_44;
            h2 = d2 as u64 & LOW_42;
        }
        self.h = [h0, h1, h2];
    }

    fn finish(self) -> [u8; TAG] {
        let [mut h0, mut h1, mut h2] = self.h;
        // Carries are taken twice around: then all limbs are whole.
        for _ in 0..2 {
            h2 += h1 >> 44;
            h1 &= LOW_44;
            h0 += (h2 >> 42) * 5;
            h2 &= LOW_42;
            h1 += h0 >> 44;
            h0 &= LOW_44;
        }
        h2 += h1 >> 44;
        h1 &= LOW_44;
        // h - p, taken where that is not below zero.
        let g0 = h0 + 5;
        let g1 = h1 + (g0 >> 44);
        let g2 = (h2 + (g1 >> 44)).wrapping_sub(1 << 42);
        let below = (g2 >> 63).wrapping_neg();
        let choose = |h: u64, g: u64| u128::from(h & below | g & !below);
        let h = choose(h0, g0 & LOW_44) | choose(h1, g1 & LOW_44) << 44 | choose(h2, g2 & LOW_42) << 88;
        h.wrapping_add(self.pad).to_le_bytes()
    }
}

/// The limbs of a number of 128 bits.
fn limbs(number: u128) -> [u64; 3] {
    [number as u64 & LOW_44, (number >> 44) as u64 & LOW_44, (number >> 88) as u64]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        let digit = |digit: u8| char::from(digit).to_digit(16).unwrap() as u8;
        digits.as_chunks::<2>().0.iter().map(|[high, low]| digit(*high) << 4 | digit(*low)).collect()
    }

    /// Section 2.8.2.
    #[test]
    fn the_standards_example_comes_out() {
        let text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for \
                     the future, sunscreen would be it.";
        let key = std::array::from_fn(|index| 0x80 + index as u8);
        let nonce = hex("07 00 00 00 40 41 42 43 44 45 46 47").try_into().unwrap();
        let header = hex("50 51 52 53 c0 c1 c2 c3 c4 c5 c6 c7");
        let mut content = text.to_vec();
        let tag = Key::new(&key).seal(&nonce, &header, &mut content);
        assert_eq!(content[..16], hex("d3 1a 8d 34 64 8e 60 db 7b 86 af bc 53 ef 7e c2"));
        assert_eq!(tag[..], hex("1a e1 0b 59 4f 09 e2 6a 7e 90 2e cb d0 60 06 91"));
        assert!(Key::new(&key).open(&nonce, &header, &mut content, &tag));
        assert_eq!(content, text);
    }

    /// Appendix A.3: sums at the edge of the prime, where carries go wrong.
    #[test]
    fn sums_next_to_the_prime_are_reduced() {
        let full = "ffffffffffffffffffffffffffffffff";
        for (r, blocks, expected) in [
            ("01", format!("{full} f0ffffffffffffffffffffffffffffff 11000000000000000000000000000000"), "05"),
            ("01", format!("{full} fbfefefefefefefefefefefefefefefe 01010101010101010101010101010101"), "00"),
            ("02", "fdffffffffffffffffffffffffffffff".to_owned(), "faffffffffffffffffffffffffffffff"),
        ] {
            let mut key = [0; 32];
            key[..r.len() / 2].copy_from_slice(&hex(r));
            let mut tag = hex(expected);
            tag.resize(TAG, 0);
            for way in [None, Assembly::find()] {
                let mut poly = Poly::new(&key);
                poly.blocks(way, hex(&blocks).as_chunks().0);
                assert_eq!(poly.finish()[..], tag, "r = {r}");
            }
        }
    }

    proptest! {
        #[test]
        fn both_ways_give_the_same(
            state: [u32; 16],
            mut blocks in proptest::collection::vec(any::<[u8; BLOCK]>(), 0..5),
            key: [u8; 32],
            // As large as a step leaves them.
            h in [0..=LOW_44, 0..=2 * LOW_44, 0..=LOW_42],
        ) {
            let (mut again, mut states) = (blocks.clone(), [state; 2]);
            xor(None, &mut states[0], &mut blocks);
            xor(Assembly::find(), &mut states[1], &mut again);
            prop_assert_eq!(&blocks, &again);
            prop_assert_eq!(states[0], states[1]);
            let sums = [None, Assembly::find()].map(|way| {
                let mut poly = Poly { h, ..Poly::new(&key) };
                poly.blocks(way, blocks.as_flattened().as_chunks().0);
                poly.h
            });
            prop_assert_eq!(sums[0], sums[1]);
        }
    }

    #[test]
    fn counters_begin_again_after_the_last() {
        for way in [None, Assembly::find()] {
            let mut state = [u32::MAX; 16];
            xor(way, &mut state, &mut [[0; BLOCK]]);
            assert_eq!(state[11..14], [u32::MAX, 0, u32::MAX]);
        }
    }
}
