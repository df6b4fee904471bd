//! The SSH endpoint with real OpenSSH and real Nix as clients, over loopback TCP with a made-up peer.

#![cfg(feature = "ssh-nix")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests may panic")]

#[path = "ssh_endpoint/ends.rs"]
mod ends;
mod lab;
#[path = "ssh_endpoint/load.rs"]
mod load;
#[path = "ssh_endpoint/rekeying.rs"]
mod rekeying;
#[path = "ssh_endpoint/server.rs"]
mod server;
#[path = "ssh_endpoint/strangers.rs"]
mod strangers;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nixtail::nix::configuration::Wishes;
use nixtail::nix::daemon::{NixHost, NixPrograms, StoreConfig};
use nixtail::nix::facts::Facts;
use nixtail::nix::inspect::{Inspection, Request, inspect};
use nixtail::nix::spawn::ChildSpec;
use nixtail::ssh::{AllowedCommands, ConnectionEnd, Limits};
use server::{DAEMON, PATIENCE, Server, allow, commands, serve, shell, text, within};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_errors_and_exit_code_come_apart() {
    let mut server = serve(allow(|_| {}), commands(shell("echo out; echo err >&2; env | sort; exit 3"))).await;
    // In batch mode there is nobody who could show anything but a name.
    let (code, out, err) = server.run(&["-o", "BatchMode=yes", "-o", "SetEnv=SECRET=x"], DAEMON).await;
    assert_eq!((code, out.as_str(), err.as_str()), (3, "out\nPATH=/usr/bin:/bin\nPWD=/\n", "err\n"));
    let report = server.report().await;
    assert_eq!((report.end, report.user.as_deref(), report.commands_run), (ConnectionEnd::Client, Some("builder"), 1));

    let (code, out, _) = server.run(&[], "nix-store --serve --write").await;
    assert_eq!((code, out.as_str()), (0, "served\n"));
    let (code, out, _) = server.run(&[], "nix-daemon --stdio --store '/a store'").await;
    assert_eq!((code, out.lines().next()), (3, Some("out")));
    let (code, out, err) = server.run(&[], "nixtail-control 1 claim a 1").await;
    assert_eq!((code, out.as_str(), err.as_str()), (7, "coordinator claim [\"a\", \"1\"]\n", "words\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_and_a_missing_program_have_their_codes() {
    let server = serve(allow(|_| {}), commands(shell("kill -9 $$"))).await;
    assert_eq!(server.run(&[], DAEMON).await.0, 137);
    let server = serve(allow(|_| {}), commands(ChildSpec::new("/nowhere", [""; 0]))).await;
    let (code, out, err) = server.run(&[], DAEMON).await;
    assert_eq!((code, out.as_str()), (127, ""));
    assert!(err.contains("can't start /nowhere"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_on_the_list_is_refused_with_126() {
    let mut server = serve(allow(|_| {}), commands(shell("echo ran"))).await;
    for command in ["", "sh -c id", "nix-daemon --stdio; id", "nix-daemon --stdio --store /etc", "nix-store --delete x"]
    {
        let (code, out, err) = server.run(&["-T"], command).await;
        assert_eq!((code, out.as_str(), err.lines().count()), (126, "", 1), "{command}: {err}");
        assert!(err.starts_with("nixtail: "), "{err}");
        assert_eq!(server.report().await.commands_refused, 1);
    }
    let (code, _, err) = server.run(&["-s"], "sftp").await;
    assert_ne!(code, 0);
    assert!(err.contains("subsystem request failed"), "{err}");
    let (code, out, err) = server.run(&["-tt"], DAEMON).await;
    assert_eq!((code, out.as_str()), (255, ""));
    assert!(err.contains("PTY allocation request failed"), "{err}");
    let (code, _, err) = server.run(&["-W", "127.0.0.1:22"], "").await;
    assert_ne!(code, 0);
    assert!(err.contains("administratively prohibited") || err.contains("stdio forwarding failed"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_policy_refuses_with_words_and_without_a_prompt() {
    for (policy, words) in [
        (None, "has no SSH policy"),
        (allow(|rule| rule.principals.clear()), "does not permit you to SSH to this node"),
        (allow(|rule| rule.action.as_mut().unwrap().hold_and_delegate = "https://x".into()), "wants a check"),
        (allow(|rule| rule.action.as_mut().unwrap().reject = true), "refuses this connection"),
        (allow(|rule| rule.ssh_users = BTreeMap::from([("*".into(), String::new())])), "SSH as this user"),
        (allow(|rule| rule.ssh_users = BTreeMap::from([("*".into(), "other".into())])), "only as builder"),
    ] {
        let mut server = serve(policy, commands(shell("echo ran"))).await;
        // Not in batch mode: a prompt would be a hang or a message about the missing terminal.
        let (code, out, err) = server.run(&[], DAEMON).await;
        assert_eq!((code, out.as_str()), (255, ""), "{words}");
        assert!(err.contains(words), "{words}: {err}");
        assert!(!err.contains("assword"), "{err}");
        let report = server.report().await;
        assert!(matches!(&report.end, ConnectionEnd::Refused(reason) if reason.contains(words)), "{report:?}");
        assert_eq!(report.commands_run, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_never_looked_at() {
    let server = serve(allow(|_| {}), commands(shell("echo ran"))).await;
    let key = server.folder.path().join("key");
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status().await.unwrap();
    assert!(made.success());
    // `+password` asks to be asked: `none` isn't enough then, and any password is.
    let askpass = server.folder.path().join("askpass");
    let mut file = std::fs::File::create(&askpass).unwrap();
    file.write_all(b"#!/bin/sh\necho anything\n").unwrap();
    drop(file);
    std::fs::set_permissions(&askpass, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut ssh = server.ssh(&["-l", "builder+password"], DAEMON);
    ssh.env("SSH_ASKPASS", &askpass).env("SSH_ASKPASS_REQUIRE", "force");
    let (code, out, err) = text(&within(PATIENCE, ssh.output()).await.unwrap());
    assert_eq!((code, out.as_str()), (0, "ran\n"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_close_reaches_the_child_and_its_output_still_comes() {
    let server = serve(allow(|_| {}), commands(shell("cat | wc -c; sleep 0.2; echo after"))).await;
    let input = server.folder.path().join("input");
    std::fs::write(&input, vec![b'x'; 3_000_000]).unwrap();
    let mut ssh = server.ssh(&[], DAEMON);
    ssh.stdin(std::fs::File::open(&input).unwrap());
    let (code, out, _) = text(&within(PATIENCE, ssh.output()).await.unwrap());
    assert_eq!((code, out.as_str()), (0, "3000000\nafter\n"));

    // And the other way round: the child closes its stdin and ends while the client has more to say.
    let server = serve(allow(|_| {}), commands(shell("exec <&-; sleep 0.2; echo done; exit 5"))).await;
    let mut ssh = server.ssh(&[], DAEMON);
    ssh.stdin(std::fs::File::open("/dev/zero").unwrap());
    let (code, out, _) = text(&within(PATIENCE, ssh.output()).await.unwrap());
    assert_eq!((code, out.as_str()), (5, "done\n"));
}

/// Spike 4 of the project: a child that doesn't read its stdin while 256 MiB wait each way.
/// `NIXTAIL_STUCK_SECONDS=60` makes it as long as the issue has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_reads_nothing_blocks_nobody_and_fills_no_memory() {
    let seconds: u64 = std::env::var("NIXTAIL_STUCK_SECONDS").map_or(3, |text| text.parse().unwrap());
    const BYTES: u64 = 256 * 1024 * 1024;
    // All output goes before the first byte of input is read; meanwhile a line on stderr each tenth of a second.
    let script = format!(
        "(i=0; while [ $i -lt {ticks} ]; do echo tick >&2; sleep 0.1; i=$((i+1)); done) &
         head -c {BYTES} /dev/zero; echo written >&2; wait; echo reading >&2; wc -c >&2",
        ticks = seconds * 10
    );
    let mut server = serve(allow(|_| {}), commands(shell(&script))).await;
    let input = server.folder.path().join("input");
    std::fs::File::create(&input).unwrap().set_len(BYTES).unwrap();
    let mut ssh = server.ssh(&["-c", "aes128-gcm@openssh.com"], DAEMON);
    ssh.stdin(std::fs::File::open(&input).unwrap());

    let begun = Instant::now();
    let mut child = ssh.spawn().unwrap();
    let (mut stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let output = tokio::spawn(async move { tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await.unwrap() });
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stderr));
    let mut seen: Vec<(String, Duration)> = Vec::new();
    let limit = Duration::from_secs(seconds + 60);
    while let Some(line) = within(limit, lines.next_line()).await.unwrap() {
        seen.push((line.trim().to_owned(), begun.elapsed()));
    }
    let status = within(PATIENCE, child.wait()).await.unwrap();
    let at = |word: &str| seen.iter().find(|(line, _)| line == word).unwrap_or_else(|| panic!("no {word}: {seen:?}")).1;
    let report = server.report().await;
    println!(
        "written after {:?}, reading after {:?}, all after {:?}; {report:?}",
        at("written"),
        at("reading"),
        begun.elapsed()
    );

    assert!(status.success(), "{seen:?}");
    assert_eq!(output.await.unwrap(), BYTES);
    assert_eq!(seen.last().unwrap().0, BYTES.to_string());
    assert_eq!(report.bytes_in, BYTES);
    // Nothing was read before all was written, and logs flowed throughout.
    let ticks: Vec<Duration> = seen.iter().filter(|(line, _)| line == "tick").map(|(_, at)| *at).collect();
    assert_eq!(ticks.len() as u64, seconds * 10);
    let longest = ticks.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest < Duration::from_secs(2), "stderr was silent for {longest:?}");
    // Bounded: two windows and what trickles.
    let bound = 2 * Limits::default().window as usize + 1024 * 1024;
    assert!(report.highest_queued <= bound, "{report:?}");
    assert!(
        report.highest_queued > Limits::default().window as usize && report.reads_rested > 0,
        "not stuck: {report:?}"
    );
}

/// A throw-away chroot store with its own configuration; `None` (and a line) where there is no Nix.
fn throw_away_nix(folder: &std::path::Path) -> Option<NixHost> {
    let Ok(programs) = NixPrograms::find(std::env::var_os("PATH").as_ref()) else {
        assert!(std::env::var_os("NIXTAIL_REQUIRE_PEERS").is_none(), "there is no Nix on this machine");
        println!("skipped: there is no Nix on this machine");
        return None;
    };
    let configuration = folder.join("etc");
    std::fs::create_dir(&configuration).unwrap();
    let text = "sandbox = false\nsubstituters =\nbuild-users-group =\nexperimental-features = nix-command\n";
    std::fs::write(configuration.join("nix.conf"), text).unwrap();
    let store = StoreConfig::Chroot { root: folder.join("root") };
    Some(NixHost {
        programs,
        store,
        home: folder.to_path_buf(),
        user: "tester".to_owned(),
        configuration: Some(configuration),
        settings: String::new(),
    })
}

/// `nix` as a client: its own throw-away store, and our ssh_config.
fn nix_client(host: &NixHost, server: &Server, words: &[&str]) -> Command {
    let config = server.config();
    let client = NixHost { store: StoreConfig::Chroot { root: server.folder.path().join("client") }, ..host.clone() };
    let spec = client.nix(words);
    let mut nix = Command::new(&spec.program);
    // `--store` is the builder's here.
    nix.args(spec.arguments.iter().take(2 + words.len())).env_clear().envs(spec.environment.iter().cloned());
    nix.env("NIX_SSHOPTS", format!("-F {}", config.display()));
    nix.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    nix
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_nix_pings_and_copies_through_real_ssh() {
    let folder = tempfile::tempdir().unwrap();
    let Some(host) = throw_away_nix(folder.path()) else { return };
    let allowed =
        AllowedCommands { daemon: host.daemon(), serve: host.serve(), published_store: host.store.published() };
    let mut server = serve(allow(|_| {}), allowed).await;

    let uri = format!("ssh-ng://builder?remote-store={}", folder.path().join("root").display());
    let mut ping = nix_client(&host, &server, &["store", "ping", "--store", &uri]);
    let (code, _, err) = text(&within(PATIENCE, ping.output()).await.unwrap());
    assert_eq!(code, 0, "{err}");
    assert_eq!(server.report().await.commands_run, 1);

    let foreign = "ssh-ng://builder?remote-store=/etc";
    let mut ping = nix_client(&host, &server, &["store", "ping", "--store", foreign]);
    let (code, _, err) = text(&within(PATIENCE, ping.output()).await.unwrap());
    assert_ne!(code, 0);
    assert!(err.contains("store not allowed: /etc"), "{err}");
    assert_eq!(server.report().await.commands_refused, 1);

    // 8 MiB go in over either protocol.
    let file = folder.path().join("data");
    for (protocol, byte) in [("ssh-ng", 1_u8), ("ssh", 2)] {
        std::fs::write(&file, vec![byte; 8 << 20]).unwrap();
        let uri = format!("{protocol}://builder");
        let mut add = nix_client(&host, &server, &["store", "add-file", "--store", &uri, file.to_str().unwrap()]);
        let (code, path, err) = text(&within(PATIENCE, add.output()).await.unwrap());
        assert_eq!(code, 0, "{protocol}: {err}");
        let stored = folder.path().join("root").join(path.trim().trim_start_matches('/'));
        assert_eq!(std::fs::read(stored).unwrap(), vec![byte; 8 << 20], "{protocol}");
    }
}

#[tokio::test]
async fn facts_are_read_from_real_nix() {
    let folder = tempfile::tempdir().unwrap();
    let Some(host) = throw_away_nix(folder.path()) else { return };
    let request =
        Request { host, login: "bob".into(), user: "bob".into(), wishes: Wishes::default(), min_free_disk: 1 };
    let Inspection { facts, problems, .. } = inspect(request).await.unwrap();
    assert!(problems.iter().all(|problem| !problem.kind.is_fatal()), "{problems:?}");
    assert!(facts.system.ends_with("-linux"), "{facts:?}");
    assert!(facts.cores > 0 && facts.memory_bytes > 1 << 20 && facts.free_disk_bytes > 0, "{facts:?}");
    // nix.conf says no, but what is built in a chroot store is kept apart in any case.
    assert!(facts.nix_version.starts_with(|c: char| c.is_ascii_digit()) && facts.sandbox, "{facts:?}");
    assert_eq!((facts.trusted, facts.settings_reach_builds), (Some(true), Some(true)));
    assert!(facts.speed.is_some_and(|speed| speed > 0.0), "{facts:?}");
    let json = serde_json::to_string(&facts).unwrap();
    assert_eq!(serde_json::from_str::<Facts>(&json).unwrap(), facts);
}
