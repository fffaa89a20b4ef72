//! Which version and which features both sides speak: STREAM.md, "Image header".

use crate::{
    domain::{Refusal, RefusalCause},
    wire::{Breach, HeaderKind, ImageHeader, MigrationId, OLDEST_VERSION, Reason, VERSION, feature},
};

/// What a source offers.
pub fn offer(id: MigrationId, reason: Reason) -> ImageHeader {
    ImageHeader {
        kind: HeaderKind::Offer,
        version: VERSION,
        oldest: OLDEST_VERSION,
        reason,
        features: feature::ALL,
        id,
    }
}

/// What a file begins with.
pub fn image(id: MigrationId, reason: Reason) -> ImageHeader {
    ImageHeader { kind: HeaderKind::Image, oldest: VERSION, ..offer(id, reason) }
}

/// The destination's answer to an offer.
///
/// # Errors
/// If there is no version in common; with it the answer that is given all the same.
pub fn answer(offer: &ImageHeader) -> Result<ImageHeader, (ImageHeader, Refusal)> {
    let answer = |version| ImageHeader {
        kind: HeaderKind::Answer,
        version,
        oldest: version,
        features: offer.features & feature::ALL,
        ..*offer
    };
    let version = offer.version.min(VERSION);
    if version >= offer.oldest.max(OLDEST_VERSION) {
        return Ok(answer(version));
    }
    let message = format!(
        "the destination speaks versions {OLDEST_VERSION} to {VERSION} of the stream, the source {} to {}: \
         use the same release on both sides",
        offer.oldest, offer.version
    );
    Err((answer(VERSION), Refusal { cause: RefusalCause::Version, message }))
}

/// Whether a source can live with the answer to its offer. An answer with a version that was not
/// offered is left to the refusal that follows it.
///
/// # Errors
/// If the answer is no answer to this offer.
pub fn check_answer(offer: &ImageHeader, answer: &ImageHeader) -> Result<(), Breach> {
    if answer.kind != HeaderKind::Answer {
        return Err(Breach::HeaderField("kind"));
    }
    if answer.id != offer.id {
        return Err(Breach::HeaderField("id"));
    }
    if answer.reason != offer.reason {
        return Err(Breach::HeaderField("reason"));
    }
    match answer.features & !offer.features {
        0 => Ok(()),
        unknown => Err(Breach::Features(unknown)),
    }
}

/// Whether this engine can read a file.
///
/// # Errors
/// If not.
pub fn check_image(header: &ImageHeader) -> Result<(), Breach> {
    if header.kind != HeaderKind::Image {
        return Err(Breach::HeaderField("kind"));
    }
    if !(OLDEST_VERSION..=VERSION).contains(&header.version) {
        return Err(Breach::Version(header.version));
    }
    if header.reason == Reason::Migrate {
        return Err(Breach::HeaderField("reason"));
    }
    match header.features & !feature::ALL {
        0 => Ok(()),
        unknown => Err(Breach::Features(unknown)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MigrationId = [7; 16];

    #[test]
    fn a_newer_source_gets_what_both_know() {
        let mut newer = offer(ID, Reason::Migrate);
        newer.version = VERSION + 3;
        newer.features |= 1 << 20;
        let answer = answer(&newer).unwrap();
        assert_eq!((answer.version, answer.oldest, answer.features), (VERSION, VERSION, feature::ALL));
        assert_eq!(check_answer(&newer, &answer), Ok(()));
    }

    #[test]
    fn a_source_without_a_common_version_is_refused() {
        let mut newer = offer(ID, Reason::Migrate);
        (newer.version, newer.oldest) = (VERSION + 3, VERSION + 1);
        let (answer, refusal) = answer(&newer).unwrap_err();
        assert_eq!(refusal.cause, RefusalCause::Version);
        assert_eq!(answer.version, VERSION);
    }

    #[test]
    fn an_answer_to_something_else_is_refused() {
        let offer = offer(ID, Reason::Migrate);
        let good = answer(&offer).unwrap();
        for (bad, field) in [
            (ImageHeader { id: [8; 16], ..good }, Breach::HeaderField("id")),
            (ImageHeader { reason: Reason::Clone, ..good }, Breach::HeaderField("reason")),
            (ImageHeader { features: 1 << 9, ..good }, Breach::Features(1 << 9)),
            (ImageHeader { kind: HeaderKind::Offer, ..good }, Breach::HeaderField("kind")),
        ] {
            assert_eq!(check_answer(&offer, &bad), Err(field));
        }
    }

    #[test]
    fn files_of_another_kind_are_refused() {
        let good = image(ID, Reason::Save);
        assert_eq!(check_image(&good), Ok(()));
        for (bad, breach) in [
            (ImageHeader { version: 9, oldest: 9, ..good }, Breach::Version(9)),
            (ImageHeader { features: 1 << 31, ..good }, Breach::Features(1 << 31)),
            (ImageHeader { reason: Reason::Migrate, ..good }, Breach::HeaderField("reason")),
            (offer(ID, Reason::Save), Breach::HeaderField("kind")),
        ] {
            assert_eq!(check_image(&bad), Err(breach));
        }
    }
}
