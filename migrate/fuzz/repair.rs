//! Makes damaged streams whole again as far as sums go, so that what lies behind them is reached.

use twox_hash::XxHash64;

/// Makes numbers and checksums right, as far as there are records.
pub fn repair(stream: &mut [u8]) {
    let Some((header, mut rest)) = stream.split_at_mut_checked(48) else { return };
    header[..8].copy_from_slice(b"\x89fcap\r\n\x1a");
    let sum = XxHash64::oneshot(0, &header[..40]);
    header[40..].copy_from_slice(&sum.to_le_bytes());
    for sequence in 0u64.. {
        let Some((header, behind)) = rest.split_at_mut_checked(24) else { return };
        let length = u32::from_le_bytes(header[4..8].try_into().expect("four bytes"));
        let Some((body, behind)) = behind.split_at_mut_checked(length as usize) else { return };
        header[8..16].copy_from_slice(&sequence.to_le_bytes());
        let seed = u64::from_le_bytes(header[..8].try_into().expect("eight bytes"));
        header[16..].copy_from_slice(&XxHash64::oneshot(seed, body).to_le_bytes());
        rest = behind;
    }
}
