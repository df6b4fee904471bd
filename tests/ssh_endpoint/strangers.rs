//! Other people's clients: paramiko, asyncssh, Go's x/crypto and OpenSSH, with real Nix behind the endpoint.

use std::path::PathBuf;
use std::process::Stdio;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nixtail::nix::spawn::ChildSpec;
use nixtail::ssh::{AllowedCommands, ConnectionEnd};
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::lab::peers;
use crate::server::{DAEMON, PATIENCE, Server, allow, commands, serve, shell, within};
use crate::throw_away_nix;

const NOTHING: Talk<'static> = Talk { input: b"", answer: 0 };
const SERVE: &str = "nix-store --serve --write";

/// How a client wants to log in. Nobody looks at the key or the password.
const METHODS: [&str; 3] = ["none", "key", "password"];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stranger {
    OpenSsh,
    Python { library: &'static str, packages: PathBuf },
    Go { program: PathBuf },
}

/// What came of it, as `tests/interop/python/client.py` says it.
#[derive(Debug, Deserialize)]
struct Outcome {
    code: Option<i32>,
    #[serde(default)]
    stdout: String,
    #[serde(default)]
    stderr: String,
    refused: Option<String>,
    banner: String,
}

impl Outcome {
    fn bytes(&self) -> (Vec<u8>, Vec<u8>) {
        let decoded = |text: &str| BASE64_STANDARD.decode(text).unwrap();
        (decoded(&self.stdout), decoded(&self.stderr))
    }
}

/// All that are here; the test says by name which aren't.
fn strangers() -> Vec<Stranger> {
    let mut found = vec![Stranger::OpenSsh];
    let python = peers::require_folder("python").zip(peers::require_on_path("python3"));
    if let Some((packages, _)) = python {
        found.extend(["paramiko", "asyncssh"].map(|library| Stranger::Python { library, packages: packages.clone() }));
    }
    found.extend(peers::require("xcrypto").map(|program| Stranger::Go { program }));
    found
}

impl Stranger {
    async fn run(&self, server: &Server, user: &str, method: &str, command: &str, talk: Talk<'_>) -> Outcome {
        let mut program = match self {
            Self::OpenSsh => return open_ssh(server, user, method, command, talk).await,
            Self::Python { library, packages } => {
                let mut python = Command::new("python3");
                let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/python/client.py");
                python.args([script, library]).env("PYTHONPATH", packages);
                python
            }
            Self::Go { program } => Command::new(program),
        };
        let answer = talk.answer.to_string();
        program.arg(server.port.to_string()).args([&server.host_key, user, method, command, &answer]);
        let (code, stdout, stderr) = feed(program, talk.input.into()).await;
        assert_eq!(code, 0, "{self:?} {method}: {}", String::from_utf8_lossy(&stderr));
        serde_json::from_slice(&stdout).unwrap()
    }
}

/// What a command gets on its stdin, and how many bytes it must have said before it gets EOF: a daemon calls an early end
/// an interruption.
#[derive(Debug, Clone, Copy)]
struct Talk<'a> {
    input: &'a [u8],
    answer: usize,
}

impl<'a> From<&'a [u8]> for Talk<'a> {
    fn from(input: &'a [u8]) -> Self {
        Self { input, answer: 0 }
    }
}

/// Runs `program` with this on its stdin.
async fn feed(mut program: Command, talk: Talk<'_>) -> (i32, Vec<u8>, Vec<u8>) {
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = program.spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (answered, answer) = tokio::sync::oneshot::channel::<()>();
    let all = async {
        let sending = async {
            // Who is refused reads nothing.
            let _ = stdin.write_all(talk.input).await;
            let _ = answer.await;
            drop(stdin);
        };
        let reading = async {
            let mut said = vec![0; talk.answer];
            if let Err(error) = stdout.read_exact(&mut said).await {
                println!("less than {} bytes: {error}", talk.answer);
                said.clear();
            }
            drop(answered);
            stdout.read_to_end(&mut said).await.unwrap();
            said
        };
        tokio::join!(sending, reading, child.wait_with_output())
    };
    let ((), said, output) = within(2 * PATIENCE, all).await;
    let output = output.unwrap();
    (output.status.code().unwrap_or(-1), said, output.stderr)
}

async fn open_ssh(server: &Server, user: &str, method: &str, command: &str, talk: Talk<'_>) -> Outcome {
    let key = server.folder.path().join("key");
    let askpass = server.folder.path().join("askpass");
    if !key.exists() {
        let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
        assert!(made.await.unwrap().success());
        std::fs::write(&askpass, "#!/bin/sh\necho asked >>\"$0.log\"\necho any\n").unwrap();
        std::fs::set_permissions(&askpass, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    }
    let identity = format!("IdentityFile={}", key.display());
    let mut options = vec!["-l", user];
    match method {
        "none" => {}
        "key" => options.extend(["-o", "PreferredAuthentications=publickey", "-o", &identity]),
        _ => options.extend(["-o", "PreferredAuthentications=password"]),
    }
    let mut ssh = server.ssh(&options, command);
    ssh.env("SSH_ASKPASS", &askpass).env("SSH_ASKPASS_REQUIRE", "force");
    let (code, stdout, stderr) = feed(ssh, talk).await;
    let words = String::from_utf8_lossy(&stderr).into_owned();
    assert!(
        !std::fs::exists(server.folder.path().join("askpass.log")).unwrap(),
        "asked for a password: {method}, {user}: {words}"
    );
    let encoded = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    match code {
        255 => Outcome {
            code: None,
            stdout: String::new(),
            stderr: String::new(),
            refused: Some(words.clone()),
            banner: words,
        },
        _ => Outcome {
            code: Some(code),
            stdout: encoded(&stdout),
            stderr: encoded(&stderr),
            refused: None,
            banner: String::new(),
        },
    }
}

/// What a program that is started here and now says to the same bytes.
async fn directly(spec: &ChildSpec, talk: Talk<'_>) -> (i32, Vec<u8>) {
    let mut program = Command::new(&spec.program);
    program.args(&spec.arguments).env_clear().envs(spec.environment.iter().cloned());
    let (code, stdout, stderr) = feed(program, talk).await;
    assert!(stderr.is_empty(), "{spec:?}: {}", String::from_utf8_lossy(&stderr));
    (code, stdout)
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_nix_shakes_hands_with_every_stranger() {
    // Magic number and version of the client; of the worker protocol also two fields that are no longer used (1.21 has
    // them all). See Nix' serve-protocol and worker-protocol.
    let serve_hello = numbers(&[0x390c_9deb, 0x205]);
    let worker_hello = numbers(&[0x6e69_7863, 0x115, 0, 0]);
    let folder = tempfile::tempdir().unwrap();
    let Some(host) = throw_away_nix(folder.path()) else { return };
    let allowed =
        AllowedCommands { daemon: host.daemon(), serve: host.serve(), published_store: host.store.published() };
    // The server's magic number and version; the daemon's also, that all is well.
    let serve = Talk { input: &serve_hello, answer: 16 };
    let worker = Talk { input: &worker_hello, answer: 24 };
    let wanted_serve = directly(&host.serve(), serve).await;
    let wanted_worker = directly(&host.daemon(), worker).await;
    assert_eq!(wanted_serve.1.get(..8), Some(&numbers(&[0x5452_eecb])[..]), "{wanted_serve:?}");
    assert_eq!(wanted_worker.1.get(..8), Some(&numbers(&[0x6478_696f])[..]), "{wanted_worker:?}");
    assert_eq!(wanted_worker.1.get(16..24), Some(&numbers(&[0x616c_7473])[..]), "{wanted_worker:?}");
    let server = crate::server::serve(allow(|_| {}), allowed).await;
    for stranger in strangers() {
        for (command, talk, wanted) in [(SERVE, serve, &wanted_serve), (DAEMON, worker, &wanted_worker)] {
            let outcome = stranger.run(&server, "builder", "none", command, talk).await;
            assert_eq!(
                (outcome.code, outcome.bytes().0),
                (Some(wanted.0), wanted.1.clone()),
                "{stranger:?} {outcome:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stranger_logs_in_its_own_way_and_gets_each_byte() {
    let server = serve(allow(|_| {}), commands(shell("cat; echo words >&2; echo after; exit 3"))).await;
    let input: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let wanted = [&input[..], b"after\n"].concat();
    for stranger in strangers() {
        for method in METHODS {
            let outcome = stranger.run(&server, "builder", method, DAEMON, input.as_slice().into()).await;
            let (stdout, stderr) = outcome.bytes();
            assert_eq!((outcome.code, stderr.as_slice()), (Some(3), &b"words\n"[..]), "{stranger:?} {method}");
            assert!(stdout == wanted, "{stranger:?} {method}: {} bytes", stdout.len());
        }
        let refused = stranger.run(&server, "builder", "none", "id", NOTHING).await;
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(126), ""), "{stranger:?} {refused:?}");
        let words = String::from_utf8(refused.bytes().1).unwrap();
        assert!(words.starts_with("nixtail: command not allowed: id;"), "{words}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stranger_sees_a_refusal_once_whatever_it_offers() {
    let mut for_all = serve(None, commands(shell("echo ran"))).await;
    let mut for_one = serve(allow(|_| {}), commands(shell("echo ran"))).await;
    for stranger in strangers() {
        for method in METHODS {
            let outcome = stranger.run(&for_all, "builder", method, DAEMON, NOTHING).await;
            assert!(outcome.refused.is_some() && outcome.code.is_none(), "{stranger:?} {method}: {outcome:?}");
            assert_eq!(outcome.banner.matches("has no SSH policy").count(), 1, "{stranger:?} {method}: {outcome:?}");
            let report = for_all.report().await;
            assert!(matches!(report.end, ConnectionEnd::Refused(_) | ConnectionEnd::Client), "{report:?}");
            assert_eq!((report.user, report.commands_run), (None, 0));
        }
        // One user may come in, this one not: the words come with the end, which paramiko only logs.
        let outcome = stranger.run(&for_one, "other", "none", DAEMON, NOTHING).await;
        let refused = outcome.refused.clone().unwrap_or_default();
        assert!(outcome.code.is_none() && !refused.is_empty(), "{stranger:?}: {outcome:?}");
        let is_paramiko = matches!(stranger, Stranger::Python { library: "paramiko", .. });
        assert!(is_paramiko || refused.contains("only as builder"), "{stranger:?}: {refused}");
        let report = for_one.report().await;
        assert!(
            matches!(&report.end, ConnectionEnd::Refused(words) if words.contains("only as builder")),
            "{report:?}"
        );
        assert_eq!((report.user, report.commands_run), (None, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ssh_audit_finds_no_failure() {
    let Some(packages) = peers::require_folder("python") else { return };
    let Some(python) = peers::require_on_path("python3") else { return };
    let server = serve(allow(|_| {}), commands(shell("echo ran"))).await;
    let mut audit = Command::new(python);
    audit.env("PYTHONPATH", packages).args(["-m", "ssh_audit", "--skip-rate-test", "--json", "--port"]);
    audit.arg(server.port.to_string()).arg("127.0.0.1");
    let (code, stdout, stderr) = feed(audit, NOTHING).await;
    let told: serde_json::Value = serde_json::from_slice(&stdout)
        .unwrap_or_else(|_| panic!("{code}: {}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)));
    let mut failures = Vec::new();
    for kind in ["kex", "key", "enc", "mac"] {
        let algorithms = told[kind].as_array().unwrap();
        assert!(!algorithms.is_empty(), "{kind}: {told}");
        for algorithm in algorithms {
            println!("{kind} {}: {}", algorithm["algorithm"], algorithm["notes"]);
            if algorithm["notes"].get("fail").is_some() {
                failures.push(algorithm.clone());
            }
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
    assert_eq!(told["cves"].as_array().map_or(0, Vec::len), 0, "{told}");
}
