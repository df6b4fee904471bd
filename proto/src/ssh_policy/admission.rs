//! The stay of a peer that was let in: until when, and what ends it before.
//!
//! As the newest Go (`ssh/tailssh/tailssh.go` of 1.104), with two differences. Where a policy change shortens the
//! session duration, Go ends the session at once; here the shorter limit counts from the login, so that a build which is
//! still within it goes on. And Go also ends sessions whose rule lost environment variables or forwarding; there is
//! neither of them here.

use std::time::{Duration, Instant};

use super::{Acceptance, Decision, Rejection};

/// The longest that a rule's expiry is waited for without a look at the clock, which may be set meanwhile.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(60);

/// Why a peer that was let in may stay no longer. Its text is a line for the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdmissionEnd {
    /// The policy changed, its rule expired, or what the netmap says of the peer changed; a new login would be refused
    /// with these words.
    #[error("Access revoked. {0}")]
    Revoked(Rejection),
    /// The rule's session duration is over.
    #[error("Session timeout: the tailnet policy limits how long a session may last.")]
    DurationOver,
}

/// One peer's stay. Tell it the policy's decision whenever that may have changed, and when [`Admission::poll_timeout`]
/// says so.
#[derive(Debug, Clone)]
pub struct Admission {
    since: Instant,
    /// The shortest that any decision since the login said.
    duration: Option<Duration>,
    /// When the rule that let it in stops to count, in Unix seconds.
    expires: Option<i64>,
    look_again: Option<Instant>,
    end: Option<AdmissionEnd>,
}

impl Admission {
    /// A stay that begins now. `now_unix` is the same moment in Unix seconds.
    #[must_use]
    pub fn new(now: Instant, now_unix: i64, acceptance: &Acceptance) -> Self {
        let mut admission = Self { since: now, duration: None, expires: None, look_again: None, end: None };
        admission.handle_acceptance(now, now_unix, acceptance);
        admission
    }

    /// What a login would be told now.
    pub fn handle_decision(&mut self, now: Instant, now_unix: i64, decision: &Result<Acceptance, Rejection>) {
        if self.end.is_some() {
            return;
        }
        if self.is_over(now) {
            self.end = Some(AdmissionEnd::DurationOver);
            return;
        }
        match decision {
            Ok(acceptance) => self.handle_acceptance(now, now_unix, acceptance),
            // Who was let in for a while before a check is due again may finish; a new login has to be checked.
            Err(Rejection::Hold) if self.is_expired(now_unix) => self.look_again = None,
            Err(rejection) => self.end = Some(AdmissionEnd::Revoked(rejection.clone())),
        }
        if self.is_over(now) {
            self.end = Some(AdmissionEnd::DurationOver);
        }
    }

    /// When [`Admission::handle_decision`] is due without any change.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.end.is_some() {
            return None;
        }
        [self.over_at(), self.look_again].into_iter().flatten().min()
    }

    /// Why the peer may stay no longer, once that is so. The first reason counts.
    #[must_use]
    pub fn end(&self) -> Option<&AdmissionEnd> {
        self.end.as_ref()
    }

    fn handle_acceptance(&mut self, now: Instant, now_unix: i64, acceptance: &Acceptance) {
        self.duration = [self.duration, acceptance.session_duration].into_iter().flatten().min();
        self.expires = acceptance.expires;
        // The rule counts through its last second.
        let left = self.expires.map(|expires| expires.saturating_add(1).saturating_sub(now_unix).max(1));
        let left = left.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(1)));
        self.look_again = left.and_then(|left| now.checked_add(left.min(LOOK_AT_CLOCK)));
    }

    fn is_expired(&self, now_unix: i64) -> bool {
        self.expires.is_some_and(|expires| expires < now_unix)
    }

    /// `None` also where that is beyond what a clock can say.
    fn over_at(&self) -> Option<Instant> {
        self.since.checked_add(self.duration?)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.over_at().is_some_and(|at| at <= now)
    }
}

/// What the policy's `decision` is worth at an endpoint that runs everything as `login`: only who is mapped to that
/// user may come in.
pub fn as_local_user(decision: Decision, login: &str) -> Result<Acceptance, Rejection> {
    match decision {
        Decision::Reject(rejection) => Err(rejection),
        Decision::Accept(acceptance) if acceptance.local_user != login => {
            Err(Rejection::OtherLocalUser(login.to_owned()))
        }
        Decision::Accept(acceptance) => Ok(acceptance),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGIN_UNIX: i64 = 1_000;

    fn acceptance(duration: Option<u64>, expires: Option<i64>) -> Acceptance {
        Acceptance {
            local_user: "builder".into(),
            session_duration: duration.map(Duration::from_secs),
            message: String::new(),
            expires,
        }
    }

    /// Seconds after the login at which something is decided, the decision, and whether the stay goes on.
    type Step = (u64, Result<Acceptance, Rejection>, Result<(), AdmissionEnd>);

    #[expect(clippy::disallowed_methods, reason = "virtual time needs an origin")]
    fn now() -> Instant {
        Instant::now()
    }

    fn run(name: &str, first: &Acceptance, steps: &[Step]) {
        let start = now();
        let mut admission = Admission::new(start, LOGIN_UNIX, first);
        for (after, decision, wanted) in steps {
            let now_unix = LOGIN_UNIX + i64::try_from(*after).unwrap();
            admission.handle_decision(start + Duration::from_secs(*after), now_unix, decision);
            assert_eq!(admission.end().cloned().map_or(Ok(()), Err), *wanted, "{name}, after {after} s");
        }
    }

    #[test]
    fn what_ends_a_stay_and_what_does_not() {
        let revoked = |rejection| Err(AdmissionEnd::Revoked(rejection));
        let over = || Err(AdmissionEnd::DurationOver);
        let free = acceptance(None, None);
        let hour = acceptance(Some(3600), None);
        let until = |at| acceptance(None, Some(at));
        run("a change that keeps it", &free, &[(5, Ok(free.clone()), Ok(()))]);
        run(
            "no rule any more, for good",
            &free,
            &[
                (5, Err(Rejection::NoRule), revoked(Rejection::NoRule)),
                (6, Ok(free.clone()), revoked(Rejection::NoRule)),
            ],
        );
        run(
            "another local user",
            &free,
            &[(5, Err(Rejection::OtherLocalUser("x".into())), revoked(Rejection::OtherLocalUser("x".into())))],
        );
        run("recorders appear", &free, &[(5, Err(Rejection::Recording), revoked(Rejection::Recording))]);
        run("accept becomes hold", &free, &[(5, Err(Rejection::Hold), revoked(Rejection::Hold))]);
        run("hold before the rule expired", &until(1_010), &[(10, Err(Rejection::Hold), revoked(Rejection::Hold))]);
        run(
            "hold after the rule expired, until more changes",
            &until(1_010),
            &[
                (11, Err(Rejection::Hold), Ok(())),
                (12, Err(Rejection::Hold), Ok(())),
                (13, Err(Rejection::NoRule), revoked(Rejection::NoRule)),
            ],
        );
        run(
            "the rule expires and nothing follows",
            &until(1_010),
            &[(11, Err(Rejection::NoUser), revoked(Rejection::NoUser))],
        );
        run("a later rule takes over", &until(1_010), &[(11, Ok(free.clone()), Ok(()))]);
        run("the duration is over", &hour, &[(3599, Ok(hour.clone()), Ok(())), (3600, Ok(hour.clone()), over())]);
        run(
            "a shorter duration counts from the login",
            &hour,
            &[(50, Ok(acceptance(Some(60), None)), Ok(())), (60, Ok(acceptance(Some(60), None)), over())],
        );
        run("a shorter one that is over already", &free, &[(50, Ok(acceptance(Some(40), None)), over())]);
        run(
            "a longer one, or none, prolongs nothing",
            &acceptance(Some(60), None),
            &[(50, Ok(hour), Ok(())), (51, Ok(free.clone()), Ok(())), (60, Ok(free), over())],
        );
        run(
            "a negative duration is over at once",
            &acceptance(Some(0), None),
            &[(0, Ok(acceptance(Some(0), None)), over())],
        );
    }

    #[test]
    fn it_asks_to_be_looked_at_in_time() {
        let start = now();
        let after = |seconds| Some(start + Duration::from_secs(seconds));
        let timeout =
            |duration, expires| Admission::new(start, LOGIN_UNIX, &acceptance(duration, expires)).poll_timeout();
        assert_eq!(timeout(None, None), None);
        assert_eq!(timeout(Some(90), None), after(90));
        // Through its last second; and a clock that is set meanwhile is noticed within a minute.
        assert_eq!(timeout(None, Some(1_010)), after(11));
        assert_eq!(timeout(Some(5), Some(1_010)), after(5));
        assert_eq!(timeout(None, Some(9_000)), after(60));
        assert_eq!(timeout(None, Some(i64::MAX)), after(60));
        assert_eq!(timeout(None, Some(i64::MIN)), after(1));
        assert_eq!(Admission::new(start, 0, &acceptance(Some(u64::MAX), None)).poll_timeout(), None);

        let mut ended = Admission::new(start, LOGIN_UNIX, &acceptance(Some(90), None));
        ended.handle_decision(start, LOGIN_UNIX, &Err(Rejection::NoPolicy));
        assert_eq!(ended.poll_timeout(), None);
        // Who may only finish isn't asked about again and again.
        let mut finishing = Admission::new(start, LOGIN_UNIX, &acceptance(None, Some(1_010)));
        finishing.handle_decision(start + Duration::from_secs(11), 1_011, &Err(Rejection::Hold));
        assert_eq!((finishing.end(), finishing.poll_timeout()), (None, None));
    }

    #[test]
    fn only_the_endpoint_s_own_user_comes_in() {
        let accepted = acceptance(None, None);
        assert_eq!(as_local_user(Decision::Accept(accepted.clone()), "builder"), Ok(accepted.clone()));
        let other = Rejection::OtherLocalUser("root".into());
        assert_eq!(as_local_user(Decision::Accept(accepted), "root"), Err(other));
        assert_eq!(as_local_user(Decision::Reject(Rejection::NoRule), "root"), Err(Rejection::NoRule));
    }
}
