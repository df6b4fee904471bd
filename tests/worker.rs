//! Nix talking to Nix, and the bystander that watches: what it makes of real sessions, in any pieces.
//!
//! With `NIXTAIL_RECORD=FOLDER` the sessions that need no input are written there, as `proto/src/worker/recorded` has them.
#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod lab;
#[allow(dead_code, reason = "shared with others")]
#[path = "nix/nix_at_hand.rs"]
mod nix_at_hand;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use lab::PATIENCE;
use lab::process::run;
use nix_at_hand::{Place, Programs, make_removable, write_derivations};
use nixtail_proto::worker::{BuildEvent, BuildOutcome, BuildWatch};

/// The file that a relay writes to; its process number is added.
const RECORD: &str = "NIXTAIL_TEST_RECORD";
/// What a relay runs.
const COMMAND: &str = "NIXTAIL_TEST_COMMAND";

/// Not a test by itself: the program that Nix starts as its `remote-program`. It runs the real one and writes down who said
/// what. The harness has its own output elsewhere; Nix's is descriptor 3.
#[test]
fn relay() {
    let (Some(record), Some(command)) = (std::env::var_os(RECORD), std::env::var(COMMAND).ok()) else { return };
    let record = format!("{}.{}", PathBuf::from(record).display(), std::process::id());
    let record = Arc::new(Mutex::new(File::create(record).unwrap()));
    let mut words = command.split(' ');
    let mut child = Command::new(words.next().unwrap());
    let mut child = child.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let nix = File::options().write(true).open("/dev/fd/3").unwrap();
    let of_client = Arc::clone(&record);
    std::thread::spawn(move || pass("client", std::io::stdin(), stdin, &of_client));
    pass("daemon", stdout, nix, &record);
    let _ = child.wait();
    std::process::exit(0);
}

/// Writes down what passes before it passes it on.
fn pass(side: &str, mut from: impl Read, mut to: impl Write, record: &Mutex<File>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..length];
        let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        writeln!(record.lock().unwrap(), "{side} {hex}").unwrap();
        if to.write_all(bytes).and_then(|()| to.flush()).is_err() {
            return;
        }
    }
}

/// What was said in one session, and by whom, in order.
type Session = Vec<(String, Vec<u8>)>;

/// A Nix that asks, one that answers, and the relay between them.
struct Pair {
    programs: Programs,
    client: Place,
    folder: tempfile::TempDir,
}

impl Pair {
    fn make() -> Option<Self> {
        let programs = Programs::find()?;
        let folder = tempfile::tempdir().unwrap();
        let client = Place::make(folder.path().join("client"), 0);
        let server = Place::make(folder.path().join("server"), 2);
        let store = server.store().display().to_string();
        let environment = server.environment().map(|(name, value)| format!("{name}='{value}'")).join(" ");
        let this = std::env::current_exe().unwrap();
        let script = format!(
            "#!/bin/sh\nexec 3>&1 1>&2\ncase \"$1\" in\n--serve) command='nix-store --serve --write --store {store}' ;;\n\
             *) command='nix-daemon --stdio --store {store}' ;;\nesac\nexec env {environment} {RECORD}='{}' \
             {COMMAND}=\"$command\" '{}' --exact relay --nocapture\n",
            folder.path().join("record").display(),
            this.display(),
        );
        let remote = folder.path().join("remote");
        fs::write(&remote, script).unwrap();
        fs::set_permissions(&remote, fs::Permissions::from_mode(0o700)).unwrap();
        Some(Self { programs, client, folder })
    }

    fn uri(&self, scheme: &str) -> String {
        format!("{scheme}://localhost?remote-program={}", self.folder.path().join("remote").display())
    }

    /// `nix-build` with these words; says whether it went well, and what the relays wrote down meanwhile.
    fn build(&self, words: &[&str]) -> (bool, Vec<Session>) {
        let mut nix = self.client.command(&self.programs.nix_build);
        let ended = run(nix.args(["--no-out-link", "--max-jobs", "0"]).args(words), 3 * PATIENCE);
        eprintln!("{}", String::from_utf8_lossy(&ended.stderr));
        let mut sessions = Vec::new();
        for entry in fs::read_dir(self.folder.path()).unwrap().filter_map(Result::ok) {
            if entry.file_name().to_string_lossy().starts_with("record.") {
                sessions.push(read(&fs::read_to_string(entry.path()).unwrap()));
                fs::remove_file(entry.path()).unwrap();
            }
        }
        (ended.status.success(), sessions)
    }

    /// `nix-build` by a build hook.
    fn build_by_hook(&self, scheme: &str, words: &[&str]) -> (bool, Vec<Session>) {
        let system = format!("{}-linux", std::env::consts::ARCH);
        let builders = format!("{} {system} - 2 1", self.uri(scheme));
        let store = self.client.store().display().to_string();
        self.build(&[&["--builders", &builders, "--store", &store], words].concat())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        make_removable(self.folder.path());
    }
}

fn read(record: &str) -> Session {
    let bytes =
        |hex: &str| (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
    record.lines().filter_map(|line| line.split_once(' ')).map(|(side, hex)| (side.to_owned(), bytes(hex))).collect()
}

/// What the bystander makes of a session, cut into pieces of so many bytes.
fn events(session: &[(String, Vec<u8>)], piece: usize) -> Vec<BuildEvent> {
    let mut watch = BuildWatch::default();
    for (side, bytes) in session {
        for bytes in bytes.chunks(piece) {
            match side.as_str() {
                "client" => watch.handle_client_bytes(bytes),
                _ => watch.handle_daemon_bytes(bytes),
            }
        }
    }
    watch.handle_end();
    std::iter::from_fn(|| watch.poll_event()).collect()
}

/// How each derivation of all sessions ended.
fn outcomes(sessions: &[Session]) -> BTreeMap<String, BuildOutcome> {
    let mut ended = BTreeMap::new();
    for session in sessions {
        let told = events(session, usize::MAX);
        for piece in [1, 7, 4096] {
            assert_eq!(events(session, piece), told);
        }
        let mut open = BTreeMap::new();
        for event in told {
            match event {
                BuildEvent::Started { build, derivation } => drop(open.insert(build, derivation)),
                BuildEvent::Finished { build, outcome } => drop(ended.insert(open.remove(&build).unwrap(), outcome)),
            }
        }
        assert!(open.is_empty());
    }
    ended
}

/// Keeps a session as a vector, where that is wanted.
fn keep(name: &str, sessions: &[Session]) {
    let Some(folder) = std::env::var_os("NIXTAIL_RECORD") else { return };
    let session = sessions.iter().find(|session| !events(session, usize::MAX).is_empty()).unwrap();
    let mut text = String::new();
    let mut last = "";
    for (side, bytes) in session {
        if side != last {
            let _ = write!(text, "{}{side} ", if last.is_empty() { "" } else { "\n" });
        }
        last = side;
        for byte in bytes {
            let _ = write!(text, "{byte:02x}");
        }
    }
    fs::write(Path::new(&folder).join(name), text + "\n").unwrap();
}

/// Derivations that need neither inputs nor a builder's program.
const SUCCESS: &str = r#"derivation { name = "recorded-success"; system = builtins.currentSystem; builder = "builtin:buildenv";
    derivations = ""; manifest = "/dev/null"; }"#;
const FAILURE: &str = r#"derivation { name = "recorded-failure"; system = builtins.currentSystem; builder = "builtin:fetchurl";
    url = "file:///nonexistent"; outputHashMode = "flat"; outputHashAlgo = "sha256";
    outputHash = "0000000000000000000000000000000000000000000000000000000000000000"; }"#;

#[test]
fn builds_by_hook_are_seen() {
    let Some(pair) = Pair::make() else { return };
    let expression = write_derivations(pair.folder.path(), &pair.programs, "worker").display().to_string();
    let (well, sessions) = pair.build_by_hook("ssh-ng", &[&expression, "-A", "top"]);
    assert!(well);
    let seen = outcomes(&sessions);
    let names = ["leaf-1", "leaf-2", "leaf-4", "leaf-8", "left", "right", "top"];
    assert_eq!(seen, names.map(|name| (name.to_owned(), BuildOutcome::Built)).into());

    for (scheme, file) in [("ssh-ng", "hook"), ("ssh", "serve")] {
        let (well, sessions) = pair.build_by_hook(scheme, &["-E", SUCCESS]);
        // What the first of the two built is there for the second.
        if scheme == "ssh-ng" {
            assert!(well);
            assert_eq!(outcomes(&sessions), [("recorded-success".to_owned(), BuildOutcome::Built)].into());
            keep("success-by-hook", &sessions);
        }
        let (well, sessions) = pair.build_by_hook(scheme, &["-E", FAILURE]);
        assert!(!well);
        assert_eq!(outcomes(&sessions), [("recorded-failure".to_owned(), BuildOutcome::Failed)].into(), "{scheme}");
        keep(&format!("failure-by-{file}"), &sessions);
    }
}

#[test]
fn builds_in_a_remote_store_are_seen() {
    let Some(pair) = Pair::make() else { return };
    let uri = pair.uri("ssh-ng");
    let store = pair.client.store().display().to_string();
    let remote = ["--store", &uri, "--eval-store", &store];
    let (well, sessions) = pair.build(&[&remote[..], &["-E", SUCCESS]].concat());
    assert!(well);
    assert_eq!(outcomes(&sessions), [("recorded-success".to_owned(), BuildOutcome::Built)].into());
    keep("success-in-store", &sessions);
    let (well, sessions) = pair.build(&[&remote[..], &["-E", FAILURE]].concat());
    assert!(!well);
    assert_eq!(outcomes(&sessions), [("recorded-failure".to_owned(), BuildOutcome::Failed)].into());
    keep("failure-in-store", &sessions);
}
