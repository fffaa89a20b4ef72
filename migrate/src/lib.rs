//! The live-migration engine: moves a running domain from one machine to another.
//!
//! It knows nothing of a hypervisor and opens no socket: a domain is what [`domain`] asks for, and
//! a link is anything that reads or writes. The format and the hand-over are specified in
//! STREAM.md, beside this crate.
//!
//! ```text
//!  source                                                  destination
//!  ──────                                                  ───────────
//!  describe ───────────── DOMAIN CONFIG P2M MEMORY ──────▶ check, create        (or REFUSE)
//!           ◀──────────────────── ACCEPT ─────────────────
//!  pre-copy ───────────── pages that were written ───────▶ write, prepare       any number of rounds
//!           ◀────────────────── ROUND_DONE ───────────────
//!  suspend
//!  stop-and-copy ──────── last pages, state, END ────────▶ finish
//!           ◀──────────────────── READY ──────────────────
//!  claim: handed over ─────────── COMMIT ────────────────▶ claim: taken; activate
//!  destroy  ◀──────────────────── TAKEN ──────────────────
//!  forget   ───────────────────── RELEASED ──────────────▶ forget
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`source`], [`destination`] | the two sides, as lists of these phases |
//! | [`domain`] | what they ask of a hypervisor |
//! | [`handover`] | who runs the domain, as tables that a model test walks through |
//! | [`policy`] | when to stop the domain |
//! | [`wire`], [`negotiate`], `stream`, `link` | records, versions, framing, the clock of a link |
//! | [`page`], [`bitmap`], `compress`, `rate` | page tables, sets of pages, packing, a limit on bytes |
//! | [`sums`] | whether a page is still as it was sent |
//! | `sender`, `receiver` | pages of a round: threads and buffers |
//! | [`verify`] | an independent reader of stream files |
//! | [`sim`] | domains in memory |
//!
//! **What is guaranteed.** At every moment at most one side may run the domain, and one always
//! can. If [`source::migrate`] fails before the hand-over, the domain goes on at the source, and
//! nothing of it is left at the destination. If it fails later, both sides know from their claims
//! and from each other who has it. Whatever the other side sends leads to an error that names it,
//! not to a panic or to memory without bounds.
//!
//! **What it costs.** Besides some bits for each page of the domain, only pages that are used.
//! Free pages are neither read nor sent, zero pages are sent as ranges, page tables of unused
//! memory as one entry, and the p2m list not at all.
#![forbid(unsafe_code)]

pub mod bitmap;
mod compress;
pub mod destination;
pub mod domain;
pub mod error;
pub mod handover;
mod link;
pub mod negotiate;
pub mod page;
pub mod policy;
pub mod progress;
mod rate;
mod receiver;
mod sender;
pub mod sim;
pub mod source;
mod stream;
pub mod sums;
pub mod verify;
pub mod wire;

pub use compress::Compression;
pub use error::{MigrateError, Side};
pub use link::{Cancel, Patience};
