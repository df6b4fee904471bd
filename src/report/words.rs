//! Times and sizes in words that fit a column.

use std::time::Duration;

use crate::agent::Path;

/// Bytes of one MiB.
const MIB: f64 = 1_048_576.0;

/// A time: `340 ms`, `4.2 s`, `2m 05s`, `1h 02m`, `3d 04h`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..10 => format!("{:.1} s", tenths(time)),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// A place on a time axis: `0:05`, `12:30`, `1:02:30`; with tenths where `tenths_matter`.
pub fn clock(time: Duration, tenths_matter: bool) -> String {
    let seconds = time.as_secs();
    let tenth = if tenths_matter { format!(".{}", time.subsec_millis() / 100) } else { String::new() };
    match seconds / 3600 {
        0 => format!("{}:{:02}{tenth}", seconds / 60, seconds % 60),
        hours => format!("{hours}:{:02}:{:02}{tenth}", seconds / 60 % 60, seconds % 60),
    }
}

/// A size in units of 1024: `0 B`, `812 B`, `12.3 KiB`, `1.4 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    // What would be rounded to 1024 is one of the next unit.
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS.get(unit).copied().unwrap_or("PiB"))
}

/// A size in MiB with one decimal, for a column that names its unit.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / MIB)
}

/// A round trip: `0.4 ms`, `31 ms`.
pub fn round_trip(milliseconds: f64) -> String {
    if milliseconds < 9.95 { format!("{milliseconds:.1} ms") } else { format!("{milliseconds:.0} ms") }
}

/// A path in a column's room: `192.0.2.7:41641`, `DERP 4`, `-`.
pub fn path(path: &Path) -> String {
    match path {
        Path::Derp { region } => format!("DERP {region}"),
        other => other.to_string(),
    }
}

/// How much of `whole` a part is: `83 %`; nothing of nothing is `-`.
pub fn percent(part: Duration, whole: Duration) -> String {
    if whole.is_zero() {
        return "-".to_owned();
    }
    format!("{:.0} %", 100.0 * part.as_secs_f64() / whole.as_secs_f64())
}

/// A number with the noun that it counts: `1 build`, `3 builds`.
pub fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Seconds, cut to tenths: 9.96 s must not become `10.0 s`.
fn tenths(time: Duration) -> f64 {
    (time.as_millis() / 100) as f64 / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_two_units_at_the_most() {
        for (milliseconds, words) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (9_960, "9.9 s"),
            (59_999, "59 s"),
            (125_000, "2m 05s"),
            (3_725_000, "1h 02m"),
            (90_000_000, "1d 01h"),
        ] {
            assert_eq!(duration(Duration::from_millis(milliseconds)), words);
        }
        assert_eq!(clock(Duration::from_millis(65_250), true), "1:05.2");
        assert_eq!(clock(Duration::from_secs(3_665), false), "1:01:05");
    }

    #[test]
    fn sizes_change_their_unit_in_time() {
        for (size, words) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(bytes(size), words);
        }
        assert_eq!(mebibytes(3 << 19), "1.5");
    }

    #[test]
    fn small_words() {
        assert_eq!((round_trip(0.42).as_str(), round_trip(31.4).as_str()), ("0.4 ms", "31 ms"));
        assert_eq!(percent(Duration::from_secs(1), Duration::from_secs(3)), "33 %");
        assert_eq!(percent(Duration::ZERO, Duration::ZERO), "-");
        assert_eq!((count(1, "build"), count(0, "build")), ("1 build".to_owned(), "0 builds".to_owned()));
    }
}
