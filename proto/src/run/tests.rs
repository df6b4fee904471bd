use std::time::{Duration, Instant};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Tests have a clock of their own; this reads the system's once, to begin somewhere.
#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
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
