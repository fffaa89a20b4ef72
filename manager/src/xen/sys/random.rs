//! Linux's random numbers.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsRawFd,
};

/// `RNDRESEEDCRNG` of `linux/random.h`: `_IO('R', 7)`.
const RESEED: libc::c_ulong = 0x5207;

/// Mixes a seed into Linux's generator, and has it draw from that seed at once: writing alone
/// takes effect up to a minute later, and until then all clones of one machine draw the same.
///
/// # Errors
/// When Linux refuses.
pub fn reseed(seed: &[u8]) -> io::Result<()> {
    let mut device = File::options().write(true).open("/dev/urandom")?;
    device.write_all(seed)?;
    // SAFETY: this ioctl takes no argument.
    match unsafe { libc::ioctl(device.as_raw_fd(), RESEED) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
