//! Numbers as people write and read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

/// "5 minutes", as docker says it.
pub fn duration(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".into(),
        120..2760 => format!("{minutes} minutes"),
        2760..5400 => "About an hour".into(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// "5 minutes ago".
pub fn ago(time_ms: u64, now_ms: u64) -> String {
    duration(Duration::from_millis(now_ms.saturating_sub(time_ms))) + " ago"
}

/// Memory in binary units: "1.5GiB".
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value.fract() >= 0.05 && value < 99.95);
    format!("{value:.digits$}{}", UNITS[unit])
}

/// Memory given in KiB.
pub fn size_kib(kib: u64) -> String {
    size(kib.saturating_mul(1024))
}

/// Processor time: "1.25s", "3m12s".
pub fn cpu_time(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    match seconds {
        0..60 => format!("{:.2}s", ns as f64 / 1e9),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// Memory as docker takes it (`64m`, `1g`, `512KiB`, plain bytes), in KiB, rounded up.
///
/// # Errors
/// When it is no size.
pub fn parse_memory_kib(text: &str) -> Result<u64, String> {
    let error = || "not a size: write 64m, 1g or 512k".to_owned();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(error()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        let bytes = whole.checked_mul(1 << shift).ok_or_else(error)?;
        return Ok(bytes.div_ceil(1024));
    }
    let value: f64 = number.parse().map_err(|_| error())?;
    let kib = (value * (1u64 << shift) as f64 / 1024.0).ceil();
    // Beyond this a float no longer counts every KiB; no machine has so much.
    if kib < (1u64 << 52) as f64 { Ok(kib as u64) } else { Err(error()) }
}

/// A time in the past: `10m` ago, a Unix time in seconds, or an RFC 3339 time. Milliseconds since the epoch.
///
/// # Errors
/// When it is none of these.
pub fn parse_since_ms(text: &str) -> Result<u64, String> {
    let error = || "not a time: write 10m, 2h30m, 2026-01-31T12:00:00Z or a Unix time".to_owned();
    if let Ok(seconds) = text.parse::<f64>() {
        return if (0.0..1e12).contains(&seconds) { Ok((seconds * 1e3) as u64) } else { Err(error()) };
    }
    if let Ok(span) = parse_duration(text) {
        return Ok(now_ms().saturating_sub(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)));
    }
    let time: jiff::Timestamp = text.parse().map_err(|_| error())?;
    u64::try_from(time.as_millisecond()).map_err(|_| error())
}

/// A span of time: `30s`, `10m`, `2h30m`.
///
/// # Errors
/// When it is none.
pub fn parse_span(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|()| "not a time: write 30s, 10m or 2h30m".to_owned())
}

/// `90s`, `10m`, `2h30m`, `1d`, `250ms`.
fn parse_duration(text: &str) -> Result<Duration, ()> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(())?;
        let number: u64 = rest[..digits].parse().map_err(drop)?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit_ms: u64 = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(()),
        };
        rest = &rest[letters..];
        let span = Duration::from_millis(number.checked_mul(unit_ms).ok_or(())?);
        total = total.checked_add(span).ok_or(())?;
    }
    if text.is_empty() { Err(()) } else { Ok(total) }
}

/// A time of the API as RFC 3339 with nanoseconds.
pub fn rfc3339_ns(time_ns: u64) -> String {
    let time = jiff::Timestamp::from_nanosecond(i128::from(time_ns)).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{time:.9}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_read_like_dockers() {
        let say = |seconds| duration(Duration::from_secs(seconds));
        assert_eq!(say(0), "Less than a second");
        assert_eq!(say(59), "59 seconds");
        assert_eq!(say(61), "About a minute");
        assert_eq!(say(300), "5 minutes");
        assert_eq!(say(3500), "About an hour");
        assert_eq!(say(3 * 3600), "3 hours");
        assert_eq!(say(86400 * 3), "3 days");
        assert_eq!(say(86400 * 700), "23 months");
    }

    #[test]
    fn sizes_are_written_and_read() {
        assert_eq!(size(0), "0B");
        assert_eq!(size_kib(1), "1KiB");
        assert_eq!(size_kib(1536), "1.5MiB");
        assert_eq!(size_kib(16 * 1024), "16MiB");
        assert_eq!(size_kib(1 << 20), "1GiB");
        assert_eq!(parse_memory_kib("64m"), Ok(65536));
        assert_eq!(parse_memory_kib("1.5GiB"), Ok(1536 * 1024));
        assert_eq!(parse_memory_kib("1048576"), Ok(1024));
        assert_eq!(parse_memory_kib("0"), Ok(0));
        assert_eq!(parse_memory_kib("1"), Ok(1));
        for bad in ["", "m", "-1m", "1x", "1.2.3m", "99999999999999999999", "18446744073709551615t", "nan"] {
            assert!(parse_memory_kib(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_spans_stamps_or_seconds() {
        assert_eq!(parse_since_ms("1700000000"), Ok(1_700_000_000_000));
        assert_eq!(parse_since_ms("2026-01-31T12:00:00Z"), Ok(1_769_860_800_000));
        let hour_ago = parse_since_ms("1h").unwrap();
        assert!(now_ms() - hour_ago >= 3_600_000);
        for bad in ["", "h", "10", "10x", "-5m", "yesterday"].iter().filter(|bad| **bad != "10") {
            assert!(parse_since_ms(bad).is_err(), "{bad}");
        }
        assert_eq!(rfc3339_ns(1_500_000_000_123_456_789), "2017-07-14T02:40:00.123456789Z");
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = parse_memory_kib(&text);
            let _ = parse_since_ms(&text);
        }
    }
}
