use super::*;

const ALICE: NodePublic = NodePublic::from_bytes([1; 32]);
const BOB: NodePublic = NodePublic::from_bytes([2; 32]);
const SECOND: Duration = Duration::from_secs(1);

/// Tests have a clock of their own; this reads the system's once, to begin somewhere.
#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}

/// Lets time pass as its owner does: it is called whenever it wants to be.
fn pass(builder: &mut Builder, until: Instant) {
    while let Some(at) = builder.poll_timeout().filter(|at| *at <= until && !builder.is_over(*at)) {
        builder.handle_timeout(at);
    }
}

/// A builder that Alice has claimed and watches.
fn watched(now: Instant) -> Builder {
    let mut builder = Builder::new(now, None);
    builder.handle_claim(now, ALICE, None).unwrap();
    builder.handle_watch_began(ALICE).unwrap();
    builder
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
    assert!(builder.is_over(now + 300 * SECOND));
    assert_eq!(builder.handle_claim(now + 301 * SECOND, ALICE, None), Err(ClaimError::Ending));
}

#[test]
fn a_strangers_session_is_no_idleness() {
    let now = start();
    let mut builder = Builder::new(now, Some(300 * SECOND));
    builder.handle_sessions(now + 100 * SECOND, true);
    assert_eq!(builder.poll_timeout(), None);
    builder.handle_sessions(now + 900 * SECOND, false);
    builder.handle_sessions(now + 950 * SECOND, false);
    assert_eq!(builder.poll_timeout(), Some(now + 1200 * SECOND));
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
    assert_eq!(builder.handle_claim(now, ALICE, None), Ok(()));
    assert_eq!(builder.handle_claim(now, ALICE, None), Ok(()));
    assert_eq!(builder.handle_claim(now, BOB, None), Err(ClaimError::Taken(ALICE)));
    assert_eq!(builder.handle_watch_began(BOB), Err(NotClaimer("watch")));
    builder.handle_watch_began(ALICE).unwrap();
    pass(&mut builder, now + 1000 * SECOND);
    assert_eq!(builder.handle_stop(now, BOB), Err(NotClaimer("stop")));
    assert_eq!(builder.end(), None);
    assert_eq!(builder.handle_stop(now, ALICE), Ok(()));
    assert_eq!(builder.end(), Some(End::Stopped));
    assert!(builder.is_over(now));
}

#[test]
fn a_released_builder_waits_anew() {
    let now = start();
    let mut builder = Builder::new(now, Some(300 * SECOND));
    builder.handle_claim(now, ALICE, None).unwrap();
    assert_eq!(builder.handle_release(now, BOB), Err(NotClaimer("release")));
    assert_eq!(builder.handle_release(now + 200 * SECOND, ALICE), Ok(()));
    assert_eq!(builder.poll_timeout(), Some(now + 500 * SECOND));
    assert_eq!(builder.handle_claim(now + 201 * SECOND, BOB, None), Ok(()));
    builder.handle_watch_began(BOB).unwrap();
    // Alice's watch, which ends late, isn't Bob's.
    builder.handle_watch_ended(now + 202 * SECOND, ALICE);
    pass(&mut builder, now + 900 * SECOND);
    assert_eq!(builder.end(), None);
}

#[test]
fn a_builder_of_a_run_is_claimed_for_that_run() {
    let mut builder = Builder::new(start(), None).of_run(Some("1-1".to_owned()));
    let refused = builder.handle_claim(start(), ALICE, Some("1-2")).unwrap_err();
    assert_eq!(refused.to_string(), "this builder is of run 1-1, not of 1-2");
    assert_eq!(builder.handle_claim(start(), ALICE, Some("1-1")), Ok(()));
}

#[test]
fn nobody_stops_or_watches_an_unclaimed_builder() {
    let mut builder = Builder::new(start(), None);
    assert_eq!(builder.handle_stop(start(), ALICE), Err(NotClaimer("stop")));
    assert_eq!(builder.may_watch(ALICE), Err(NotClaimer("watch")));
}

#[test]
fn a_claimer_that_left_the_netmap_is_lost_at_once() {
    let now = start();
    let mut builder = Builder::new(now, None);
    builder.handle_presence(now, Presence::Absent);
    assert_eq!(builder.end(), None, "nobody has claimed it");
    builder.handle_claim(now, ALICE, None).unwrap();
    builder.handle_presence(now, Presence::Absent);
    assert_eq!(builder.end(), Some(End::ClaimerLost(ClaimerLoss::LoggedOut)));
}

#[test]
fn an_offline_claimer_is_lost_only_when_it_is_silent_too() {
    let now = start();
    let mut builder = watched(now);
    pass(&mut builder, now + 100 * SECOND);
    assert_eq!(builder.end(), None, "silence alone is no loss");
    // A control server that restarts calls everybody offline, after minutes in which the claimer had nothing to say.
    builder.handle_presence(now + 101 * SECOND, Presence::Offline);
    // Said again, it is no new beginning.
    builder.handle_presence(now + 105 * SECOND, Presence::Offline);
    builder.handle_heard(now + 150 * SECOND);
    pass(&mut builder, now + 150 * SECOND + CLAIMER_SILENCE - SECOND);
    assert_eq!(builder.end(), None, "it was heard in the meantime");
    pass(&mut builder, now + 150 * SECOND + CLAIMER_SILENCE);
    assert_eq!(builder.end(), Some(End::ClaimerLost(ClaimerLoss::Silent(CLAIMER_SILENCE))));
}

#[test]
fn silence_before_control_called_the_claimer_offline_counts_for_nothing() {
    let now = start();
    let mut builder = watched(now);
    pass(&mut builder, now + 300 * SECOND);
    builder.handle_presence(now + 300 * SECOND, Presence::Offline);
    pass(&mut builder, now + 320 * SECOND);
    builder.handle_presence(now + 320 * SECOND, Presence::Online);
    pass(&mut builder, now + 700 * SECOND);
    assert_eq!(builder.end(), None);
    builder.handle_presence(now + 700 * SECOND, Presence::Offline);
    pass(&mut builder, now + 700 * SECOND + CLAIMER_SILENCE - SECOND);
    assert_eq!(builder.end(), None);
    pass(&mut builder, now + 700 * SECOND + CLAIMER_SILENCE);
    assert_eq!(builder.end(), Some(End::ClaimerLost(ClaimerLoss::Silent(CLAIMER_SILENCE))));
}

#[test]
fn a_claimer_that_watches_no_more_is_lost_whatever_control_says() {
    let now = start();
    let mut builder = watched(now);
    builder.handle_watch_began(ALICE).unwrap();
    builder.handle_presence(now, Presence::Online);
    pass(&mut builder, now + 500 * SECOND);
    builder.handle_watch_ended(now + 500 * SECOND, ALICE);
    pass(&mut builder, now + 900 * SECOND);
    assert_eq!(builder.end(), None, "one of two watches is left");
    builder.handle_watch_ended(now + 900 * SECOND, ALICE);
    pass(&mut builder, now + 950 * SECOND);
    // The network was down for a while: it claims and watches again.
    builder.handle_claim(now + 950 * SECOND, ALICE, None).unwrap();
    builder.handle_watch_began(ALICE).unwrap();
    builder.handle_watch_ended(now + 960 * SECOND, ALICE);
    builder.handle_heard(now + 1000 * SECOND);
    pass(&mut builder, now + 960 * SECOND + CLAIMER_SILENCE - SECOND);
    assert_eq!(builder.end(), None);
    pass(&mut builder, now + 960 * SECOND + CLAIMER_SILENCE);
    assert_eq!(builder.end(), Some(End::ClaimerLost(ClaimerLoss::Unwatched(CLAIMER_SILENCE))));
}

#[test]
fn who_was_frozen_itself_blames_nobody() {
    let now = start();
    let mut builder = watched(now).with_claimer_silence(20 * SECOND);
    builder.handle_watch_ended(now, ALICE);
    builder.handle_timeout(now + 5 * SECOND);
    // Ten minutes later it wakes.
    builder.handle_timeout(now + 600 * SECOND);
    assert_eq!(builder.end(), None);
    pass(&mut builder, now + 619 * SECOND);
    assert_eq!(builder.end(), None);
    pass(&mut builder, now + 620 * SECOND);
    assert!(matches!(builder.end(), Some(End::ClaimerLost(_))));
}

#[test]
fn what_runs_may_go_on_for_the_drain_unless_something_hurries() {
    let now = start();
    let mut builder = watched(now);
    builder.handle_told(now, Told::Terminate, 30 * SECOND);
    assert_eq!(builder.end(), Some(End::Told(Told::Terminate)));
    assert_eq!(builder.handle_claim(now, ALICE, None), Err(ClaimError::Ending));
    assert!(!builder.is_over(now + 29 * SECOND) && builder.is_over(now + 30 * SECOND));
    // Who asked for the builds is gone, so nobody waits for them.
    builder.handle_presence(now + 3 * SECOND, Presence::Absent);
    assert!(builder.is_over(now + 3 * SECOND));
    assert_eq!(builder.end(), Some(End::Told(Told::Terminate)), "the first reason counts");

    let mut builder = watched(now);
    builder.handle_told(now, Told::Terminate, 30 * SECOND);
    builder.handle_finished(now + SECOND);
    assert!(builder.is_over(now + SECOND));
}

#[test]
fn a_drain_waits_for_no_build_of_a_claimer_that_is_gone() {
    let now = start();
    let drain = 600 * SECOND;
    let mut builder = watched(now);
    builder.handle_told(now, Told::Terminate, drain);
    pass(&mut builder, now + 200 * SECOND);
    assert!(!builder.is_over(now + 200 * SECOND), "control calls it online, and it watches");
    builder.handle_presence(now + 200 * SECOND, Presence::Offline);
    builder.handle_heard(now + 210 * SECOND);
    pass(&mut builder, now + 224 * SECOND);
    assert!(!builder.is_over(now + 224 * SECOND), "it was heard");
    pass(&mut builder, now + 225 * SECOND);
    assert!(builder.is_over(now + 225 * SECOND));
    assert_eq!(builder.end(), Some(End::Told(Told::Terminate)), "the first reason counts");

    let mut builder = watched(now);
    builder.handle_told(now, Told::Terminate, drain);
    builder.handle_watch_ended(now + 50 * SECOND, ALICE);
    pass(&mut builder, now + 64 * SECOND);
    assert!(!builder.is_over(now + 64 * SECOND));
    pass(&mut builder, now + 65 * SECOND);
    assert!(builder.is_over(now + 65 * SECOND), "whatever control says of it");
}
