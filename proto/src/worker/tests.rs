use proptest::prelude::*;

use super::*;

const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Daemon,
}

/// A session: who said what, in order.
type Talk = Vec<(Side, Vec<u8>)>;

/// Words and texts as both protocols write them.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn word(mut self, word: u64) -> Self {
        self.0.extend(word.to_le_bytes());
        self
    }

    fn text(mut self, text: &str) -> Self {
        self = self.word(text.len() as u64);
        self.0.extend(text.as_bytes());
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn path(name: &str) -> String {
    format!("/nix/store/{HASH}-{name}.drv")
}

fn greetings(magic: u64) -> Talk {
    vec![(Side::Client, words(&[magic, 0x122])), (Side::Daemon, words(&[0x6478_696f, 0x122]))]
}

fn events(talk: &[(Side, Vec<u8>)]) -> Vec<BuildEvent> {
    let mut watch = BuildWatch::default();
    for (side, bytes) in talk {
        match side {
            Side::Client => watch.handle_client_bytes(bytes),
            Side::Daemon => watch.handle_daemon_bytes(bytes),
        }
    }
    watch.handle_end();
    std::iter::from_fn(|| watch.poll_event()).collect()
}

fn started(build: u64, name: &str) -> BuildEvent {
    BuildEvent::Started { build, derivation: name.to_owned() }
}

fn finished(build: u64, outcome: BuildOutcome) -> BuildEvent {
    BuildEvent::Finished { build, outcome }
}

/// Messages of every form.
fn chatter() -> Vec<u8> {
    let next = Bytes::default().word(0x6f6c_6d67).text("a line\n");
    let begun = next.word(0x5354_5254).word(7).word(3).word(105).text("building").word(3);
    let begun = begun.word(1).text("a field").word(0).word(9).word(1).text("").word(0);
    let result = begun.word(0x5253_4c54).word(7).word(101).word(1).word(1).text("log line");
    let empty = result.word(0x5253_4c54).word(7).word(105).word(0);
    empty.word(0x5354_4f50).word(7).0
}

fn worker_session(status: u64) -> Talk {
    let mut talk = greetings(WORKER_MAGIC);
    let request = Bytes::default().word(36).text(&path("hello-2.12")).word(1).text("out").text("rest").0;
    talk.push((Side::Client, request));
    talk.push((Side::Daemon, chatter()));
    talk.push((Side::Daemon, Bytes::default().word(0x616c_7473).word(status).text("words").word(0).0));
    talk
}

#[test]
fn a_derivation_is_built_or_fails() {
    for (status, outcome) in [
        (0, BuildOutcome::Built),
        (2, BuildOutcome::Built),
        (13, BuildOutcome::Built),
        (3, BuildOutcome::Failed),
        (14, BuildOutcome::Failed),
    ] {
        assert_eq!(events(&worker_session(status)), [started(0, "hello-2.12"), finished(0, outcome)]);
    }
}

#[test]
fn an_error_is_a_failure() {
    let mut talk = worker_session(0);
    talk.pop();
    talk.push((Side::Daemon, Bytes::default().word(0x6378_7470).text("Error").0));
    assert_eq!(events(&talk), [started(0, "hello-2.12"), finished(0, BuildOutcome::Failed)]);
}

#[test]
fn a_session_that_ends_or_says_something_else_leaves_its_build_unfinished() {
    let mut talk = worker_session(0);
    talk.pop();
    assert_eq!(events(&talk), [started(0, "hello-2.12"), finished(0, BuildOutcome::Unfinished)]);
    talk.push((Side::Daemon, words(&[4711, 0])));
    talk.extend(worker_session(0).split_off(2));
    let wanted = [
        started(0, "hello-2.12"),
        finished(0, BuildOutcome::Unfinished),
        started(1, "hello-2.12"),
        finished(1, BuildOutcome::Built),
    ];
    assert_eq!(events(&talk), wanted);
}

#[test]
fn several_paths_are_answered_for_as_a_whole_or_one_by_one() {
    let paths = |operation| {
        let request = Bytes::default().word(operation).word(3).text(&format!("{}!out", path("a")));
        request.text(&format!("/nix/store/{HASH}-source")).text(&format!("{}!dev,out", path("b"))).word(0).0
    };
    let mut talk = greetings(WORKER_MAGIC);
    talk.push((Side::Client, paths(9)));
    talk.push((Side::Daemon, [chatter(), words(&[0x616c_7473, 1])].concat()));
    talk.push((Side::Client, paths(46)));
    let result = |bytes: Bytes, asked: &str, status| bytes.text(asked).word(status).text("why").word(1).word(0);
    let results = Bytes::default().word(0x616c_7473).word(3);
    let results = result(results, &format!("{}!out", path("a")), 3);
    let results = result(results, &format!("/nix/store/{HASH}-source"), 0);
    let results = result(results, &format!("{}!dev,out", path("b")), 1);
    talk.push((Side::Daemon, results.0));
    use BuildOutcome::{Built, Failed};
    let wanted = [
        [started(0, "a"), started(1, "b"), finished(0, Built), finished(1, Built)],
        [started(2, "a"), started(3, "b"), finished(2, Failed), finished(3, Built)],
    ];
    assert_eq!(events(&talk), wanted.concat());
}

#[test]
fn results_that_are_not_found_leave_the_next_request_alone() {
    let mut talk = greetings(WORKER_MAGIC);
    talk.push((Side::Client, Bytes::default().word(46).word(1).text(&path("a")).word(0).0));
    talk.push((Side::Daemon, words(&[0x616c_7473, 1, 99])));
    talk.extend(worker_session(0).split_off(2));
    let wanted = [
        started(0, "a"),
        finished(0, BuildOutcome::Unfinished),
        started(1, "hello-2.12"),
        finished(1, BuildOutcome::Built),
    ];
    assert_eq!(events(&talk), wanted);
}

#[test]
fn the_serve_protocol_has_the_result_alone() {
    let mut talk = greetings(SERVE_MAGIC);
    talk.push((Side::Client, Bytes::default().word(8).text(&path("a")).word(0).0));
    talk.push((Side::Daemon, Bytes::default().word(3).text("why").0));
    talk.push((Side::Client, Bytes::default().word(6).word(1).text(&path("b")).0));
    talk.push((Side::Daemon, words(&[0])));
    talk.push((Side::Client, Bytes::default().word(6).word(1).text(&path("b")).0));
    talk.push((Side::Daemon, words(&[1])));
    use BuildOutcome::{Built, Failed};
    let wanted = [
        started(0, "a"),
        finished(0, Failed),
        started(1, "b"),
        finished(1, Built),
        started(2, "b"),
        finished(2, Failed),
    ];
    assert_eq!(events(&talk), wanted);
}

#[test]
fn what_a_nar_holds_is_not_read() {
    let mut talk = greetings(WORKER_MAGIC);
    let request = Bytes::default().word(36).text(&path("inside")).0;
    talk.push((Side::Client, [words(&[44, 0, 1]), request.clone()].concat()));
    talk.push((Side::Client, request));
    assert_eq!(events(&talk), []);
    assert_eq!(events(&[(Side::Client, b"SSH-2.0-OpenSSH".to_vec())]), []);
}

/// Sessions that Nix 2.8.0 had with itself, as `tests/worker.rs` recorded them: by its build hook over both protocols, and
/// with a remote store, where paths are asked for. Each one's derivation and how its build ended.
const RECORDED: [(&str, &str, BuildOutcome); 5] = [
    (include_str!("recorded/success-by-hook"), "recorded-success", BuildOutcome::Built),
    (include_str!("recorded/failure-by-hook"), "recorded-failure", BuildOutcome::Failed),
    (include_str!("recorded/failure-by-serve"), "recorded-failure", BuildOutcome::Failed),
    (include_str!("recorded/success-in-store"), "recorded-success", BuildOutcome::Built),
    (include_str!("recorded/failure-in-store"), "recorded-failure", BuildOutcome::Failed),
];

fn read(recorded: &str) -> Talk {
    let line = |line: &str| {
        let (side, hex) = line.split_once(' ').unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let side = if side == "client" { Side::Client } else { Side::Daemon };
        (side, (0..hex.len()).step_by(2).map(byte).collect())
    };
    recorded.lines().filter(|line| !line.starts_with('#')).map(line).collect()
}

/// The same bytes in other pieces. Both sides' pieces stay in their order, and end where it is the other's turn.
fn cut(talk: &Talk, lengths: &mut impl Iterator<Item = usize>) -> Talk {
    let mut pieces = Vec::new();
    for (side, bytes) in talk {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(lengths.next().unwrap_or(1).clamp(1, rest.len()));
            pieces.push((*side, piece.to_vec()));
            rest = more;
        }
    }
    pieces
}

#[test]
fn recorded_sessions_of_nix_are_followed() {
    for (recorded, name, outcome) in RECORDED {
        let (talk, wanted) = (read(recorded), [started(0, name), finished(0, outcome)]);
        assert_eq!(events(&talk), wanted);
        assert_eq!(events(&cut(&talk, &mut std::iter::repeat(1))), wanted, "byte by byte");
    }
}

proptest! {
    #[test]
    fn pieces_of_any_length_tell_the_same(lengths in prop::collection::vec(1_usize..200, 1..50)) {
        for talk in [worker_session(0), worker_session(4)].into_iter().chain(RECORDED.map(|(text, ..)| read(text))) {
            let pieces = cut(&talk, &mut lengths.iter().copied().cycle());
            prop_assert_eq!(events(&pieces), events(&talk));
        }
    }

    #[test]
    fn nothing_makes_it_panic_or_start_what_it_does_not_end(
        serve: bool,
        talk in prop::collection::vec((any::<bool>(), prop::collection::vec(prop_oneof![
            prop::sample::select(vec![6_u64, 8, 9, 36, 46, 1, 0, 0x6f6c_6d67, 0x616c_7473, 0x6378_7470, 0x5354_5254, 0x5253_4c54]).prop_map(|word| words(&[word])),
            Just(Bytes::default().text(&path("x")).0),
            prop::collection::vec(any::<u8>(), 0..40),
        ], 0..12)), 0..40),
    ) {
        let mut whole = greetings(if serve { SERVE_MAGIC } else { WORKER_MAGIC });
        let side = |client| if client { Side::Client } else { Side::Daemon };
        whole.extend(talk.into_iter().map(|(client, parts)| (side(client), parts.concat())));
        let told = events(&whole);
        let mut open = std::collections::BTreeSet::new();
        for event in told {
            match event {
                BuildEvent::Started { build, .. } => prop_assert!(open.insert(build)),
                BuildEvent::Finished { build, .. } => prop_assert!(open.remove(&build)),
            }
        }
        prop_assert!(open.is_empty());
    }
}
