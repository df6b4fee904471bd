//! The time of day, for what ends by it: keys, rules of the SSH policy.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Seconds since 1970: what the system's clock said when this process first asked, and what has passed since.
///
/// Whoever sets that clock in mid-run changes nothing here. How far control's clock is from ours is told now and then; with one that
/// jumps in between, a key would seem to have ended that is good for months, and the node with all that runs on it would go. Time that
/// the machine slept isn't counted, until control tells its time again with the next stream.
pub(crate) fn unix_now() -> i64 {
    static BEGUN: OnceLock<(SystemTime, Instant)> = OnceLock::new();
    let (time, at) = BEGUN.get_or_init(|| (SystemTime::now(), Instant::now()));
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_add(at.elapsed());
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
