use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::netmap::Netmap;
use crate::tailcfg::Node;

const OWN: NodePublic = NodePublic::from_bytes([7; 32]);
const SECOND: Duration = Duration::from_secs(1);

/// Tests have a clock of their own; this reads the system's once, to begin somewhere.
#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}

fn key(number: u8) -> NodePublic {
    NodePublic::from_bytes([number; 32])
}

fn named(names: &[&str]) -> Wanted {
    Wanted {
        who: Who::Named(names.iter().map(|name| (*name).to_owned()).collect()),
        at_least: None,
        systems: BTreeSet::new(),
        wait: 60 * SECOND,
    }
}

fn tagged(run: Option<&str>, count: Option<usize>) -> Wanted {
    let who = Who::Tagged { tag: BUILDER_TAG.to_owned(), run: run.map(str::to_owned), count };
    Wanted { who, ..named(&[]) }
}

fn seen(name: &str, number: u8) -> Sighting {
    Sighting { name: name.to_owned(), key: key(number), online: Some(true), is_meant: true }
}

fn all(names: &[&str]) -> Vec<Sighting> {
    names.iter().zip(1..).map(|(name, number)| seen(name, number)).collect()
}

fn failure(stage: Stage) -> Failure {
    Failure { stage, reason: "x".to_owned() }
}

fn met(system: &str, run: Option<&str>) -> Met {
    Met { systems: vec![system.to_owned()], run: run.map(str::to_owned) }
}

fn next(builders: &mut Builders, now: Instant, step: Step) -> Attempt {
    let action = builders.poll_action(now).expect("a step is due");
    assert_eq!(action.step, step, "{action:?}");
    action.attempt
}

/// Takes every step that is due, with a good end.
fn go(builders: &mut Builders, now: Instant) {
    while let Some(Action { step, attempt }) = builders.poll_action(now) {
        match step {
            Step::Meet => builders.handle_met(now, &attempt, Ok(met("x", None))),
            Step::Claim => builders.handle_claimed(now, &attempt, Ok(())),
            Step::Probe => builders.handle_probed(now, &attempt, Ok(())),
            Step::Release => builders.handle_released(&attempt),
            Step::Watch => builders.handle_watched(now, &attempt, Ok(())),
        }
    }
}

fn ready(builders: &Builders) -> Vec<&str> {
    builders.ready().collect()
}

#[test]
fn a_builder_is_met_claimed_proved_and_then_listed() {
    let now = start();
    let mut builders = Builders::new(now, named(&["a", "b"]), OWN);
    assert_eq!(builders.poll_action(now), None);
    builders.handle_netmap(now, all(&["a"]));
    let attempt = next(&mut builders, now, Step::Meet);
    assert_eq!(builders.poll_action(now), None, "one step at a time");
    builders.handle_met(now, &attempt, Ok(met("x", None)));
    let attempt = next(&mut builders, now, Step::Claim);
    builders.handle_claimed(now, &attempt, Ok(()));
    let attempt = next(&mut builders, now, Step::Probe);
    assert!(ready(&builders).is_empty());
    builders.handle_probed(now, &attempt, Ok(()));
    assert_eq!(ready(&builders), ["a"]);
    assert_eq!(builders.poll_settled(now), None);
    builders.handle_netmap(now, all(&["a", "b"]));
    go(&mut builders, now);
    assert_eq!(builders.poll_settled(now), Some(Settled::Ready));
    assert_eq!(builders.poll_settled(now), None, "it is said once");
    assert_eq!(builders.poll_timeout(), None);
}

#[test]
fn pauses_between_tries_grow_to_a_bound() {
    let mut now = start();
    let mut builders = Builders::new(now, Wanted { wait: 600 * SECOND, ..named(&["a"]) }, OWN);
    builders.handle_netmap(now, all(&["a"]));
    for _ in 0..20 {
        let attempt = next(&mut builders, now, Step::Meet);
        builders.handle_met(now, &attempt, Err(failure(Stage::Facts)));
        assert_eq!(builders.poll_action(now), None);
        let due = builders.poll_timeout().unwrap();
        assert!(due > now && due - now <= LONGEST_PAUSE);
        now = due;
    }
}

#[test]
fn the_deadline_names_who_is_missing_and_why() {
    let now = start();
    let mut builders = Builders::new(now, named(&["a", "b", "c", "d"]), OWN);
    builders.handle_netmap(now, all(&["a", "b", "d"]));
    while let Some(Action { step, attempt }) = builders.poll_action(now) {
        match (step, attempt.name.as_str()) {
            (Step::Meet, "b") => builders.handle_met(now, &attempt, Err(failure(Stage::Policy))),
            (Step::Meet, _) => builders.handle_met(now, &attempt, Ok(met("x", None))),
            (Step::Claim, "d") => {
                let holder = Holder { key: key(200), name: "other".to_owned() };
                builders.handle_claimed(now, &attempt, Err(ClaimRefusal::Taken(holder)));
            }
            (Step::Claim, _) => builders.handle_claimed(now, &attempt, Ok(())),
            (_, _) => builders.handle_probed(now, &attempt, Ok(())),
        }
    }
    assert_eq!(builders.poll_settled(now + 59 * SECOND), None);
    let Some(Settled::Missing(missing)) = builders.poll_settled(now + 60 * SECOND) else {
        panic!("the deadline passed")
    };
    let words = "1 of 4 ready; b: refused by policy: x; c: not in the netmap; d: taken by other";
    assert_eq!(missing.to_string(), words);
}

#[test]
fn a_line_of_progress_is_bounded() {
    let names: Vec<String> = (0..100).map(|number| format!("b{number}")).collect();
    let who = Who::Named(names);
    let builders = Builders::new(start(), Wanted { who, at_least: Some(3), ..named(&[]) }, OWN);
    let line = builders.progress().to_string();
    assert!(
        line.starts_with("0 of 100 ready (3 needed); b0: not in the netmap; ") && line.ends_with("; and 88 more"),
        "{line}"
    );
}

#[test]
fn who_leaves_is_gone_told_once_and_tried_again_on_return() {
    let now = start();
    let mut builders = Builders::new(now, named(&["a"]), OWN);
    builders.handle_netmap(now, all(&["a"]));
    let late = next(&mut builders, now, Step::Meet);
    builders.handle_netmap(now, vec![]);
    builders.handle_met(now, &late, Ok(met("x", None)));
    assert_eq!(builders.standings().next().unwrap().1, &Standing::Awaited, "it left while being tried");
    builders.handle_netmap(now, all(&["a"]));
    builders.handle_met(now, &late, Ok(met("x", None)));
    next(&mut builders, now, Step::Meet);
    builders.handle_netmap(now, vec![]);
    assert_eq!(builders.poll_lost(), None, "it wasn't ready");

    builders.handle_netmap(now, all(&["a"]));
    go(&mut builders, now);
    builders.handle_lost(now, "a");
    builders.handle_lost(now, "a");
    assert_eq!((builders.poll_lost().as_deref(), builders.poll_lost()), (Some("a"), None));
    assert_eq!(builders.standings().next().unwrap().1, &Standing::Gone);
    assert!(ready(&builders).is_empty());
    go(&mut builders, now + SECOND);
    assert_eq!(ready(&builders), ["a"]);
}

#[test]
fn another_node_of_the_same_name_is_another_builder() {
    let now = start();
    let mut builders = Builders::new(now, named(&["a"]), OWN);
    builders.handle_netmap(now, all(&["a"]));
    go(&mut builders, now);
    builders.handle_netmap(now, vec![seen("a", 99)]);
    assert_eq!(builders.poll_lost().as_deref(), Some("a"));
    assert!(ready(&builders).is_empty());
    assert_eq!(builders.key_of("a"), Some(key(99)));
    go(&mut builders, now);
    assert_eq!(ready(&builders), ["a"]);
}

#[test]
fn one_that_control_calls_offline_stays_as_long_as_it_lives() {
    let now = start();
    let offline = |name: &str| Sighting { online: Some(false), ..seen(name, 1) };
    let mut builders = Builders::new(now, named(&["a"]), OWN);
    builders.handle_netmap(now, vec![offline("a")]);
    assert_eq!(builders.poll_action(now), None, "a ghost isn't tried");
    builders.handle_netmap(now, all(&["a"]));
    go(&mut builders, now);
    for lives in [true, false] {
        builders.handle_netmap(now, vec![offline("a")]);
        let attempt = next(&mut builders, now, Step::Watch);
        assert_eq!(builders.poll_action(now), None, "one watch is enough");
        assert_eq!(ready(&builders), ["a"]);
        if lives {
            builders.handle_netmap(now, all(&["a"]));
        }
        builders.handle_watched(now, &attempt, if lives { Ok(()) } else { Err(failure(Stage::Connect)) });
    }
    assert!(ready(&builders).is_empty());
    assert_eq!(builders.poll_lost().as_deref(), Some("a"));
}

#[test]
fn a_step_without_an_end_is_given_up() {
    let now = start();
    let mut builders = Builders::new(now, Wanted { wait: 600 * SECOND, ..named(&["a"]) }, OWN);
    builders.handle_netmap(now, all(&["a"]));
    let dead = next(&mut builders, now, Step::Meet);
    let later = builders.poll_timeout().unwrap();
    assert_eq!(later, now + STEP_DEADLINE);
    assert_eq!(builders.poll_action(later), None);
    builders.handle_met(later, &dead, Ok(met("x", None)));
    let again = builders.poll_timeout().unwrap();
    go(&mut builders, again);
    assert_eq!(ready(&builders), ["a"]);
}

#[test]
fn no_more_are_claimed_than_counted_and_a_spare_one_takes_a_lost_ones_place() {
    let now = start();
    let mut builders = Builders::new(now, tagged(None, Some(2)), OWN);
    builders.handle_netmap(now, all(&["a", "b", "c"]));
    go(&mut builders, now);
    assert_eq!(ready(&builders), ["a", "b"]);
    assert_eq!(builders.poll_settled(now), Some(Settled::Ready));
    builders.handle_lost(now, "a");
    go(&mut builders, now);
    assert_eq!(ready(&builders), ["b", "c"]);
}

#[test]
fn one_that_fails_its_probe_gives_its_place_to_another() {
    let now = start();
    let mut builders = Builders::new(now, tagged(None, Some(1)), OWN);
    builders.handle_netmap(now, all(&["a", "b"]));
    while let Some(Action { step, attempt }) = builders.poll_action(now) {
        match step {
            Step::Meet => builders.handle_met(now, &attempt, Ok(met("x", None))),
            Step::Claim => builders.handle_claimed(now, &attempt, Ok(())),
            Step::Probe if attempt.name == "a" => {
                builders.handle_probed(now, &attempt, Err(failure(Stage::ProbeBuild)));
            }
            Step::Probe => builders.handle_probed(now, &attempt, Ok(())),
            Step::Release => builders.handle_released(&attempt),
            Step::Watch => panic!("all are online"),
        }
    }
    assert_eq!(ready(&builders), ["b"]);
}

#[test]
fn each_wanted_system_keeps_a_place() {
    let now = start();
    let wanted = Wanted { systems: ["x", "y"].map(str::to_owned).into(), ..tagged(None, Some(2)) };
    let mut builders = Builders::new(now, wanted, OWN);
    builders.handle_netmap(now, all(&["a", "b", "c"]));
    while let Some(Action { step, attempt }) = builders.poll_action(now) {
        match step {
            Step::Meet => {
                let system = if attempt.name == "c" { "y" } else { "x" };
                builders.handle_met(now, &attempt, Ok(met(system, None)));
            }
            Step::Claim => builders.handle_claimed(now, &attempt, Ok(())),
            _ => builders.handle_probed(now, &attempt, Ok(())),
        }
    }
    assert_eq!(ready(&builders), ["a", "c"]);
    assert_eq!(builders.poll_settled(now), Some(Settled::Ready));
}

#[test]
fn a_system_that_none_has_is_missed() {
    let now = start();
    let wanted = Wanted { systems: ["x", "y"].map(str::to_owned).into(), at_least: Some(1), ..named(&["a", "b"]) };
    let mut builders = Builders::new(now, wanted, OWN);
    builders.handle_netmap(now, all(&["a"]));
    go(&mut builders, now);
    let Some(Settled::Missing(missing)) = builders.poll_settled(now + 60 * SECOND) else { panic!("y is missing") };
    assert_eq!(missing.to_string(), "1 of 2 ready (1 needed); b: not in the netmap; none for y");
}

#[test]
fn a_run_is_who_says_so_or_carries_it_in_its_name() {
    let now = start();
    let mut builders = Builders::new(now, Wanted { at_least: Some(3), ..tagged(Some("77-1"), None) }, OWN);
    let stranger = |name: &str, number| Sighting { is_meant: false, ..seen(name, number) };
    let sightings =
        vec![seen("nb-77-1-a", 1), seen("nb-77-1-b", 2), stranger("c", 3), stranger("d", 4), stranger("e", 5)];
    builders.handle_netmap(now, sightings);
    let mut order = Vec::new();
    while let Some(Action { step, attempt }) = builders.poll_action(now) {
        let said = match attempt.name.as_str() {
            // By name of ours, by its own word of another run.
            "nb-77-1-b" => Some("78-1"),
            "c" => Some("77-1"),
            "d" => Some("78-1"),
            _ => None,
        };
        match step {
            Step::Meet => {
                order.push(attempt.name.clone());
                builders.handle_met(now, &attempt, Ok(met("x", said)));
            }
            Step::Claim => builders.handle_claimed(now, &attempt, Ok(())),
            _ => builders.handle_probed(now, &attempt, Ok(())),
        }
    }
    assert_eq!(ready(&builders), ["c", "nb-77-1-a"]);
    assert!(order.iter().position(|name| name == "c") > order.iter().position(|name| name == "nb-77-1-b"), "{order:?}");
    let line = builders.progress().to_string();
    assert_eq!(line, "2 of 3 ready; 1 more: no node with tag:nix-ci-builder of run 77-1 in the netmap");
}

#[test]
fn who_wants_no_run_takes_none_of_a_runs_builders() {
    let now = start();
    let mut builders = Builders::new(now, tagged(None, Some(1)), OWN);
    builders.handle_netmap(now, all(&["a"]));
    let attempt = next(&mut builders, now, Step::Meet);
    builders.handle_met(now, &attempt, Ok(met("x", Some("77"))));
    assert_eq!((builders.poll_action(now), builders.standings().count()), (None, 0));
    // By its name it may.
    let mut builders = Builders::new(now, named(&["a"]), OWN);
    builders.handle_netmap(now, all(&["a"]));
    let attempt = next(&mut builders, now, Step::Meet);
    builders.handle_met(now, &attempt, Ok(met("x", Some("77"))));
    next(&mut builders, now, Step::Claim);
}

#[test]
fn a_runs_name_stands_behind_one_word_or_what_the_action_writes() {
    for (node, run, wanted) in [
        ("nb-77-1-0", "77-1", true),
        ("nb-77-1-0", "77", true),
        ("77-1-0", "77-1", true),
        ("nb-77-1-3", "1", false),
        ("nb-77-10-3", "77-1", false),
        ("nb-77-1", "77-1", false),
        ("nb-my-run-0", "My_Run", true),
        ("nix-builder-77-1-build-0", "77-1", true),
        ("nix-builder-77-1-build-0", "1", false),
        ("b1", "77", false),
    ] {
        assert_eq!(carries_run(node, run), wanted, "{node} {run}");
    }
    for bad in ["", "-a", ".a", "a b", "a/b", "é", &"x".repeat(MAX_RUN_NAME + 1)] {
        assert!(check_run_name(bad).is_err(), "{bad}");
    }
    assert_eq!(check_run_name("77-1_a.B"), Ok(()));
}

#[test]
fn only_what_control_has_tagged_is_looked_at() {
    let node = |number: u8, name: &str, tags: &[&str]| {
        let node = Node {
            name: format!("{name}.example.net."),
            key: key(number),
            addresses: vec![format!("100.64.0.{number}/32").parse().unwrap()],
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            ..Node::default()
        };
        (u64::from(number).try_into().unwrap(), Arc::new(node))
    };
    let own =
        Node { addresses: vec!["100.64.0.100/32".parse().unwrap()], name: "c.example.net.".into(), ..Node::default() };
    let netmap = Netmap {
        self_node: Arc::new(own),
        peers: [
            node(1, "nb-77-1-0", &[BUILDER_TAG]),
            node(2, "nb-77-1-1", &["tag:other"]),
            node(3, "nb-78-1-0", &["tag:other", BUILDER_TAG]),
        ]
        .into(),
        ..Netmap::default()
    };
    let names = |wanted: &Wanted| -> Vec<(String, bool)> {
        wanted.sightings(&netmap).into_iter().map(|sighting| (sighting.name, sighting.is_meant)).collect()
    };
    assert_eq!(names(&tagged(Some("77-1"), None)), [("nb-77-1-0".to_owned(), true), ("nb-78-1-0".to_owned(), false)]);
    assert_eq!(names(&tagged(None, Some(1))), [("nb-77-1-0".to_owned(), true), ("nb-78-1-0".to_owned(), true)]);
    assert_eq!(names(&named(&["nb-77-1-1", "nobody"])), [("nb-77-1-1".to_owned(), true)]);
}

#[test]
fn after_the_stop_nobody_is_listed_or_tried() {
    let now = start();
    let mut builders = Builders::new(now, named(&["a", "b"]), OWN);
    builders.handle_netmap(now, all(&["a"]));
    go(&mut builders, now);
    builders.handle_stopped();
    builders.handle_netmap(now, all(&["a", "b"]));
    assert_eq!((builders.poll_action(now + 600 * SECOND), ready(&builders).len()), (None, 0));
    builders.handle_netmap(now, vec![]);
    assert_eq!(builders.poll_lost(), None, "it was no loss");
}

/// Builders as they are, and who has claimed them.
struct Field {
    claims: BTreeMap<String, NodePublic>,
}

impl Field {
    /// Runs the coordinators, one step of each in turn, until none has anything to do before `until`.
    fn run(&mut self, coordinators: &mut [Builders], mut now: Instant, until: Instant) -> Vec<Option<Settled>> {
        let mut settled = vec![None; coordinators.len()];
        loop {
            let mut moved = false;
            for (coordinator, settled) in coordinators.iter_mut().zip(&mut settled) {
                if let Some(action) = coordinator.poll_action(now) {
                    moved = true;
                    self.step(coordinator, now, action);
                }
                if let Some(end) = coordinator.poll_settled(now) {
                    assert_eq!(*settled, None, "settled twice");
                    *settled = Some(end);
                }
            }
            if !moved {
                let due = coordinators.iter().filter_map(Builders::poll_timeout).min();
                match due.filter(|due| *due < until) {
                    Some(due) => {
                        assert!(due > now, "it turns in circles");
                        now = due;
                    }
                    None => return settled,
                }
            }
        }
    }

    fn step(&mut self, coordinator: &mut Builders, now: Instant, action: Action) {
        let (own, Action { step, attempt }) = (coordinator.own_key, action);
        match step {
            Step::Meet => coordinator.handle_met(now, &attempt, Ok(met("x", None))),
            Step::Claim => {
                let holder = *self.claims.entry(attempt.name.clone()).or_insert(own);
                let taken = || ClaimRefusal::Taken(Holder { key: holder, name: "other".to_owned() });
                coordinator.handle_claimed(now, &attempt, if holder == own { Ok(()) } else { Err(taken()) });
            }
            Step::Probe => {
                assert_eq!(self.claims.get(&attempt.name), Some(&own), "nobody proves another's");
                coordinator.handle_probed(now, &attempt, Ok(()));
            }
            Step::Release => {
                self.claims.remove(&attempt.name).filter(|holder| *holder == own).expect("its own");
                coordinator.handle_released(&attempt);
            }
            Step::Watch => panic!("all are online"),
        }
    }
}

#[test]
fn of_two_that_wait_for_more_than_there_are_one_gets_all() {
    let now = start();
    let names = ["a", "b", "c", "d", "e", "f"];
    let coordinator = |own| Builders::new(now, tagged(None, Some(4)), key(own));
    let mut both = [coordinator(2), coordinator(1)];
    both.iter_mut().for_each(|one| one.handle_netmap(now, all(&names)));
    let mut field = Field { claims: BTreeMap::new() };
    let settled = field.run(&mut both, now, now + 61 * SECOND);
    assert_eq!(settled[1], Some(Settled::Ready));
    let Some(Settled::Missing(missing)) = &settled[0] else { panic!("six aren't eight: {settled:?}") };
    assert!(missing.to_string().contains("taken by other"), "{missing}");
    assert_eq!(ready(&both[1]).len(), 4);
    assert_eq!(field.claims.len(), 4, "who gave way holds nothing");
}

#[test]
fn a_claim_that_nobody_answers_leaves_its_builder_to_whoever_is_there() {
    let mut now = start();
    let wanted = Wanted { wait: 1_000 * SECOND, ..named(&["a", "b"]) };
    let mut builders = Builders::new(now, wanted, OWN);
    builders.handle_netmap(now, all(&["a"]));
    let attempt = next(&mut builders, now, Step::Meet);
    builders.handle_met(now, &attempt, Ok(met("x", None)));
    let attempt = next(&mut builders, now, Step::Claim);
    let holder = Holder { key: key(1), name: "other".to_owned() };
    builders.handle_claimed(now, &attempt, Err(ClaimRefusal::Taken(holder)));
    // It is asked again, and never answers; then the other one is gone, and all is well.
    now += LONGEST_PAUSE;
    next(&mut builders, now, Step::Claim);
    builders.handle_netmap(now, all(&["a", "b"]));
    let until = now + 2 * STEP_DEADLINE;
    while let Some(due) = builders.poll_timeout().filter(|due| *due < until) {
        now = due;
        go(&mut builders, now);
    }
    assert_eq!(ready(&builders), ["a", "b"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any number of coordinators over any number of builders: nobody waits in vain while enough are there.
    #[test]
    fn coordinators_share_without_stealing_and_without_a_deadlock(
        count in 1_usize..12,
        needs in proptest::collection::vec((1_usize..6, 0_usize..3), 1..5),
        order in any::<u64>(),
    ) {
        let now = start();
        let names: Vec<String> = (0..count).map(|number| format!("b{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut coordinators: Vec<Builders> = needs.iter().zip(1..).map(|((enough, more), own)| {
            // Keys in any order.
            let own = key(u8::try_from((own * (order % 97 + 1)) % 101 + 1).unwrap());
            Builders::new(now, Wanted { at_least: Some(*enough), ..tagged(None, Some(enough + more)) }, own)
        }).collect();
        let keys: BTreeSet<NodePublic> = coordinators.iter().map(|one| one.own_key).collect();
        prop_assume!(keys.len() == coordinators.len());
        coordinators.iter_mut().for_each(|one| one.handle_netmap(now, all(&names)));
        let mut field = Field { claims: BTreeMap::new() };
        let settled = field.run(&mut coordinators, now, now + 61 * SECOND);
        prop_assert!(settled.iter().all(Option::is_some));
        let mut listed = BTreeSet::new();
        for (one, (enough, more)) in coordinators.iter().zip(&needs) {
            prop_assert!(ready(one).len() <= enough + more);
            for name in ready(one) {
                prop_assert!(listed.insert(name.to_owned()), "{name} is in two lists");
                prop_assert_eq!(field.claims.get(name), Some(&one.own_key));
            }
        }
        // No two hold what the other waits for: whoever came first may wait in vain for more, and nobody else does.
        let waits = coordinators.iter().zip(&settled).filter(|(_, end)| **end != Some(Settled::Ready)).map(|(one, _)| one.own_key);
        let holders = waits.filter(|own| field.claims.values().any(|holder| holder == own)).count();
        prop_assert!(holders <= 1, "{settled:?}");
    }

    /// Any history of netmaps, ends of steps, losses and time: the list is exactly the ready ones, the waiting ends once, and
    /// once all is well again every builder is listed.
    #[test]
    fn the_list_is_true_and_nobody_is_stuck(
        history in proptest::collection::vec((0_u8..10, 0_u8..4, 0_u8..8), 0..120),
        count in 1_usize..5,
        by_name in any::<bool>(),
    ) {
        let mut now = start();
        let names = ["a", "b", "c", "d"];
        let wanted = if by_name { named(&names) } else { tagged(None, Some(count)) };
        let wanted = Wanted { wait: 100_000 * SECOND, ..wanted };
        let mut builders = Builders::new(now, wanted, OWN);
        let mut nodes: BTreeMap<&str, Sighting> = BTreeMap::new();
        let mut under_way: Vec<Action> = Vec::new();
        // Who was proved, under which key, and hasn't been lost since.
        let mut proved: BTreeMap<String, NodePublic> = BTreeMap::new();
        let mut settled = 0;
        for (what, which, how) in history {
            let name = names[usize::from(which)];
            match what {
                0 => { nodes.insert(name, seen(name, how + 1)); }
                1 => { nodes.remove(name); }
                2 => if let Some(node) = nodes.get_mut(name) { node.online = [Some(true), Some(false), None][usize::from(how % 3)] },
                3 => { builders.handle_lost(now, name); proved.remove(name); }
                4 => now += Duration::from_millis(u64::from(how) * 700),
                5 => now += Duration::from_secs(u64::from(how) * 20),
                _ if !under_way.is_empty() => {
                    let Action { step, attempt } = under_way.swap_remove(usize::from(which) % under_way.len());
                    let good = how != 0;
                    let end = if good { Ok(()) } else { Err(failure(Stage::Connect)) };
                    match step {
                        Step::Meet => builders.handle_met(now, &attempt, end.map(|()| met("x", None))),
                        Step::Claim if how == 1 => {
                            let holder = Holder { key: key(how), name: "other".to_owned() };
                            builders.handle_claimed(now, &attempt, Err(ClaimRefusal::Taken(holder)));
                        }
                        Step::Claim => builders.handle_claimed(now, &attempt, end.map_err(ClaimRefusal::Failed)),
                        Step::Probe => {
                            let counts = builders.entries.get(&attempt.name).is_some_and(|entry| entry.attempt == attempt.number && matches!(entry.doing, Some((Step::Probe, _))));
                            builders.handle_probed(now, &attempt, end);
                            if good && counts {
                                proved.insert(attempt.name.clone(), builders.key_of(&attempt.name).unwrap());
                            }
                        }
                        Step::Release => builders.handle_released(&attempt),
                        Step::Watch => {
                            let counts = builders.entries.get(&attempt.name).is_some_and(|entry| entry.attempt == attempt.number);
                            builders.handle_watched(now, &attempt, end);
                            if !good && counts { proved.remove(&attempt.name); }
                        }
                    }
                }
                _ => {}
            }
            builders.handle_netmap(now, nodes.values().cloned().collect());
            proved.retain(|name, key| nodes.get(name.as_str()).is_some_and(|node| node.key == *key));
            while let Some(action) = builders.poll_action(now) {
                if action.step == Step::Release { proved.remove(&action.attempt.name); }
                under_way.push(action);
            }
            while builders.poll_lost().is_some() {}
            settled += usize::from(builders.poll_settled(now).is_some());
            let listed: BTreeSet<&str> = builders.ready().collect();
            prop_assert_eq!(listed, proved.keys().map(String::as_str).collect::<BTreeSet<_>>());
            prop_assert!(builders.steps() <= MAX_STEPS);
            if !by_name { prop_assert!(builders.entries.values().filter(|entry| entry.is_held).count() <= count); }
        }
        // All is well from here on; what is still under way never ends.
        builders.handle_netmap(now, all(&names));
        let until = now + 400 * SECOND;
        loop {
            go(&mut builders, now);
            settled += usize::from(builders.poll_settled(now).is_some());
            let Some(due) = builders.poll_timeout().filter(|due| *due < until) else { break };
            prop_assert!(due > now, "it turns in circles");
            now = due;
        }
        prop_assert_eq!(builders.ready().count(), if by_name { names.len() } else { count }, "{:#?}", builders);
        prop_assert_eq!(settled, 1);
    }
}
