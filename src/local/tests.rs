use std::io::{Read, Write};
use std::time::Duration;

use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::report::{Exit, Failure};

const SOON: Duration = Duration::from_secs(5);

fn routes() -> Routes {
    let mut routes = Routes::new();
    routes.add(Method::GET, "/status", |_| async { Ok(serde_json::json!({"state": "running"})) });
    routes.add(Method::POST, "/refuse", |request: Request| async move {
        let name: String = request.json()?;
        Err::<(), _>(Failure::new(Exit::Refused, format!("{name} isn't allowed")).next("ask for it"))
    });
    routes.add(Method::GET, "/never", |_| std::future::pending::<Result<(), Failure>>());
    // Answers with a greeting at once, then everything that it got, when it got it all.
    routes.add_stream(Method::POST, "/dial", |_| async move {
        let (near, mut far) = tokio::io::duplex(1024);
        tokio::spawn(async move {
            far.write_all(b"banner;").await.unwrap();
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            far.write_all(&all).await.unwrap();
        });
        Ok(near)
    });
    routes
}

struct Lab {
    _folder: tempfile::TempDir,
    path: SocketPath,
    server: Server,
}

fn lab() -> Lab {
    let folder = tempfile::tempdir().unwrap();
    let path = SocketPath::choose(Some(&folder.path().join("s"))).unwrap();
    let server = Server::start(path.bind().unwrap(), routes()).unwrap();
    Lab { _folder: folder, path, server }
}

async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(call).await.unwrap()
}

#[tokio::test]
async fn an_answer_carries_the_schema_number() {
    let lab = lab();
    let client = Client::new(lab.path.clone());
    let answer: serde_json::Value = blocking(move || client.get("/status", SOON)).await.unwrap();
    assert_eq!(answer, serde_json::json!({"schema": SCHEMA, "state": "running"}));
    lab.server.stop(SOON).await;
    assert!(!lab.path.as_path().exists());
}

#[tokio::test]
async fn a_failure_arrives_whole() {
    let lab = lab();
    let client = Client::new(lab.path.clone());
    let (failed, unknown) = blocking(move || {
        (client.post::<()>("/refuse", &"it", SOON).unwrap_err(), client.get::<()>("/nothing", SOON).unwrap_err())
    })
    .await;
    assert_eq!(failed, Failure::new(Exit::Refused, "it isn't allowed").next("ask for it"));
    assert!(unknown.message.contains("no GET /nothing"), "{unknown}");
}

#[tokio::test]
async fn a_call_turns_into_a_stream_with_half_close_and_nothing_is_read_ahead() {
    let lab = lab();
    let client = Client::new(lab.path.clone());
    let got = blocking(move || {
        let mut stream = client.open("/dial", &(), SOON).unwrap();
        let data = vec![7; 300_000];
        let mut banner = [0; 7];
        stream.read_exact(&mut banner).unwrap();
        assert_eq!(&banner, b"banner;");
        stream.write_all(&data).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    })
    .await;
    assert_eq!(got, vec![7; 300_000]);
}

#[tokio::test]
async fn stopping_ends_streams_that_are_open() {
    let lab = lab();
    let client = Client::new(lab.path.clone());
    let mut stream = blocking(move || client.open("/dial", &(), SOON)).await.unwrap();
    tokio::time::timeout(SOON, lab.server.stop(SOON)).await.unwrap();
    let rest = blocking(move || {
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).map(|_| rest)
    })
    .await;
    assert!(rest.unwrap().len() <= 7);
}

#[test]
fn without_an_agent_the_client_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = SocketPath::choose(Some(&folder.path().join("s"))).unwrap();
    let failure = Client::new(path).get::<()>("/status", SOON).unwrap_err();
    assert_eq!(failure.exit, Exit::Unavailable);
    assert!(failure.next.unwrap().contains("nixtail up"));
}

#[tokio::test]
async fn stopping_cuts_off_a_call_that_never_ends() {
    let lab = lab();
    let client = Client::new(lab.path.clone());
    let call = tokio::spawn(blocking(move || client.get::<()>("/never", 4 * SOON).unwrap_err()));
    tokio::time::sleep(Duration::from_millis(200)).await;
    let tasks = lab.server.tasks.clone();
    tokio::time::timeout(SOON, lab.server.stop(Duration::from_millis(100))).await.unwrap();
    assert!(tasks.is_empty());
    assert_eq!(tokio::time::timeout(SOON, call).await.unwrap().unwrap().exit, Exit::Unavailable);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let frames = futures::stream::pending::<std::io::Result<hyper::body::Frame<bytes::Bytes>>>();
    let body = http_body_util::StreamBody::new(frames);
    let read = server::read_body(body, Duration::from_millis(50));
    assert_eq!(tokio::time::timeout(SOON, read).await.unwrap().unwrap_err().exit, Exit::Timeout);
}

#[test]
fn only_an_agent_of_ours_or_of_root_is_trusted() {
    use client::is_trusted;
    assert!(is_trusted(1000, 1000) && is_trusted(0, 1000) && is_trusted(1000, 0));
    assert!(!is_trusted(1001, 1000));
}
