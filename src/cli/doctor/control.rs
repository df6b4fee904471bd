//! The login server: whether it answers like one, and whether its clock is ours.

use nixtail_proto::control::http_date;
use nixtail_proto::proxy::Proxies;

use super::DEADLINE;
use super::check::Check;
use crate::agent::{JoinError, Status};
use crate::control::{clock, knock};
use crate::report::{Exit, Failure, plain};

/// Clocks that are less apart do no harm: control's offset is known to a running agent, and certificates have more slack.
const TOLERANCE: u64 = 60;

/// Asks the login server for its key. The time of its answer counts before the agent's own measure of control's clock, which is
/// against this machine's clock as it was when the agent began.
pub(super) async fn checks(login_server: &str, proxies: &Proxies, status: Option<&Status>) -> Vec<Check> {
    let shown = plain(login_server);
    let knocked = tokio::time::timeout(DEADLINE, knock(login_server, proxies)).await;
    let (server, date) = match knocked {
        Ok(Ok(date)) => (Check::ok("login-server", format!("{shown} tells its key")), date),
        Ok(Err(error)) => (Check::failed("login-server", &Failure::from(JoinError::from(error))), None),
        Err(_) => {
            let found = format!("{shown} didn't answer within {} s", DEADLINE.as_secs());
            let next = "check the network, then control's own state";
            (Check::problem("login-server", Exit::Unavailable, found, next), None)
        }
    };
    let by_answer = date.and_then(|date| http_date(&date)).map(|theirs| theirs.unix().saturating_sub(clock().unix()));
    let offset = by_answer.or_else(|| status.map(|status| status.clock_offset_s));
    vec![server, skew(offset)]
}

/// `offset`: seconds that control's clock is before ours.
fn skew(offset: Option<i64>) -> Check {
    let name = "clock";
    match offset {
        None => Check::ok(name, "not compared: control told no time"),
        Some(offset) if offset.unsigned_abs() <= TOLERANCE => Check::ok(name, "agrees with control's"),
        Some(offset) => {
            let direction = if offset > 0 { "behind" } else { "ahead of" };
            let found = format!("{} s {direction} control's", offset.unsigned_abs());
            Check::warning(name, found, "set this machine's clock: certificates, tokens and expiries go by it")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Verdict;
    use super::*;

    #[test]
    fn a_clock_may_differ_by_a_minute() {
        for (offset, verdict) in [(None, Verdict::Ok), (Some(-60), Verdict::Ok), (Some(61), Verdict::Warning)] {
            assert_eq!(skew(offset).verdict, verdict, "{offset:?}");
        }
        assert!(skew(Some(-90)).found.contains("90 s ahead of"));
        assert!(skew(Some(i64::MIN)).found.contains("ahead"));
    }
}
