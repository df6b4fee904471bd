use std::time::{Duration, Instant};

use super::*;
use crate::key::NodePublic;

const ALICE: NodePublic = NodePublic::from_bytes([1; 32]);
const BOB: NodePublic = NodePublic::from_bytes([2; 32]);
const SECOND: Duration = Duration::from_secs(1);

/// Tests have a clock of their own; this reads the system's once, to begin somewhere.
#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}

#[test]
fn an_unclaimed_builder_ends_when_idle_too_long() {
    let now = start();
    let mut builder = Builder::new(now, Some(300 * SECOND));
    assert_eq!(builder.poll_timeout(), Some(now + 300 * SECOND));
    builder.handle_timeout(now + 299 * SECOND);
    assert_eq!(builder.end(), None);
    builder.handle_timeout(now + 300 * SECOND);
    assert_eq!(builder.end(), Some(End::Idle(300 * SECOND)));
    assert_eq!(builder.handle_claim(now + 301 * SECOND, ALICE), Err(ClaimError::Ending));
}

#[test]
fn without_an_idle_limit_it_waits_for_ever() {
    let mut builder = Builder::new(start(), None);
    assert_eq!(builder.poll_timeout(), None);
    builder.handle_timeout(start() + 1_000_000 * SECOND);
    assert_eq!(builder.end(), None);
}

#[test]
fn a_claim_is_exclusive_and_ends_the_idle_limit() {
    let now = start();
    let mut builder = Builder::new(now, Some(300 * SECOND));
    assert_eq!(builder.handle_claim(now, ALICE), Ok(()));
    assert_eq!(builder.handle_claim(now, ALICE), Ok(()));
    assert_eq!(builder.handle_claim(now, BOB), Err(ClaimError::Taken));
    assert_eq!(builder.poll_timeout(), None);
    assert_eq!(builder.handle_stop(BOB), Err(StopError));
    assert_eq!(builder.end(), None);
    assert_eq!(builder.handle_stop(ALICE), Ok(()));
    assert_eq!(builder.end(), Some(End::Stopped));
}

#[test]
fn nobody_stops_an_unclaimed_builder() {
    assert_eq!(Builder::new(start(), None).handle_stop(ALICE), Err(StopError));
}

#[test]
fn a_claimer_that_left_the_netmap_is_lost_at_once() {
    let now = start();
    let mut builder = Builder::new(now, None);
    builder.handle_presence(now, Presence::Absent);
    assert_eq!(builder.end(), None, "nobody has claimed it");
    builder.handle_claim(now, ALICE).unwrap();
    builder.handle_presence(now, Presence::Absent);
    assert_eq!(builder.end(), Some(End::ClaimerLost(ClaimerLoss::LoggedOut)));
}

#[test]
fn an_offline_claimer_is_lost_only_when_it_is_silent_too() {
    let now = start();
    let mut builder = Builder::new(now, None);
    builder.handle_claim(now, ALICE).unwrap();
    builder.handle_presence(now + 100 * SECOND, Presence::Online);
    assert_eq!(builder.end(), None, "silence alone is no loss");
    builder.handle_heard(now + 100 * SECOND);
    builder.handle_presence(now + 101 * SECOND, Presence::Offline);
    let deadline = now + 101 * SECOND + CLAIMER_SILENCE;
    assert_eq!(builder.poll_timeout(), Some(deadline));
    builder.handle_heard(now + 150 * SECOND);
    builder.handle_timeout(deadline);
    assert_eq!(builder.end(), None, "it was heard in the meantime");
    builder.handle_timeout(now + 150 * SECOND + CLAIMER_SILENCE);
    assert_eq!(builder.end(), Some(End::ClaimerLost(ClaimerLoss::Silent)));
}

#[test]
fn silence_before_control_called_the_claimer_offline_counts_for_nothing() {
    let now = start();
    let mut builder = Builder::new(now, None);
    builder.handle_claim(now, ALICE).unwrap();
    // A control server that restarts calls everybody offline, after minutes in which the claimer had nothing to say.
    builder.handle_presence(now + 300 * SECOND, Presence::Offline);
    assert_eq!(builder.end(), None);
    assert_eq!(builder.poll_timeout(), Some(now + 300 * SECOND + CLAIMER_SILENCE));
    // Said again, it is no new beginning.
    builder.handle_presence(now + 310 * SECOND, Presence::Offline);
    assert_eq!(builder.poll_timeout(), Some(now + 300 * SECOND + CLAIMER_SILENCE));
    builder.handle_presence(now + 320 * SECOND, Presence::Online);
    assert_eq!(builder.poll_timeout(), None);
    builder.handle_presence(now + 700 * SECOND, Presence::Offline);
    builder.handle_timeout(now + 700 * SECOND + CLAIMER_SILENCE - SECOND);
    assert_eq!(builder.end(), None);
    builder.handle_timeout(now + 700 * SECOND + CLAIMER_SILENCE);
    assert_eq!(builder.end(), Some(End::ClaimerLost(ClaimerLoss::Silent)));
}

fn failure(stage: Stage) -> Failure {
    Failure { stage, reason: "x".to_owned() }
}

#[test]
fn builders_are_tried_when_they_appear_and_again_after_a_failure() {
    let now = start();
    let mut builders = Builders::new(now, 60 * SECOND, ["a".to_owned(), "b".to_owned()]);
    assert_eq!(builders.poll_try(now), None);
    builders.handle_netmap(now, |name| name == "a");
    assert_eq!(builders.poll_try(now), Some("a".to_owned()));
    assert_eq!(builders.poll_try(now), None, "one try at a time");
    builders.handle_tried(now, "a", Err(failure(Stage::Connect)));
    let next = builders.poll_timeout(now).unwrap();
    assert!(next > now && next <= now + 5 * SECOND);
    assert_eq!(builders.poll_try(next), Some("a".to_owned()));
    builders.handle_tried(next, "a", Ok(()));
    assert_eq!(builders.settled(next), Settled::Waiting);
    builders.handle_netmap(next, |_| true);
    assert_eq!(builders.poll_try(next), Some("b".to_owned()));
    builders.handle_tried(next, "b", Ok(()));
    assert_eq!(builders.settled(next), Settled::Ready);
    assert_eq!(builders.poll_timeout(next), None);
}

#[test]
fn pauses_between_tries_grow_to_a_bound() {
    let mut now = start();
    let mut builders = Builders::new(now, 600 * SECOND, ["a".to_owned()]);
    builders.handle_netmap(now, |_| true);
    for _ in 0..20 {
        assert_eq!(builders.poll_try(now), Some("a".to_owned()));
        builders.handle_tried(now, "a", Err(failure(Stage::Facts)));
        let next = builders.poll_timeout(now).unwrap();
        assert!(next - now <= 5 * SECOND);
        now = next;
    }
}

#[test]
fn the_deadline_names_who_is_missing_and_why() {
    let now = start();
    let mut builders = Builders::new(now, 10 * SECOND, ["a".to_owned(), "b".to_owned(), "c".to_owned()]);
    builders.handle_netmap(now, |name| name != "c");
    builders.handle_tried(now, "a", Ok(()));
    builders.handle_tried(now, "b", Err(failure(Stage::Policy)));
    assert_eq!(builders.settled(now + 9 * SECOND), Settled::Waiting);
    let Settled::Missing(missing) = builders.settled(now + 10 * SECOND) else { panic!("the deadline passed") };
    let words: Vec<String> = missing.iter().map(|(name, standing)| format!("{name}: {standing}")).collect();
    assert_eq!(words, ["b: refused by policy: x", "c: not in the netmap"]);
}

#[test]
fn who_leaves_is_gone_and_tried_again_on_return() {
    let now = start();
    let mut builders = Builders::new(now, 10 * SECOND, ["a".to_owned()]);
    builders.handle_netmap(now, |_| true);
    assert!(builders.poll_try(now).is_some());
    builders.handle_netmap(now, |_| false);
    builders.handle_tried(now, "a", Ok(()));
    assert_eq!(builders.standings().next().unwrap().1, &Standing::Awaited, "it left while being tried");
    builders.handle_netmap(now, |_| true);
    assert!(builders.poll_try(now).is_some());
    builders.handle_tried(now, "a", Ok(()));
    builders.handle_lost(now, "a");
    assert_eq!(builders.standings().next().unwrap().1, &Standing::Gone);
    assert!(builders.poll_try(now + SECOND).is_some());
}
