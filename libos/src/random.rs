//! Random numbers that nobody can guess.
//!
//! A ChaCha20 generator, seeded at first use with everything there is: what fcapd
//! drew for this start, the processor's generator, and the clock. Where the capsule goes on in
//! another domain it is seeded anew: a copy draws other numbers than the original.
//! Crates that use `getrandom` get theirs here.

use crate::{
    arch,
    single::Single,
    start,
    suspend::{self, Resume, Slot, Subsystem},
};
use chacha20::{
    ChaCha20Rng,
    rand_core::{Rng, SeedableRng},
};
use core::cell::RefCell;
use xen_proto::boot::{Kind, Records};

static GENERATOR: Single<RefCell<Option<ChaCha20Rng>>> = Single::new(RefCell::new(None));

/// Fills `bytes`.
pub fn fill(bytes: &mut [u8]) {
    let mut generator = GENERATOR.borrow_mut();
    let generator = generator.get_or_insert_with(|| {
        suspend::register(Slot::Random, &SUBSYSTEM);
        ChaCha20Rng::from_seed(seed())
    });
    generator.fill_bytes(bytes);
}

/// A number of which every value is as likely.
pub fn u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Every source that there is, added up: one good one is enough.
fn seed() -> [u8; 32] {
    let mut words = [0u64; 4];
    for word in &mut words {
        *word = arch::hardware_random().unwrap_or(0) ^ arch::counter();
    }
    words[0] ^= crate::time::now_ns();
    words[1] ^= start::info().console_mfn().0 << 32 ^ start::info().store_mfn().0;
    let mut seed = [0; 32];
    for (bytes, word) in seed.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let drawn = Records::new(start::module()).filter(|&(kind, _)| kind == Kind::Seed as u32);
    for (_, body) in drawn {
        add(&mut seed, body);
    }
    add(&mut seed, &suspend::seed());
    seed
}

fn add(seed: &mut [u8; 32], drawn: &[u8]) {
    for (byte, drawn) in seed.iter_mut().zip(drawn) {
        *byte ^= drawn;
    }
}

/// The generator, of which a copy has the same state.
static SUBSYSTEM: Subsystem = Subsystem { resume, ..Subsystem::NOTHING };

fn resume(resume: &Resume<'_>) {
    if resume.is_new() {
        let mut seed = seed();
        // What was unknown before stays unknown, should there be nothing new.
        let mut old = [0; 32];
        fill(&mut old);
        add(&mut seed, &old);
        GENERATOR.replace(Some(ChaCha20Rng::from_seed(seed)));
    }
}

/// The source of crates that use `getrandom`, compiled with its backend `custom`.
///
/// # Safety
/// `len` bytes from `to` on must be writable.
#[unsafe(no_mangle)]
unsafe extern "Rust" fn __getrandom_v03_custom(to: *mut u8, len: usize) -> Result<(), getrandom::Error> {
    // SAFETY: the caller vouches for the place; before, it may be uninitialized.
    let bytes = unsafe {
        to.write_bytes(0, len);
        core::slice::from_raw_parts_mut(to, len)
    };
    fill(bytes);
    Ok(())
}
