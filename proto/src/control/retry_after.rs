//! The header `Retry-After` (RFC 9110 §10.2.3): seconds, or a date in one of three forms (§5.6.7).

use std::time::Duration;

use crate::tailcfg::Timestamp;

/// A longer wait isn't believed, as in Go.
const LONGEST: Duration = Duration::from_secs(3600);
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// How long to wait, by our clock. `None`: control said nothing that could be believed, or a moment that has passed.
pub(super) fn parse(header: &str, clock: Timestamp) -> Option<Duration> {
    let header = header.trim();
    let seconds = match header.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => u64::try_from(http_date(header)?.unix().checked_sub(clock.unix())?).ok()?,
    };
    Some(Duration::from_secs(seconds)).filter(|wait| !wait.is_zero() && *wait <= LONGEST)
}

/// Reads a date of HTTP's: `Sun, 06 Nov 1994 08:49:37 GMT`, `Sunday, 06-Nov-94 08:49:37 GMT` or `Sun Nov  6 08:49:37 1994`.
#[must_use]
pub fn http_date(text: &str) -> Option<Timestamp> {
    let fields: Vec<&str> = text.split([' ', ',', '-']).filter(|field| !field.is_empty()).collect();
    let (day, month, year, time) = match fields[..] {
        [_, day, month, year, time, "GMT"] => (day, month, year, time),
        [_, month, day, time, year] => (day, month, year, time),
        _ => return None,
    };
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    let (day, year): (u8, u16) = (day.parse().ok()?, year.parse().ok()?);
    // Two digits are of this century: nobody waits for another one.
    let year = if year < 100 { year + 2000 } else { year };
    format!("{year:04}-{month:02}-{day:02}T{time}Z").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read_and_nonsense_is_not_believed() {
        // 2026-11-22T05:00:00Z, a Sunday.
        let clock: Timestamp = "2026-11-22T05:00:00Z".parse().unwrap();
        for (header, seconds) in [
            ("7", Some(7)),
            (" 3600 ", Some(3600)),
            ("Sun, 22 Nov 2026 05:00:09 GMT", Some(9)),
            ("Sunday, 22-Nov-26 05:01:00 GMT", Some(60)),
            ("Sun Nov 22 05:30:00 2026", Some(1800)),
            ("0", None),
            ("-1", None),
            ("3601", None),
            ("99999999999999999999", None),
            ("Sun, 22 Nov 2026 04:59:59 GMT", None),
            ("Sun, 22 Nov 2026 07:00:00 GMT", None),
            ("Sun, 22 Now 2026 05:00:09 GMT", None),
            ("Sun, 222 Nov 2026 05:00:09 GMT", None),
            ("Sun, 22 Nov 2026 5:00:09 GMT", None),
            ("Sun, 22 Nov 2026 05:00:09 CET", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(parse(header, clock), seconds.map(Duration::from_secs), "{header}");
        }
    }
}
