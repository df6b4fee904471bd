//! Durations on the command line: `90s`, `5m`, `2h`, `500ms`, or bare seconds.

use std::time::Duration;

/// Reads a duration.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no duration; write 90s, 5m or 2h"))?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(format!("{unit:?} is no unit of time; use ms, s, m or h")),
    };
    milliseconds.map(Duration::from_millis).ok_or_else(|| format!("{text:?} is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        let seconds = Duration::from_secs;
        for (text, duration) in [
            ("300", seconds(300)),
            ("90s", seconds(90)),
            ("5m", seconds(300)),
            ("2h", seconds(7200)),
            ("250ms", Duration::from_millis(250)),
            ("0", seconds(0)),
        ] {
            assert_eq!(parse_duration(text), Ok(duration), "{text}");
        }
        for text in ["", "s", "-1", "1d", "1.5s", "99999999999999999999", "18446744073709551615h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
