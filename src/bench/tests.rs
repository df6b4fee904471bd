use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::client::run_within;
use super::report::gbit_per_s;
use super::server::Done;
use super::wire::{Arrived, ClientWord, Purpose, ServerWord};
use super::*;
use crate::agent::{DialError, Path};

const SHORT: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(60);
/// What fits between two ends of a stream here: like the rings and queues of a real one, but less.
const ROOM: usize = 256 << 10;

/// A server in this process, reached without a network.
struct Near {
    server: Server<&'static str>,
    ended: mpsc::Receiver<Served<&'static str>>,
    dialled: AtomicUsize,
    /// Who it dials as, by the number of the dial.
    dials_as: fn(usize) -> &'static str,
}

impl Near {
    fn new() -> Self {
        Self::within(DEADLINES)
    }

    fn within(deadlines: Deadlines) -> Self {
        let (server, ended) = Server::within(deadlines);
        Self { server, ended, dialled: AtomicUsize::new(0), dials_as: |_| "client" }
    }

    async fn run(&self, plan: &Plan) -> Result<Report, BenchError> {
        run(self, "near", plan, &CancellationToken::new(), |_| {}).await
    }

    async fn next(&mut self) -> Result<Done, BenchError> {
        timeout(PATIENCE, self.ended.recv()).await.expect("an end in time").unwrap().outcome
    }
}

impl Target for Near {
    type Stream = DuplexStream;

    async fn dial(&self) -> Result<DuplexStream, DialError> {
        let (near, far) = tokio::io::duplex(ROOM);
        self.server.handle_stream(far, (self.dials_as)(self.dialled.fetch_add(1, Ordering::Relaxed)));
        Ok(near)
    }

    async fn path(&self) -> Path {
        Path::None
    }
}

#[tokio::test]
async fn both_sides_count_the_same_bytes_whichever_way_they_go() {
    let mut near = Near::new();
    for direction in [Direction::Upload, Direction::Download, Direction::Both] {
        for streams in [1, 3] {
            let report = near.run(&Plan::new(direction, streams, SHORT)).await.unwrap();
            let done = near.next().await.unwrap();
            assert_eq!(report.upload.as_ref().map(|flow| flow.bytes), done.upload_bytes);
            assert_eq!(report.download.as_ref().map(|flow| flow.bytes), done.download_bytes);
            let flows: Vec<&Flow> = report.upload.iter().chain(&report.download).collect();
            assert_eq!(flows.len(), direction.ways().len());
            for flow in flows {
                assert_eq!(flow.streams.len(), usize::from(streams));
                assert!(flow.streams.iter().all(|stream| stream.bytes > 0));
                assert_eq!(flow.bytes, flow.streams.iter().map(|stream| stream.bytes).sum::<u64>());
                assert_eq!(flow.gbit_per_s, gbit_per_s(flow.bytes, flow.seconds));
            }
            assert!(report.confirmed && !report.interrupted && report.latency.is_none());
            assert!(report.cpu_s_per_gb > 0.0 && report.remote_cpu_s_per_gb.is_some_and(|cost| cost > 0.0));
            assert!(!report.intervals.is_empty());
        }
    }
    timeout(PATIENCE, near.server.stop()).await.expect("an end");
}

#[tokio::test]
async fn pings_beside_the_streams_are_told_before_and_under_load() {
    let near = Near::new();
    let plan = Plan { latency: true, ..Plan::new(Direction::Both, 2, 4 * SHORT) };
    let report = near.run(&plan).await.unwrap();
    let latency = report.latency.unwrap();
    assert!(latency.idle.unwrap().samples > 0 && latency.loaded.unwrap().samples > 0, "{latency:?}");
}

#[tokio::test]
async fn who_interrupts_gets_what_there_was_and_both_sides_end() {
    let mut near = Near::new();
    let stop = CancellationToken::new();
    let (begun, mut begins) = mpsc::channel(8);
    let plan = Plan::new(Direction::Both, 2, MAX_DURATION);
    let interrupting = async {
        begins.recv().await.unwrap();
        tokio::time::sleep(SHORT).await;
        stop.cancel();
    };
    let running = run(&near, "near", &plan, &stop, |live| drop(begun.try_send(live)));
    let (report, ()) = timeout(PATIENCE, async { tokio::join!(running, interrupting) }).await.expect("an end");
    let report = report.unwrap();
    assert!(report.interrupted && report.confirmed && report.bytes > 0, "{report:?}");
    assert_eq!(near.next().await.unwrap().upload_bytes, report.upload.map(|flow| flow.bytes));
}

/// A server that does as it likes with each connection, once it has read what that is for.
struct Odd<F>(F);

type Far = BufReader<DuplexStream>;

impl<F, Fut> Target for Odd<F>
where
    F: Fn(Far, Purpose) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    type Stream = DuplexStream;

    async fn dial(&self) -> Result<DuplexStream, DialError> {
        let ((near, far), serve) = (tokio::io::duplex(ROOM), self.0);
        tokio::spawn(async move {
            if let Ok((Ok(hello), far)) = Lines::new(far).hello().await {
                serve(far, hello.purpose).await;
            }
        });
        Ok(near)
    }

    async fn path(&self) -> Path {
        Path::None
    }
}

/// Lets a run begin.
async fn begin(mut far: Far, purpose: &Purpose) -> Far {
    if matches!(purpose, Purpose::Run(_)) {
        for word in [ServerWord::Accepted { run: "x".into() }, ServerWord::Ready] {
            write_line(&mut far, &word).await.unwrap();
        }
    }
    far
}

async fn against<F>(deadlines: &Deadlines, odd: Odd<F>) -> Result<Report, BenchError>
where
    Odd<F>: Target,
{
    let plan = Plan::new(Direction::Upload, 1, SHORT);
    run_within(deadlines, &odd, "b", &plan, &CancellationToken::new(), |_| {}).await
}

#[tokio::test]
async fn who_interrupts_a_run_against_a_frozen_server_gets_what_is_known_here() {
    let stop = CancellationToken::new();
    let (begun, mut begins) = mpsc::channel(8);
    let plan = Plan::new(Direction::Upload, 1, MAX_DURATION);
    let interrupting = async {
        begins.recv().await.unwrap();
        stop.cancel();
    };
    let frozen = Odd(|far, purpose| async move {
        let _held = begin(far, &purpose).await;
        std::future::pending::<()>().await;
    });
    let running = run(&frozen, "frozen", &plan, &stop, |live| drop(begun.try_send(live)));
    let (report, ()) = timeout(PATIENCE, async { tokio::join!(running, interrupting) }).await.expect("an end");
    let report = report.unwrap();
    assert!(report.interrupted && !report.confirmed && report.remote_cpu_s_per_gb.is_none(), "{report:?}");
    assert_eq!(report.upload.unwrap().bytes, report.bytes);
}

#[tokio::test]
async fn a_busy_server_says_so_and_a_place_that_is_free_again_is_given() {
    let near = Near::new();
    let mut held = Vec::new();
    for _ in 0..MAX_RUNS {
        let mut stream = near.dial().await.unwrap();
        write_line(&mut stream, &Purpose::Run(Plan::new(Direction::Upload, 1, SHORT)).hello()).await.unwrap();
        let mut lines = Lines::new(stream);
        assert!(matches!(lines.next().await.unwrap(), ServerWord::Accepted { .. }));
        held.push(lines);
    }
    let refused = near.run(&Plan::new(Direction::Upload, 1, SHORT)).await.unwrap_err();
    assert!(matches!(&refused, BenchError::Busy(words) if words.contains("16 of 16")), "{refused:?}");
    assert_eq!(refused.failure("b").exit, crate::report::Exit::TryAgain);
    drop(held);
    let again = async {
        while near.run(&Plan::new(Direction::Upload, 1, SHORT)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("the place was given again");
}

#[tokio::test]
async fn streams_of_all_runs_together_are_bounded() {
    let near = Near::new();
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = near.dial().await.unwrap();
        write_line(&mut stream, &Purpose::Run(Plan::new(Direction::Both, MAX_STREAMS, SHORT)).hello()).await.unwrap();
        held.push(Lines::new(stream));
        let word = held.last_mut().unwrap().next().await.unwrap();
        assert!(matches!(word, ServerWord::Accepted { .. }));
    }
    assert!(matches!(near.run(&Plan::new(Direction::Upload, 1, SHORT)).await, Err(BenchError::Busy(_))));
}

#[tokio::test]
async fn what_is_out_of_bounds_is_refused_on_both_sides() {
    let near = Near::new();
    let plan = Plan::new(Direction::Upload, 65, SHORT);
    assert!(matches!(near.run(&plan).await, Err(BenchError::Plan(PlanError::Streams(65)))));
    assert_eq!(near.dialled.load(Ordering::Relaxed), 0);
    let mut stream = near.dial().await.unwrap();
    write_line(&mut stream, &Purpose::Run(plan).hello()).await.unwrap();
    let word: ServerWord = Lines::new(stream).next().await.unwrap();
    assert!(matches!(&word, ServerWord::Refused { words, .. } if words.contains("1 to 64")), "{word:?}");
}

#[tokio::test]
async fn another_version_is_told_which_one_is_spoken() {
    let near = Near::new();
    // As version 1 began.
    for first in ["{\"schema\":1,\"direction\":\"upload\",\"duration_ms\":1}\n", "{\"schema\":3,\"news\":{}}\n"] {
        let mut stream = near.dial().await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        let word: ServerWord = Lines::new(stream).next().await.unwrap();
        assert!(matches!(&word, ServerWord::Refused { words, .. } if words.contains("version 2")), "{word:?}");
    }
}

#[tokio::test]
async fn nobody_joins_the_run_of_another() {
    let mut near = Near::new();
    near.dials_as = |number| if number == 0 { "client" } else { "somebody else" };
    let plan = Plan::new(Direction::Upload, 1, SHORT);
    let run = timeout(4 * SHORT, near.run(&plan)).await;
    assert!(run.is_err(), "a stream of another node counted as ours");
}

#[tokio::test]
async fn what_is_not_of_the_protocol_ends_the_connection() {
    for input in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\n",
        b"{}\n",
        b"{\"schema\":2}\n",
        b"{\"schema\":2,\"run\":{}}\n",
        &[b'x'; 40_000],
    ] {
        let near = Near::new();
        let mut stream = near.dial().await.unwrap();
        // A server that has hung up takes no more.
        let _ = stream.write_all(input).await;
        let mut said = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("an end");
        assert!(ended.is_err() || said.is_empty(), "{input:?}: {said:?}");
    }
}

#[tokio::test]
async fn a_client_tells_what_is_wrong_with_the_other_side() {
    let cases = [
        ("SSH-2.0-OpenSSH_9.2p1\r\n", "isn't this version's `nixtail bench`"),
        ("{\"refused\":{\"reason\":\"busy\",\"words\":\"2 of 2\\u001b[2J\"}}\n", "busy: 2 of 2[2J"),
        ("{\"refused\":{\"reason\":{\"version\":{\"schema\":9}},\"words\":\"\"}}\n", "it speaks version 9"),
        ("\"ready\"\n", "an answer to nothing"),
        // Hung up at once: an old server, most likely.
        ("", "nixtail version"),
    ];
    for (says, expected) in cases {
        let odd = Odd(move |mut far: Far, _| async move { far.write_all(says.as_bytes()).await.unwrap() });
        let told = against(&DEADLINES, odd).await.unwrap_err().failure("b").to_string();
        assert!(told.contains(expected), "{told}");
    }
}

#[tokio::test]
async fn who_says_nothing_is_given_up_on_both_sides() {
    let impatient = Deadlines { answer: SHORT, ..DEADLINES };
    let mute = Odd(|far: Far, _| async move {
        let _held = far;
        std::future::pending::<()>().await;
    });
    assert!(matches!(against(&impatient, mute).await, Err(BenchError::NoAnswer)));
    let mut stream = Near::within(impatient).dial().await.unwrap();
    assert_eq!(timeout(PATIENCE, stream.read(&mut [0])).await.expect("an end").unwrap(), 0);
}

#[tokio::test]
async fn a_run_whose_streams_never_come_is_given_up() {
    let mut near = Near::within(Deadlines { setup: SHORT, ..DEADLINES });
    let mut stream = near.dial().await.unwrap();
    write_line(&mut stream, &Purpose::Run(Plan::new(Direction::Upload, 1, SHORT)).hello()).await.unwrap();
    assert!(matches!(near.next().await, Err(BenchError::Setup)));
}

#[tokio::test]
async fn an_upload_that_never_ends_is_given_up() {
    let mut near = Near::within(Deadlines { grace: SHORT, ..DEADLINES });
    let mut control = near.dial().await.unwrap();
    write_line(&mut control, &Purpose::Run(Plan::new(Direction::Upload, 1, SHORT)).hello()).await.unwrap();
    let (read, mut say) = tokio::io::split(control);
    let mut words = Lines::new(read);
    let ServerWord::Accepted { run } = words.next().await.unwrap() else { panic!("not accepted") };
    let mut stream = near.dial().await.unwrap();
    write_line(&mut stream, &Purpose::Stream { run, way: Way::Upload, number: 0 }.hello()).await.unwrap();
    assert_eq!(words.next::<ServerWord>().await.unwrap(), ServerWord::Ready);
    write_line(&mut say, &ClientWord::Go).await.unwrap();
    let trickle = tokio::spawn(async move {
        while stream.write_all(&[0x5a]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let served = near.next().await;
    assert!(matches!(served, Err(BenchError::Overdue)), "{served:?}");
    trickle.await.unwrap();
    drop((words, say));
}

#[tokio::test]
async fn figures_that_cannot_be_are_not_believed() {
    let liar = Odd(|far, purpose| async move {
        let far = begin(far, &purpose).await;
        let (mut read, mut say) = tokio::io::split(far);
        if !matches!(purpose, Purpose::Run(_)) {
            return drop(tokio::io::copy(&mut read, &mut tokio::io::sink()).await);
        }
        let mut words = Lines::new(read);
        for word in [ClientWord::Go, ClientWord::Done] {
            assert_eq!(words.next::<ClientWord>().await.unwrap(), word);
        }
        let upload = vec![Arrived { number: 0, bytes: 1, from_s: 0.0, to_s: 1e9 }];
        let cost = Cost { cpu_s: 0.0, rss_bytes: None };
        write_line(&mut say, &ServerWord::Ended { upload, cost }).await.unwrap();
    });
    let failed = against(&DEADLINES, liar).await;
    assert!(matches!(failed, Err(BenchError::Protocol(words)) if words.contains("figures")), "{failed:?}");
}

#[tokio::test]
async fn a_server_that_stops_breaks_off_what_goes_on() {
    let near = Arc::new(Near::new());
    let running = Arc::clone(&near);
    let client = tokio::spawn(async move { running.run(&Plan::new(Direction::Both, 2, MAX_DURATION)).await });
    while near.dialled.load(Ordering::Relaxed) < 5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    timeout(PATIENCE, near.server.stop()).await.expect("what goes on is broken off");
    let failed = timeout(PATIENCE, client).await.expect("the client hears of it").unwrap();
    assert!(matches!(failed, Err(BenchError::Ended | BenchError::Stream(_))), "{failed:?}");
    let mut late = near.dial().await.unwrap();
    assert_eq!(late.read(&mut [0]).await.unwrap(), 0);
}
