//! nixtail and the real tailscaled on the real headscale.
#![allow(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod lab;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::process::Stdio;
use std::time::{Duration, Instant};

use lab::headscale::{ALLOW_ALL, Headscale, KeyTerms};
use lab::nixtail::Nixtail;
use lab::tailscaled::{Paths, Tailscaled};
use lab::{PATIENCE, wait_for};
use nixtail::agent::{Agent, Config, LEAVE_DEADLINE};
use nixtail::auth::Credential;
use nixtail_proto::secret::Secret;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const REUSABLE: KeyTerms<'_> = KeyTerms { ephemeral: true, reusable: true, tags: &[] };

struct Net {
    headscale: Headscale,
    key: String,
    theirs: Tailscaled,
}

fn net(paths: Paths) -> Option<Net> {
    let headscale = Headscale::start(ALLOW_ALL)?;
    let key = headscale.preauth_key(REUSABLE);
    let theirs = Tailscaled::start_with(headscale.url(), &key, "theirs", paths)?;
    Some(Net { headscale, key, theirs })
}

/// A TCP server on loopback: sends a greeting, then back all that it got once it got it all. tailscaled in userspace
/// passes what arrives for its tailnet address on to it.
fn echo_server() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                stream.write_all(b"hello ").unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                stream.write_all(&all).unwrap();
            });
        }
    });
    port
}

#[test]
fn both_ping_each_other_until_direct_and_through_the_tunnel() {
    let Some(net) = net(Paths::Any) else { return };
    let mut ours = Nixtail::up(net.headscale.url(), &net.key, "ours", &[]);
    eprintln!("figure: start to ready {:?}", ours.start_time);
    let address = net.theirs.wait_for_peer("ours");
    assert_eq!(address, ours.ip());

    let begun = Instant::now();
    net.theirs.ping_once(&address, "");
    eprintln!("figure: first pong to tailscaled {:?}", begun.elapsed());
    let pongs = net.theirs.ping_until_direct(&address);
    assert!(pongs.lines().last().is_some_and(|line| line.contains("pong") && !line.contains("DERP")), "{pongs}");
    for kind in ["--icmp", "--tsmp"] {
        assert!(net.theirs.ping_once(&address, kind).contains("pong"), "{kind}");
    }

    ours.wait_for_peer("theirs");
    let begun = Instant::now();
    let pongs = ours.cli_ok(&["ping", "theirs", "--until-direct"]);
    eprintln!("figure: our ping until direct {:?}\n{pongs}", begun.elapsed());
    assert!(
        pongs.lines().last().is_some_and(|line| line.starts_with("pong from theirs") && !line.contains("DERP")),
        "{pongs}"
    );
    for kind in ["--icmp", "--tsmp"] {
        assert!(ours.cli_ok(&["ping", "theirs", "-c", "1", kind]).contains("pong from theirs"), "{kind}");
    }

    let status = ours.status();
    assert_eq!((&status["schema"], &status["state"]), (&1.into(), &"running".into()), "{status}");
    assert_eq!(status["peers"][0]["path"]["kind"], "direct", "{status}");

    assert!(headscale_has(&net.headscale, "ours"));
    let socket = ours.socket();
    let begun = Instant::now();
    assert!(ours.end(Signal::TERM).success());
    eprintln!("figure: SIGTERM to end {:?}", begun.elapsed());
    assert!(!headscale_has(&net.headscale, "ours"), "an ephemeral node is gone as soon as it has ended");
    assert!(!socket.exists());
}

#[test]
fn by_derp_alone_both_ping_each_other() {
    let Some(net) = net(Paths::DerpOnly) else { return };
    let ours = Nixtail::up(net.headscale.url(), &net.key, "ours", &["--no-direct"]);
    let address = net.theirs.wait_for_peer("ours");
    let pong = net.theirs.ping_once(&address, "");
    assert!(pong.contains("via DERP(lab)"), "{pong}");
    for kind in ["--icmp", "--tsmp"] {
        assert!(net.theirs.ping_once(&address, kind).contains("pong"), "{kind}");
    }
    ours.wait_for_peer("theirs");
    for kind in [&[][..], &["--icmp"], &["--tsmp"]] {
        let pong = ours.cli_ok(&[&["ping", "theirs", "-c", "1"], kind].concat());
        assert!(pong.contains("pong from theirs"), "{pong}");
    }
    assert_eq!(ours.status()["peers"][0]["path"]["kind"], "derp");
    let failed = ours.cli(&["ping", "theirs", "-c", "1", "--until-direct"]);
    assert_eq!(failed.status.code(), Some(75), "{failed:?}");
}

#[test]
fn nc_carries_a_stream_to_tailscaled_with_half_close() {
    let Some(net) = net(Paths::Any) else { return };
    let ours = Nixtail::up(net.headscale.url(), &net.key, "ours", &[]);
    ours.wait_for_peer("theirs");
    let port = echo_server().to_string();
    let data: Vec<u8> = (0..4 << 20).map(|n: u32| (n % 251) as u8).collect();
    let mut nc = ours.command(&["nc", "theirs", &port]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, sent) = (nc.stdin.take().unwrap(), data.clone());
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let mut got = Vec::new();
    nc.stdout.take().unwrap().read_to_end(&mut got).unwrap();
    writer.join().unwrap();
    assert!(nc.wait().unwrap().success());
    assert!(got.starts_with(b"hello ") && got[6..] == data, "{} bytes came back", got.len());

    let refused = ours.cli(&["nc", "nobody", "22"]);
    assert_eq!(refused.status.code(), Some(69), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no node"), "{refused:?}");
}

#[test]
fn nc_hands_a_connected_descriptor_to_its_parent_as_ssh_wants_it() {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let Some(net) = net(Paths::Any) else { return };
    let ours = Nixtail::up(net.headscale.url(), &net.key, "ours", &[]);
    ours.wait_for_peer("theirs");
    let port = echo_server().to_string();
    let (parent, child) = std::os::unix::net::UnixStream::pair().unwrap();
    let child = std::os::fd::OwnedFd::from(child);
    let mut nc = ours.command(&["nc", "--fdpass", "theirs", &port]).stdout(child).spawn().unwrap();
    assert!(nc.wait().unwrap().success(), "it ends once the descriptor is handed over");
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [1];
    let mut slices = [std::io::IoSliceMut::new(&mut byte)];
    recvmsg(&parent, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let descriptor = control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        })
        .unwrap();
    let mut stream = std::os::unix::net::UnixStream::from(descriptor);
    stream.write_all(b"through the tunnel").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert_eq!(got, "hello through the tunnel");
}

#[test]
fn tailscales_nc_reaches_a_listener_of_ours_who_knows_its_peer() {
    let Some(net) = net(Paths::Any) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let agent = runtime.block_on(Agent::join(config(&net))).unwrap();
    let mut listener = runtime.block_on(agent.listen(7000)).unwrap();
    let theirs = net.theirs.status()["Self"]["PublicKey"].as_str().unwrap().to_owned();
    let served = runtime.spawn(async move {
        let mut stream = listener.accept().await.unwrap();
        let peer = stream.peer();
        let mut words = [0; 14];
        stream.read_exact(&mut words).await.unwrap();
        stream.write_all(&words).await.unwrap();
        stream.shutdown().await.unwrap();
        peer
    });
    let address = net.theirs.wait_for_peer("library");
    let mut nc =
        net.theirs.command(&["nc", &address, "7000"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // It ends when either of its sides does, so its stdin stays open.
    let mut stdin = nc.stdin.take().unwrap();
    stdin.write_all(b"there and back").unwrap();
    let mut got = String::new();
    nc.stdout.take().unwrap().read_to_string(&mut got).unwrap();
    let _ = nc.kill();
    nc.wait().unwrap();
    assert_eq!(got, "there and back");
    let peer = runtime.block_on(served).unwrap();
    assert_eq!(peer.to_string(), theirs);

    let refused = runtime.block_on(agent.dial("theirs", 1)).unwrap_err();
    assert!(matches!(refused, nixtail::agent::DialError::Refused { .. }), "{refused}");
    runtime.block_on(agent.leave(LEAVE_DEADLINE)).unwrap();
    assert!(!headscale_has(&net.headscale, "library"));
}

#[test]
fn up_in_the_background_returns_when_ready_and_down_ends_it() {
    let Some(net) = net(Paths::Any) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (socket, key_file) = (folder.path().join("sock"), folder.path().join("key"));
    std::fs::write(&key_file, &net.key).unwrap();
    let nixtail = |args: &[&str]| {
        let mut command = std::process::Command::new(lab::nixtail::program());
        command.args(args).env_remove("TS_AUTHKEY").env("NIXTAIL_SOCKET", &socket);
        lab::process::run(&mut command, 2 * PATIENCE)
    };
    let key = format!("file:{}", key_file.display());
    let up = ["up", "--background", "--auth-key", &key, "--login-server", net.headscale.url(), "--hostname", "ours"];
    let started = nixtail(&up);
    assert!(started.status.success() && started.stdout.starts_with(b"ready "), "{started:?}");
    let again = nixtail(&up);
    assert_eq!(again.status.code(), Some(78), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains("already runs"), "{again:?}");
    assert!(headscale_has(&net.headscale, "ours"));
    let down = nixtail(&["down"]);
    assert!(down.status.success(), "{down:?}");
    assert!(!headscale_has(&net.headscale, "ours"));
    wait_for("the socket to go", Duration::from_secs(5), || (!socket.exists()).then_some(()));
    assert_eq!(nixtail(&["status"]).status.code(), Some(69));
}

#[test]
fn one_that_is_stopped_while_it_joins_leaves_nothing() {
    let Some(headscale) = Headscale::start(ALLOW_ALL) else { return };
    let key = headscale.preauth_key(REUSABLE);
    // Before it registers, while it does (headscale takes a second), and while it waits to be ready.
    for (number, after) in [50, 300, 600, 1200].into_iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let (name, socket) = (format!("brief-{number}"), folder.path().join("sock").display().to_string());
        let args = ["up", "--login-server", headscale.url(), "--hostname", &name, "--socket", &socket];
        let log = folder.path().join("log");
        let env = [("TS_AUTHKEY", key.as_str())];
        let mut up = lab::process::Process::start(&name, &lab::nixtail::program(), args, env, &log);
        std::thread::sleep(Duration::from_millis(after));
        up.signal(Signal::TERM);
        let begun = Instant::now();
        let status = up.wait(PATIENCE);
        // The first may end before it has set up its signals.
        assert!(status.success() || number == 0, "{status:?}");
        assert!(begun.elapsed() < Duration::from_secs(8), "it took {:?}", begun.elapsed());
        assert!(!headscale_has(&headscale, &name), "{name} is left");
        assert!(number == 0 || !std::path::Path::new(&socket).exists());
    }
}

#[test]
fn a_key_that_control_refuses_is_told_as_such() {
    let Some(headscale) = Headscale::start(ALLOW_ALL) else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(lab::nixtail::program());
    command.args(["up", "--login-server", headscale.url()]);
    command.env("TS_AUTHKEY", "0123456789abcdef").env("NIXTAIL_SOCKET", folder.path().join("sock"));
    let refused = lab::process::run(&mut command, 2 * PATIENCE);
    assert_eq!(refused.status.code(), Some(77), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!said.contains("0123456789abcdef") && refused.stdout.is_empty(), "{said}");
}

fn config(net: &Net) -> Config {
    Config::new(
        net.headscale.url().to_owned(),
        Some(Credential::AuthKey(Secret::new(net.key.clone()))),
        "library".to_owned(),
    )
}

fn headscale_has(headscale: &Headscale, name: &str) -> bool {
    headscale.node(name).is_some()
}
