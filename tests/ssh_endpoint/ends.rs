//! How connections end, whoever ends them, and that no child outlives its own.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nixtail::ssh::ConnectionEnd;
use nixtail_proto::ssh_policy::{AdmissionEnd, Rejection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::load::Client;
use crate::server::{DAEMON, PATIENCE, allow, commands, eventually, processes, serve, shell, text, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_client_leaves_no_child() {
    let mark = format!("sleep 98{}", std::process::id());
    let mut server = serve(allow(|_| {}), commands(shell(&format!("trap '' TERM; {mark} & wait; wait; {mark}")))).await;
    let mut ssh = server.ssh(&[], DAEMON);
    ssh.stdin(Stdio::piped());
    let mut client = ssh.spawn().unwrap();
    eventually("no child", || !processes(&mark).is_empty()).await;
    client.kill().await.unwrap();
    assert_eq!(server.report().await.end, ConnectionEnd::Client);
    assert_eq!(processes(&mark), Vec::<PathBuf>::new(), "when serve returns, no child is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_change_ends_what_it_no_longer_allows() {
    let mark = format!("sleep 97{}", std::process::id());
    let mut server = serve(allow(|_| {}), commands(shell(&mark))).await;
    let client = server.ssh(&[], DAEMON).spawn().unwrap();
    eventually("no child", || !processes(&mark).is_empty()).await;
    server.admission.policy_changed();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!processes(&mark).is_empty(), "what is still allowed goes on");

    *server.policy.lock().unwrap() = None;
    server.admission.policy_changed();
    let (code, _, err) = text(&within(PATIENCE, client.wait_with_output()).await.unwrap());
    assert_eq!(code, 255);
    assert!(err.contains("Access revoked."), "{err}");
    assert_eq!(server.report().await.end, ConnectionEnd::Disallowed(AdmissionEnd::Revoked(Rejection::NoPolicy)));
    assert_eq!(processes(&mark), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duration_and_cancel_end_a_session_with_words() {
    let second = allow(|rule| rule.action.as_mut().unwrap().session_duration = 1_000_000_000);
    let mut server = serve(second, commands(shell("sleep 30"))).await;
    let (code, _, err) = server.run(&[], DAEMON).await;
    assert_eq!((code, server.report().await.end), (255, ConnectionEnd::Disallowed(AdmissionEnd::DurationOver)));
    assert!(err.contains("Session timeout"), "{err}");

    let mut server = serve(allow(|_| {}), commands(shell("echo here; sleep 30"))).await;
    let client = server.ssh(&[], DAEMON).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.cancel.cancel();
    let (code, _, err) = text(&within(PATIENCE, client.wait_with_output()).await.unwrap());
    assert_eq!((code, server.report().await.end), (255, ConnectionEnd::Cancelled));
    assert!(err.contains("this node is leaving"), "{err}");
}

/// A way to the endpoint that closes neither when the client does, and lets nothing through while it is `frozen`.
async fn sticky_way(to: u16) -> (u16, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let frozen = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&frozen);
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
            (client.into_split(), server.into_split());
        let other = Arc::clone(&seen);
        tokio::spawn(async move {
            let mut buffer = vec![0; 65536];
            while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
                if !other.load(Ordering::Relaxed) && to_client.write_all(&buffer[..length]).await.is_err() {
                    break;
                }
            }
        });
        let mut buffer = vec![0; 65536];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            if !seen.load(Ordering::Relaxed) && to_server.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
        // The endpoint hears nothing of the end.
        std::future::pending::<()>().await;
        drop(to_server);
    });
    (port, frozen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goodbye_without_a_close_leaves_no_child() {
    let mark = format!("sleep 96{}", std::process::id());
    let mut server = serve(allow(|_| {}), commands(shell(&mark))).await;
    let (port, _) = sticky_way(server.port).await;
    let client = Client::connect(port).await;
    let _channel = client.run(DAEMON).await;
    eventually("no child", || !processes(&mark).is_empty()).await;
    client.say_goodbye().await;
    assert_eq!(server.report().await.end, ConnectionEnd::Client);
    assert_eq!(processes(&mark), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make test-long: waits for three keepalives, 45 s"]
async fn a_client_that_vanishes_without_a_word_leaves_no_child() {
    let mark = format!("sleep 95{}", std::process::id());
    let mut server = serve(allow(|_| {}), commands(shell(&mark))).await;
    let (port, frozen) = sticky_way(server.port).await;
    let client = Client::connect(port).await;
    let _channel = client.run(DAEMON).await;
    eventually("no child", || !processes(&mark).is_empty()).await;
    frozen.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    let report = within(2 * PATIENCE, server.reports.recv()).await.unwrap().unwrap();
    assert_eq!(report.end, ConnectionEnd::Silent);
    assert!(begun.elapsed() > Duration::from_secs(29), "a freeze of 30 s survives: {:?}", begun.elapsed());
    assert_eq!(processes(&mark), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_killed_while_its_child_takes_nothing_leaves_no_child() {
    let mark = format!("sleep 94{}", std::process::id());
    let mut server = serve(allow(|_| {}), commands(shell(&mark))).await;
    let mut ssh = server.ssh(&[], DAEMON);
    ssh.stdin(std::fs::File::open("/dev/zero").unwrap());
    let mut client = ssh.spawn().unwrap();
    eventually("no child", || !processes(&mark).is_empty()).await;
    // Time to fill every buffer between the two.
    tokio::time::sleep(Duration::from_secs(2)).await;
    client.kill().await.unwrap();
    let report = server.report().await;
    assert_eq!(report.end, ConnectionEnd::Client);
    assert!(report.reads_rested > 0, "not stuck: {report:?}");
    assert_eq!(processes(&mark), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shorter_duration_ends_what_is_beyond_it_and_signals_end_a_child() {
    let mark = format!("sleep 93{}", std::process::id());
    let mut server = serve(allow(|_| {}), commands(shell(&mark))).await;
    let client = server.ssh(&[], DAEMON).spawn().unwrap();
    eventually("no child", || !processes(&mark).is_empty()).await;
    *server.policy.lock().unwrap() = allow(|rule| rule.action.as_mut().unwrap().session_duration = 1);
    server.admission.policy_changed();
    let (code, _, err) = text(&within(PATIENCE, client.wait_with_output()).await.unwrap());
    assert_eq!((code, server.report().await.end), (255, ConnectionEnd::Disallowed(AdmissionEnd::DurationOver)));
    assert!(err.contains("Session timeout"), "{err}");

    let mut server = serve(allow(|_| {}), commands(shell(&mark))).await;
    let client = Client::connect(server.port).await;
    let mut channel = client.run(DAEMON).await;
    eventually("no child", || !processes(&mark).is_empty()).await;
    channel.signal(russh::Sig::TERM).await.unwrap();
    assert_eq!(channel.end().await, (String::new(), Some(128 + 15)));
    assert_eq!(processes(&mark), Vec::<PathBuf>::new());
    client.say_goodbye().await;
    assert_eq!(server.report().await.end, ConnectionEnd::Client);
}
