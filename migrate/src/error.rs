//! Why a move failed, and at which side.

use std::{fmt, io};

use crate::{
    domain::{DomainError, Refusal},
    wire::Breach,
};

/// The two sides of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the domain comes from.
    Source,
    /// Where it goes to.
    Destination,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// Why a move failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// What `side` sent is not according to STREAM.md.
    #[error("the {side} sent a broken stream")]
    Stream {
        /// Who sent it.
        side: Side,
        /// What is wrong with it.
        source: Breach,
    },
    /// The transport failed.
    #[error("the {side} lost its link")]
    Link {
        /// Who noticed.
        side: Side,
        /// The system's answer.
        source: io::Error,
    },
    /// The transport carries next to nothing.
    #[error("the {side} waited in vain for the link: {bytes} bytes in {seconds} s")]
    Stalled {
        /// Who noticed.
        side: Side,
        /// Bytes that went through meanwhile.
        bytes: u64,
        /// How long it waited.
        seconds: u64,
    },
    /// The domain, or the hypervisor below it.
    #[error("the {side} failed")]
    Domain {
        /// Where.
        side: Side,
        /// What happened.
        source: DomainError,
    },
    /// The destination does not take it.
    #[error("the destination refuses")]
    Refused(#[source] Refusal),
    /// The other side failed, in its own words.
    #[error("the {side} failed: {message}")]
    Remote {
        /// Which one.
        side: Side,
        /// Its words.
        message: String,
    },
    /// The policy ended it.
    #[error("the capsule writes faster than the link carries: {0}")]
    NotConverging(String),
    /// Somebody ended it.
    #[error("the move was cancelled")]
    Cancelled,
    /// A claim could not be written or removed.
    #[error("the {side} could not keep its claim")]
    Claim {
        /// Which one.
        side: Side,
        /// The system's answer.
        source: io::Error,
    },
    /// A page table of the suspended domain names memory that is not the domain's.
    #[error("page table {pfn:#x} of the capsule cannot move: {entry}")]
    Table {
        /// Its page.
        pfn: u64,
        /// What is wrong.
        entry: crate::page::BadEntry,
    },
}
