//! What encrypts: of TLS 1.3's ciphers the one that is fastest on this processor.
//!
//! The library's ciphers are written for instructions of their own, for AES and for vectors. Where
//! the processor is emulated, each of these is a call of some hundred instructions, and plain
//! arithmetic is several times faster: then ChaCha20-Poly1305 is computed by [`scalar`]. What
//! encrypts a record, and how keys are made and agreed on, is rustls's in either case.

#[cfg(target_arch = "x86_64")]
mod assembly;
mod scalar;

/// Clients run on other processors too.
#[cfg(not(target_arch = "x86_64"))]
mod assembly {
    use super::scalar::{BLOCK, PART};

    #[derive(Clone, Copy)]
    pub(super) enum Assembly {}

    impl Assembly {
        pub(super) fn find() -> Option<Self> {
            None
        }

        pub(super) fn xor(self, _: &mut [u32; 16], _: &mut [[u8; BLOCK]]) {
            match self {}
        }

        pub(super) fn multiply(self, _: &mut [u64; 3], _: &[u64; 5], _: &[[u8; PART]]) {
            match self {}
        }
    }
}

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, MessageDecrypter, MessageEncrypter, Nonce,
    OutboundChunks, OutboundOpaqueMessage, OutboundPlainMessage, PrefixedPayload, Tls13AeadAlgorithm,
    UnsupportedOperationError, make_tls13_aad,
};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider, aws_lc_rs};
use rustls::{
    CipherSuite, ConnectionTrafficSecrets, ContentType, Error, ProtocolVersion, SupportedCipherSuite,
    Tls13CipherSuite,
};

/// Bytes of the largest record.
const RECORD: usize = 16 << 10;
/// How often each cipher is tried: the processor may be taken away in the midst of it.
const TRIES: u64 = 8;

/// The library's cryptography with the fastest cipher first, made when it is first asked for.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut library = aws_lc_rs::default_provider();
        let candidates: Vec<_> = library.cipher_suites.iter().chain([&*SCALAR]).copied().collect();
        if let Some(fastest) = fastest(&candidates) {
            prefer(&mut library, fastest);
        }
        Arc::new(library)
    });
    PROVIDER.clone()
}

/// Puts a cipher before all others, in the place of the library's of the same name.
fn prefer(library: &mut CryptoProvider, fastest: SupportedCipherSuite) {
    library.cipher_suites.retain(|suite| suite.suite() != fastest.suite());
    library.cipher_suites.insert(0, fastest);
}

/// Which of TLS 1.3's ciphers with keys of 256 bits encrypts a record in the shortest time.
fn fastest(candidates: &[SupportedCipherSuite]) -> Option<SupportedCipherSuite> {
    let content = vec![0; RECORD];
    let mut tried: Vec<_> = candidates
        .iter()
        .filter_map(|suite| {
            let cipher = suite.tls13()?.aead_alg;
            let is_strong = cipher.key_len() == 32;
            let encrypter = || cipher.encrypter(AeadKey::from([0; 32]), Iv::from([0; 12]));
            is_strong.then(|| (Duration::MAX, encrypter(), *suite))
        })
        .collect();
    for number in 0..TRIES {
        for (least, encrypter, _) in &mut tried {
            let payload = OutboundChunks::Single(&content);
            let (typ, version) = (ContentType::ApplicationData, ProtocolVersion::TLSv1_2);
            let began = Instant::now();
            if encrypter.encrypt(OutboundPlainMessage { typ, version, payload }, number).is_ok() {
                *least = began.elapsed().min(*least);
            }
        }
    }
    tried.into_iter().min_by_key(|(least, ..)| *least).map(|(_, _, suite)| suite)
}

/// `TLS_CHACHA20_POLY1305_SHA256` with plain arithmetic; hash and derivation of keys are the library's.
static SCALAR: LazyLock<SupportedCipherSuite> = LazyLock::new(|| {
    let library = aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
    let library = library.tls13().expect("its name says TLS 1.3");
    SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            hash_provider: library.common.hash_provider,
            confidentiality_limit: library.common.confidentiality_limit,
        },
        hkdf_provider: library.hkdf_provider,
        aead_alg: &Scalar,
        quic: None,
    })))
});

struct Scalar;

impl Scalar {
    fn cipher(key: &AeadKey, iv: Iv) -> Box<Cipher> {
        let key = key.as_ref().try_into().expect("rustls makes keys of the length that was asked for");
        Box::new(Cipher { key: scalar::Key::new(key), iv })
    }
}

impl Tls13AeadAlgorithm for Scalar {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Self::cipher(&key, iv)
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Self::cipher(&key, iv)
    }

    fn key_len(&self) -> usize {
        32
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Ok(ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv })
    }
}

/// One direction of a connection.
struct Cipher {
    key: scalar::Key,
    iv: Iv,
}

impl MessageEncrypter for Cipher {
    fn encrypt(
        &mut self,
        message: OutboundPlainMessage<'_>,
        number: u64,
    ) -> Result<OutboundOpaqueMessage, Error> {
        let len = self.encrypted_payload_len(message.payload.len());
        let mut payload = PrefixedPayload::with_capacity(len);
        payload.extend_from_chunks(&message.payload);
        payload.extend_from_slice(&[message.typ.into()]);
        let nonce = Nonce::new(&self.iv, number).0;
        let tag = self.key.seal(&nonce, &make_tls13_aad(len), payload.as_mut());
        payload.extend_from_slice(&tag);
        // The version of all records of TLS 1.3 (RFC 8446, section 5.1).
        Ok(OutboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, payload))
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        payload_len + 1 + scalar::TAG
    }
}

impl MessageDecrypter for Cipher {
    fn decrypt<'a>(
        &mut self,
        mut message: InboundOpaqueMessage<'a>,
        number: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let header = make_tls13_aad(message.payload.len());
        let nonce = Nonce::new(&self.iv, number).0;
        let (content, tag) = message.payload.split_last_chunk_mut().ok_or(Error::DecryptError)?;
        if !self.key.open(&nonce, &header, content, tag) {
            return Err(Error::DecryptError);
        }
        let len = content.len();
        message.payload.truncate(len);
        message.into_tls13_unpadded_message()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By arithmetic and by the library.
    fn both() -> [&'static dyn Tls13AeadAlgorithm; 2] {
        let library = aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
        [&Scalar, library.tls13().unwrap().aead_alg]
    }

    fn encrypted(
        by: &dyn Tls13AeadAlgorithm,
        key: [u8; 32],
        iv: [u8; 12],
        number: u64,
        content: &[u8],
    ) -> Vec<u8> {
        let (typ, version) = (ContentType::ApplicationData, ProtocolVersion::TLSv1_2);
        let message = OutboundPlainMessage { typ, version, payload: OutboundChunks::Single(content) };
        let sealed = by.encrypter(AeadKey::from(key), Iv::from(iv)).encrypt(message, number);
        sealed.unwrap().payload.as_ref().to_vec()
    }

    proptest! {
        #[test]
        fn records_are_the_librarys_to_the_bit(
            key: [u8; 32],
            iv: [u8; 12],
            number: u64,
            content in proptest::collection::vec(any::<u8>(), 0..700),
            flip: proptest::sample::Index,
        ) {
            let [ours, library] = both();
            let mut record = encrypted(ours, key, iv, number, &content);
            prop_assert_eq!(&record, &encrypted(library, key, iv, number, &content));
            let open = |record: &mut [u8]| {
                let message = InboundOpaqueMessage::new(
                    ContentType::ApplicationData, ProtocolVersion::TLSv1_2, record);
                let mut decrypter = ours.decrypter(AeadKey::from(key), Iv::from(iv));
                decrypter.decrypt(message, number).map(|message| message.payload.to_vec())
            };
            let mut damaged = record.clone();
            damaged[flip.index(record.len())] ^= 1;
            prop_assert!(open(&mut damaged).is_err());
            prop_assert!(open(&mut record[..flip.index(17)].to_vec()).is_err());
            prop_assert_eq!(open(&mut record).unwrap(), content);
        }
    }

    #[test]
    fn ours_is_taken_in_place_of_the_librarys_and_first() {
        let mut provider = aws_lc_rs::default_provider();
        prefer(&mut provider, *SCALAR);
        assert_eq!(provider.cipher_suites[0].suite(), CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
        let of_that_name = provider.cipher_suites.iter().filter(|suite| suite.suite() == SCALAR.suite());
        assert_eq!(of_that_name.count(), 1);
    }

    #[test]
    fn ciphers_with_long_keys_alone_are_tried() {
        let library = aws_lc_rs::default_provider();
        let is_short =
            |suite: &&SupportedCipherSuite| suite.tls13().is_none_or(|it| it.aead_alg.key_len() < 32);
        let (short, long): (Vec<_>, Vec<_>) = library.cipher_suites.iter().partition(is_short);
        let copied = |suites: Vec<&SupportedCipherSuite>| suites.into_iter().copied().collect::<Vec<_>>();
        assert!(!short.is_empty() && fastest(&copied(short)).is_none());
        assert!(fastest(&copied(long)).is_some());
    }
}
