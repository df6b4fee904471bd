use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Tests have a clock of their own; this reads the system's once, to begin somewhere.
#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}

fn facts() -> BuilderFacts {
    BuilderFacts { system: "x86_64-linux".to_owned(), cores: 4 }
}

fn with_builder(now: Instant) -> Record {
    let mut record = Record::new(now);
    record.handle_ready(now, "a", &facts());
    record
}

fn tally(record: &Record, now: Instant) -> Tally {
    record.builder("a").unwrap().tally(now)
}

#[test]
fn times_and_counts_of_two_builds_that_overlap() {
    let now = start();
    let mut record = with_builder(now);
    record.handle_started(now + 2 * SECOND, "a", 1, "/nix/store/rfpy0xyv4qpmk92fs9vbcr9kb7gjm2li-hello-2.12.drv");
    record.handle_started(now + 3 * SECOND, "a", 2, "second");
    let running: Vec<_> = record.builder("a").unwrap().running().map(|running| &running.derivation).collect();
    assert_eq!(running, ["hello-2.12", "second"]);
    record.handle_finished(now + 5 * SECOND, "a", 1, Outcome::Built);
    let midway = tally(&record, now + 6 * SECOND);
    assert_eq!((midway.busy, midway.building, midway.running), (4 * SECOND, 6 * SECOND, 1));
    record.handle_finished(now + 7 * SECOND, "a", 2, Outcome::Failed);
    let tally = tally(&record, now + 10 * SECOND);
    assert_eq!((tally.present, tally.busy, tally.wait()), (10 * SECOND, 5 * SECOND, 5 * SECOND));
    assert_eq!(tally.building, 7 * SECOND);
    assert_eq!((tally.started, tally.running, tally.built, tally.failed, tally.lost), (2, 0, 1, 1, 0));
    let spans: Vec<_> = record.spans().map(|span| (span.derivation.as_str(), span.slot, span.length())).collect();
    assert_eq!(spans, [("hello-2.12", 0, 3 * SECOND), ("second", 1, 4 * SECOND)]);
    assert_eq!((record.ended(), record.spans().map(|span| span.number).collect()), (2, vec![1, 2]));
}

#[test]
fn what_nix_gave_up_is_neither_failed_nor_lost() {
    let now = start();
    let mut record = with_builder(now);
    let mark = record.mark();
    record.handle_started(now + SECOND, "a", 1, "x");
    record.handle_finished(now + 3 * SECOND, "a", 1, Outcome::Abandoned);
    assert_eq!((record.lost_since(mark), record.failed_since(mark)), (0, 0));
    let tally = tally(&record, now + 3 * SECOND);
    assert_eq!((tally.started, tally.running, tally.abandoned), (1, 0, 1));
    assert_eq!(record.spans().map(|span| span.outcome).collect::<Vec<_>>(), [Outcome::Abandoned]);
}

#[test]
fn what_runs_on_a_builder_that_goes_is_lost() {
    let now = start();
    let mut record = with_builder(now);
    let mark = record.mark();
    record.handle_started(now + SECOND, "a", 1, "x");
    record.handle_gone(now + 4 * SECOND, "a", "no sign of life for 30 s");
    assert_eq!((record.lost_since(mark), record.failed_since(mark)), (1, 0));
    record.handle_finished(now + 5 * SECOND, "a", 1, Outcome::Built);
    record.handle_started(now + 5 * SECOND, "a", 2, "y");
    let gone = tally(&record, now + 20 * SECOND);
    assert_eq!((gone.present, gone.busy, gone.building), (4 * SECOND, 3 * SECOND, 3 * SECOND));
    assert_eq!((gone.started, gone.built, gone.lost), (1, 0, 1), "what comes after the end isn't heeded");
    let builder = record.builder("a").unwrap();
    assert!(!builder.is_present());
    let stay = builder.stays().next().unwrap();
    assert_eq!(stay.gone, Some((now + 4 * SECOND, "no sign of life for 30 s".to_owned())));

    record.handle_ready(now + 20 * SECOND, "a", &facts());
    record.handle_started(now + 20 * SECOND, "a", 1, "x");
    record.handle_finished(now + 21 * SECOND, "a", 1, Outcome::Built);
    let back = tally(&record, now + 22 * SECOND);
    assert_eq!((back.present, back.busy, back.built, back.lost), (6 * SECOND, 4 * SECOND, 1, 1));
    assert_eq!(record.lost_since(record.mark()), 0);
    assert_eq!(record.builder("a").unwrap().stays().count(), 2);
}

#[test]
fn slots_are_taken_again_when_they_are_free() {
    let now = start();
    let mut record = with_builder(now);
    for build in 0..3 {
        record.handle_started(now, "a", build, "x");
    }
    record.handle_finished(now + SECOND, "a", 1, Outcome::Built);
    record.handle_started(now + SECOND, "a", 3, "y");
    let slots: Vec<_> = record.builder("a").unwrap().running().map(|running| running.slot).collect();
    assert_eq!(slots, [0, 2, 1]);
}

#[test]
fn a_late_word_of_an_early_build_counts_no_second_twice() {
    let now = start();
    let mut record = with_builder(now);
    record.handle_started(now + 10 * SECOND, "a", 1, "x");
    record.handle_finished(now + 20 * SECOND, "a", 1, Outcome::Built);
    record.handle_started(now + 15 * SECOND, "a", 2, "y");
    record.handle_finished(now + 22 * SECOND, "a", 2, Outcome::Built);
    let tally = tally(&record, now + 22 * SECOND);
    assert_eq!((tally.busy, tally.building), (12 * SECOND, 17 * SECOND));
    assert_eq!(record.spans().last().unwrap().started, now + 15 * SECOND);
}

#[test]
fn what_began_before_the_builder_was_ready_is_of_no_run() {
    let now = start();
    let mut record = with_builder(now + 10 * SECOND);
    record.handle_started(now + 9 * SECOND, "a", 1, "nixtail-probe");
    record.handle_finished(now + 11 * SECOND, "a", 1, Outcome::Built);
    assert_eq!(tally(&record, now + 11 * SECOND).started, 0);
    assert_eq!(record.spans().count(), 0);
}

#[test]
fn a_counter_that_falls_has_begun_anew() {
    let now = start();
    let mut record = with_builder(now);
    for (bytes_in, bytes_out) in [(100, 10), (150, 30), (20, 5), (20, 6)] {
        record.handle_traffic("a", bytes_in, bytes_out);
    }
    let counted = tally(&record, now);
    assert_eq!((counted.bytes_in, counted.bytes_out), (170, 36));
}

#[test]
fn details_are_bounded_and_counts_go_on() {
    let now = start();
    let mut record = with_builder(now);
    let more = 10;
    for build in 0..(MAX_SPANS + more) as u64 {
        let outcome = if build == 3 { Outcome::Failed } else { Outcome::Built };
        record.handle_started(now, "a", build, "x");
        record.handle_finished(now + SECOND * u32::try_from(build).unwrap(), "a", build, outcome);
    }
    assert_eq!(record.spans().count(), MAX_SPANS);
    assert_eq!(record.dropped_spans(), more as u64);
    assert_eq!(tally(&record, now).built, (MAX_SPANS + more - 1) as u64);
    assert!(record.spans().any(|span| span.outcome == Outcome::Failed), "failures are kept before what was built");
    assert!(record.spans().all(|span| span.outcome == Outcome::Failed || span.length() > 9 * SECOND));

    for build in 0..2 * MAX_RUNNING as u64 {
        record.handle_started(now, "a", 1_000_000 + build, &"é".repeat(2 * MAX_TEXT));
    }
    let builder = record.builder("a").unwrap();
    assert_eq!(builder.running().count(), MAX_RUNNING);
    assert!(builder.running().all(|running| running.derivation.chars().count() == MAX_TEXT));
    for _ in 0..2 * MAX_STAYS {
        record.handle_gone(now, "a", "x");
        record.handle_ready(now, "a", &facts());
    }
    assert_eq!(record.builder("a").unwrap().stays().count(), MAX_STAYS);
    for number in 0..2 * MAX_BUILDERS {
        record.handle_ready(now, &number.to_string(), &facts());
    }
    assert_eq!(record.builders().count(), MAX_BUILDERS);
    assert_eq!(record.dropped_builders(), (MAX_BUILDERS + 1) as u64);
}

#[test]
fn names_are_shown_without_hash_and_suffix() {
    for (path, name) in [
        ("/nix/store/rfpy0xyv4qpmk92fs9vbcr9kb7gjm2li-demo-leaf-0.drv", "demo-leaf-0"),
        ("rfpy0xyv4qpmk92fs9vbcr9kb7gjm2li-demo-leaf-0.drv", "demo-leaf-0"),
        ("demo-leaf-0", "demo-leaf-0"),
        ("", ""),
        ("/", ""),
    ] {
        assert_eq!(derivation_name(path), name);
    }
}

#[derive(Debug, Clone)]
enum Event {
    Ready,
    Gone,
    Started(u64),
    Finished(u64, Outcome),
}

fn event() -> impl Strategy<Value = Event> {
    let outcome =
        prop_oneof![Just(Outcome::Built), Just(Outcome::Failed), Just(Outcome::Lost), Just(Outcome::Abandoned)];
    prop_oneof![
        1 => Just(Event::Ready),
        1 => Just(Event::Gone),
        4 => (0..6u64).prop_map(Event::Started),
        4 => (0..6u64, outcome).prop_map(|(build, outcome)| Event::Finished(build, outcome)),
    ]
}

proptest! {
    /// Against a model that looks at each second: whatever happens, in whatever order, times that run backwards included.
    #[test]
    fn sums_hold(events in prop::collection::vec((event(), -3..10i64), 0..60)) {
        let begun = start() + 1000 * SECOND;
        let mut record = Record::new(begun);
        let mut at = begun;
        let mut latest = begun;
        // What the model knows: seconds present and busy, and what runs.
        let (mut present, mut busy, mut is_present) = (Duration::ZERO, Duration::ZERO, false);
        let mut since = begun;
        let mut running = std::collections::BTreeSet::new();
        for (event, step) in events {
            at = if step < 0 { at - SECOND * step.unsigned_abs() as u32 } else { at + SECOND * step as u32 };
            if at > latest {
                let passed = at - latest;
                present += if is_present { passed } else { Duration::ZERO };
                busy += if running.is_empty() { Duration::ZERO } else { passed };
                latest = at;
            }
            match event {
                Event::Ready => {
                    // A builder's own time begins when it is first ready.
                    latest = if record.builder("a").is_none() { at } else { latest };
                    record.handle_ready(at, "a", &facts());
                    since = if is_present { since } else { latest };
                    is_present = true;
                }
                Event::Gone => {
                    record.handle_gone(at, "a", "x");
                    is_present = false;
                    running.clear();
                }
                Event::Started(build) => {
                    record.handle_started(at, "a", build, "x");
                    if is_present && at >= since {
                        running.insert(build);
                    }
                }
                Event::Finished(build, outcome) => {
                    record.handle_finished(at, "a", build, outcome);
                    running.remove(&build);
                }
            }
            let totals = record.totals(latest);
            prop_assert_eq!((totals.present, totals.busy), (present, busy));
            prop_assert_eq!(totals.busy + totals.wait(), totals.present);
            let ended = totals.built + totals.failed + totals.lost + totals.abandoned;
            prop_assert_eq!(totals.started, totals.running + ended);
            prop_assert_eq!(totals.running as usize, running.len());
            prop_assert_eq!(record.spans().count() as u64, ended);
            let spans: Duration = record.spans().map(Span::length).sum();
            prop_assert!(spans == totals.building || !running.is_empty());
        }
    }
}
