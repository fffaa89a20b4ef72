//! Images: whatever the bytes, reading them ends without a panic, and what is accepted holds
//! what the domain builder relies on.
#![no_main]

use fcap_manager::image;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = image::parse(bytes.to_vec().into()) else { return };
    let Some(kernel) = &image.kernel else { return };
    let mut end = 0;
    for segment in &kernel.segments {
        assert!(segment.memory.start >= end);
        end = segment.memory.end;
        assert!(end <= image::MAX_LOADED && segment.file.end <= image.file.len());
        assert!(segment.file.len() as u64 <= segment.memory.end - segment.memory.start);
    }
    assert!(kernel.entry < end);
});
