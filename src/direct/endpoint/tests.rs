use std::pin::Pin;
use std::sync::Mutex;
use std::time::Instant;

use nixtail_proto::key::NodePublic;
use nixtail_proto::ssh_policy::{Acceptance, Decision, PrincipalFacts, Rejection};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::task::JoinHandle;

use super::*;
use crate::direct::call::{CallError, Reply, ask};
use crate::ssh::ControlReply;

const PATIENCE: Duration = Duration::from_secs(60);

type Policy = Arc<Mutex<Decision>>;

struct Verbs;

impl ControlVerbs for Verbs {
    fn answer(&self, peer: &Peer, request: ControlRequest) -> Pin<Box<dyn Future<Output = ControlReply> + Send + '_>> {
        let stdout = format!("{} {}", peer.name, request.verb.as_str()).into_bytes();
        Box::pin(std::future::ready(ControlReply { stdout, stderr: "words".into(), exit_code: 7 }))
    }
}

/// An endpoint whose `nix-daemon --stdio` is a shell script, behind real TCP, and what its policy says.
struct Lab {
    endpoint: Arc<DirectEndpoint>,
    policy: Policy,
    cancel: CancellationToken,
}

fn shell(script: &str) -> ChildSpec {
    ChildSpec::new("/bin/sh", ["-c", script]).with_variable("PATH", "/usr/bin:/bin")
}

fn lab(daemon: ChildSpec) -> Lab {
    let accepted =
        Acceptance { local_user: "builder".into(), session_duration: None, message: String::new(), expires: None };
    let policy: Policy = Arc::new(Mutex::new(Decision::Accept(accepted)));
    let seen = Arc::clone(&policy);
    let authorizer = move |_: &Peer, user: &str| match user {
        "builder" => seen.lock().unwrap().clone(),
        _ => Decision::Reject(Rejection::NoUser),
    };
    let endpoint = Arc::new(DirectEndpoint {
        admission: AdmissionControl::new("builder", Arc::new(authorizer)),
        commands: AllowedCommands { daemon, serve: shell("echo served"), published_store: Some("/a store".into()) },
        daemon_socket: None,
        sessions: Arc::default(),
        answer_deadline: PATIENCE,
        control: Arc::new(Verbs),
    });
    Lab { endpoint, policy, cancel: CancellationToken::new() }
}

impl Lab {
    /// A connection, and what becomes of the session at its other end.
    async fn connect(&self) -> (TcpStream, JoinHandle<SessionReport>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, source) = listener.accept().await.unwrap();
        let facts = PrincipalFacts::default();
        let peer = Peer { node_key: NodePublic::from_bytes([7; 32]), name: "coordinator".into(), facts, source };
        let (endpoint, cancel) = (Arc::clone(&self.endpoint), self.cancel.clone());
        (client, tokio::spawn(async move { endpoint.serve(server, peer, &cancel).await }))
    }

    async fn ask(&self, login: &str, command: &str) -> (Result<Reply, CallError>, SessionEnd) {
        let (client, session) = self.connect().await;
        let reply = soon(ask(client, &Request::new(login, command).unwrap())).await;
        (reply, soon(session).await.unwrap().end)
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("took too long")
}

fn reply(stdout: &str, stderr: &str, code: u32) -> Reply {
    Reply { stdout: stdout.into(), stderr: stderr.into(), code, words: String::new() }
}

/// Whether a process is gone, or a zombie.
async fn gone(id: &str) -> bool {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if crate::nix::spawn::is_gone(id.parse().unwrap()) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

/// Reads until `text` has come.
async fn read_until(client: &mut TcpStream, text: &str) -> Vec<u8> {
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains(text) {
        assert_ne!(soon(client.read_buf(&mut all)).await.unwrap(), 0, "{}", String::from_utf8_lossy(&all));
    }
    all
}

#[tokio::test]
async fn output_stderr_and_exit_code_come_back() {
    let lab = lab(shell("echo out; echo err >&2; exit 3"));
    let (answer, end) = lab.ask("builder", "nix-daemon --stdio").await;
    assert_eq!((answer.unwrap(), end), (reply("out\n", "err\n", 3), SessionEnd::Finished(3)));
    let (answer, _) = lab.ask("builder", "nix-store --serve --write").await;
    assert_eq!(answer.unwrap(), reply("served\n", "", 0));
    let (answer, _) = lab.ask("builder", "nixtail-control 1 ping").await;
    assert_eq!(answer.unwrap(), reply("coordinator ping", "words", 7));
}

#[tokio::test]
async fn what_ssh_refuses_is_refused_here() {
    let lab = lab(shell("echo never"));
    let refused = |answer: Result<Reply, CallError>| match answer.unwrap_err() {
        CallError::Refused { kind, words } => (kind, words),
        other => panic!("{other}"),
    };
    for (command, words) in [
        ("touch /tmp/x", "command not allowed"),
        ("nix-daemon --stdio; touch /tmp/x", "command not allowed"),
        ("nix-daemon --stdio --store /elsewhere", "store not allowed"),
        ("nixtail-control 2 ping", "isn't spoken here"),
    ] {
        let (kind, said) = refused(lab.ask("builder", command).await.0);
        assert!(kind == RefusalKind::Command && said.contains(words), "{command}: {said}");
    }
    let (answer, end) = lab.ask("root", "nix-daemon --stdio").await;
    assert_eq!(refused(answer).0, RefusalKind::Policy);
    assert!(matches!(end, SessionEnd::Refused(RefusalKind::Policy, _)));
    *lab.policy.lock().unwrap() = Decision::Reject(Rejection::NoRule);
    assert_eq!(refused(lab.ask("builder", "nix-daemon --stdio").await.0).0, RefusalKind::Policy);
    for garbage in ["nixtail-direct 2 builder nix-daemon --stdio\n", "nixtail-direct 1\n", "GET / HTTP/1.1\r\n"] {
        let (mut client, session) = lab.connect().await;
        client.write_all(garbage.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        soon(client.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer.first(), Some(&2), "{garbage}");
        assert!(matches!(soon(session).await.unwrap().end, SessionEnd::Refused(RefusalKind::Protocol, _)));
    }
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told_with_its_name() {
    let (answer, _) = lab(ChildSpec::new("/nowhere/nix-daemon", [""; 0])).ask("builder", "nix-daemon --stdio").await;
    let Err(CallError::Refused { kind: RefusalKind::NotStarted, words }) = answer else { panic!("{answer:?}") };
    assert!(words.contains("/nowhere/nix-daemon"), "{words}");
}

#[tokio::test]
async fn both_sides_may_close_first() {
    // What came with the request, what came later, and the end of input all arrive; then the program says more.
    let lab = lab(shell("cat; echo all read"));
    let (mut client, session) = lab.connect().await;
    client.write_all(b"nixtail-direct 1 builder nix-daemon --stdio\nfirst ").await.unwrap();
    read_until(&mut client, "first ").await;
    client.write_all(b"second ").await.unwrap();
    client.shutdown().await.unwrap();
    read_until(&mut client, "all read").await;
    let report = soon(session).await.unwrap();
    assert_eq!((report.end, report.bytes_in), (SessionEnd::Finished(0), 13));

    // The program ends and its client never closes: that must not keep the session.
    let lab = self::lab(shell("exec </dev/null; echo bye"));
    let (mut client, session) = lab.connect().await;
    client.write_all(b"nixtail-direct 1 builder nix-daemon --stdio\n").await.unwrap();
    read_until(&mut client, "bye").await;
    assert_eq!(soon(session).await.unwrap().end, SessionEnd::Finished(0));
}

#[tokio::test]
async fn a_policy_change_ends_a_session_with_words() {
    let lab = lab(shell("echo $$; sleep 1000"));
    let (mut client, session) = lab.connect().await;
    client.write_all(b"nixtail-direct 1 builder nix-daemon --stdio\n").await.unwrap();
    let said = read_until(&mut client, "\n").await;
    let id = String::from_utf8_lossy(said.get(8..).unwrap()).trim().to_owned();
    *lab.policy.lock().unwrap() = Decision::Reject(Rejection::NoRule);
    lab.endpoint.admission.policy_changed();
    let words = read_until(&mut client, "Access revoked").await;
    assert_eq!(words.first(), Some(&5));
    assert!(matches!(soon(session).await.unwrap().end, SessionEnd::Disallowed(AdmissionEnd::Revoked(_))));
    assert!(gone(&id).await);
}

#[tokio::test]
async fn a_client_that_breaks_off_takes_its_program_along() {
    // Neither reads nor writes: nothing but the broken stream tells that the client has gone.
    for script in ["echo $$; sleep 1000", "echo $$; exec sleep 1000 </dev/null >/dev/null 2>&1"] {
        let lab = lab(shell(script));
        let (mut client, session) = lab.connect().await;
        client.write_all(b"nixtail-direct 1 builder nix-daemon --stdio\n").await.unwrap();
        let said = read_until(&mut client, "\n").await;
        let id = String::from_utf8_lossy(said.get(8..).unwrap()).trim().to_owned();
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        assert_eq!(soon(session).await.unwrap().end, SessionEnd::Client);
        assert!(gone(&id).await, "{script}");
    }
}

#[tokio::test]
async fn the_callers_end_is_told() {
    let lab = lab(shell("echo begun; sleep 1000"));
    let (mut client, session) = lab.connect().await;
    client.write_all(b"nixtail-direct 1 builder nix-daemon --stdio\n").await.unwrap();
    read_until(&mut client, "begun").await;
    lab.cancel.cancel();
    read_until(&mut client, "the builder is ending").await;
    assert_eq!(soon(session).await.unwrap().end, SessionEnd::Cancelled);
}

#[tokio::test]
async fn a_builder_that_takes_no_sessions_says_why() {
    let lab = lab(shell("echo never"));
    lab.endpoint.sessions.close(Some("its disk is full".to_owned()));
    let (answer, _) = lab.ask("builder", "nix-daemon --stdio").await;
    let Err(CallError::Refused { kind: RefusalKind::Busy, words }) = answer else { panic!("{answer:?}") };
    assert!(words.contains("its disk is full"), "{words}");
    assert_eq!(lab.ask("builder", "nixtail-control 1 ping").await.0.unwrap().code, 7, "questions are answered");
}

#[tokio::test]
async fn a_nix_that_never_answers_is_waited_for_no_longer() {
    // A child, and a daemon that takes the connection; each swallows what it is told.
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _daemon = UnixListener::bind(&socket).unwrap();
    for daemon_socket in [None, Some(socket)] {
        let Lab { endpoint, policy, cancel } = lab(shell("exec cat >/dev/null"));
        let endpoint = Arc::into_inner(endpoint).unwrap();
        let answer_deadline = Duration::from_millis(300);
        let endpoint = Arc::new(DirectEndpoint { daemon_socket, answer_deadline, ..endpoint });
        let lab = Lab { endpoint, policy, cancel };
        let (mut client, session) = lab.connect().await;
        client.write_all(b"nixtail-direct 1 builder nix-daemon --stdio\nhello").await.unwrap();
        let said = read_until(&mut client, "hasn't answered within").await;
        assert!(said.windows(4).any(|code| code == EXIT_NOT_NOW.to_be_bytes()), "{said:?}");
        assert!(matches!(soon(session).await.unwrap().end, SessionEnd::Unanswered(_)));
        // The next one is refused at once.
        let (answer, _) = lab.ask("builder", "nix-daemon --stdio").await;
        let Err(CallError::Refused { kind: RefusalKind::Busy, words }) = answer else { panic!("{answer:?}") };
        assert!(words.contains("hasn't answered within"), "{words}");
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_the_program_back() {
    let lab = lab(shell("head -c 200000000 /dev/zero; echo done >&2; sleep 1000"));
    let (mut client, session) = lab.connect().await;
    client.write_all(b"nixtail-direct 1 builder nix-daemon --stdio\n").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    lab.cancel.cancel();
    let report = soon(session).await.unwrap();
    assert_eq!(report.end, SessionEnd::Cancelled);
    // What the kernel's socket buffers hold, and a frame.
    assert!(report.bytes_out < 50_000_000, "{}", report.bytes_out);
    drop(client);
}

#[tokio::test]
async fn where_there_is_a_daemon_the_stream_is_joined_to_its_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let daemon = UnixListener::bind(&socket).unwrap();
    let Lab { endpoint, policy, cancel } = lab(shell("echo the child"));
    let endpoint = Arc::into_inner(endpoint).unwrap();
    let endpoint = Arc::new(DirectEndpoint { daemon_socket: Some(socket.clone()), ..endpoint });
    let lab = Lab { endpoint, policy, cancel };
    let (mut client, session) = lab.connect().await;
    client.write_all(b"nixtail-direct 1 builder nix-daemon --stdio\nhello").await.unwrap();
    client.shutdown().await.unwrap();
    let (mut connection, _) = soon(daemon.accept()).await.unwrap();
    let mut all = String::new();
    soon(connection.read_to_string(&mut all)).await.unwrap();
    assert_eq!(all, "hello");
    connection.write_all(b"the daemon").await.unwrap();
    drop(connection);
    read_until(&mut client, "the daemon").await;
    assert_eq!(soon(session).await.unwrap().end, SessionEnd::Finished(0));
    // A daemon that is gone, and a store that isn't its.
    drop(daemon);
    assert_eq!(lab.ask("builder", "nix-daemon --stdio").await.0.unwrap(), reply("the child\n", "", 0));
    let foreign = lab.ask("builder", "nix-daemon --stdio --store '/a store'").await.0;
    assert_eq!(foreign.unwrap(), reply("the child\n", "", 0));
}
