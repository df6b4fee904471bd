//! Measurements by the agent that runs already: both sides of its verbs `/bench/run` and `/bench/serve`.
//!
//! The agent measures itself, so that its own costs are counted, and no byte takes the way through its local socket. Either verb turns
//! its call into a stream on which the agent says a [`Word`] a line. Whatever the command says there, or its end, means stop.

use std::time::Duration;

use http::Method;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, split};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::serve::Place;
use crate::agent::Agent;
use crate::bench::{self, BenchError, Lines, Live, Plan, Report, Through, write_line};
use crate::cli::{print, runtime, session};
use crate::local::{Client, Request, Routes};
use crate::report::{Exit, Failure, plain};

/// How long the agent may take for an answer that needs nobody else.
pub(super) const CALL_TIME: Duration = Duration::from_secs(10);
/// How long the agent may say nothing: longer than the connections of a run may take to come about.
const SILENCE: Duration = Duration::from_secs(150);
/// The longest word: a report of ten minutes and 128 streams is a fifth of it.
const MAX_WORD: usize = 1 << 20;
/// Words that wait for a command that doesn't read. What doesn't fit is left out; the report comes last, and waits.
const WORDS: usize = 64;
/// Bytes between the agent's side and the local API.
const ROOM: usize = 64 << 10;

const RUN: &str = "/bench/run";
const SERVE: &str = "/bench/serve";

/// What `POST /bench/run` takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct RunQuestion {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) plan: Plan,
}

/// What `POST /bench/serve` takes.
#[derive(Debug, Serialize, Deserialize)]
struct ServeQuestion {
    port: u16,
}

/// What the agent says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// How the run goes.
    Live(Live),
    /// How it went.
    Report(Box<Report>),
    /// Why there is none.
    Failed(Failure),
    /// The port is open; the node's name and addresses.
    Ready(String),
    /// A run of another node's has ended, in words.
    Served(String),
}

/// Adds both verbs to an agent's.
pub(in crate::cli) fn add_routes(routes: &mut Routes, agent: &Agent) {
    let runs = agent.clone();
    routes.add_stream(Method::POST, RUN, move |request: Request| {
        let agent = runs.clone();
        async move {
            let question: RunQuestion = request.json()?;
            let (near, far) = tokio::io::duplex(ROOM);
            request.spawn(measure(agent, question, near));
            Ok(far)
        }
    });
    let serves = agent.clone();
    routes.add_stream(Method::POST, SERVE, move |request: Request| {
        let agent = serves.clone();
        async move {
            let ServeQuestion { port } = request.json()?;
            let place = Place::open(&agent, port).await?;
            let (near, far) = tokio::io::duplex(ROOM);
            request.spawn(serve_for(agent, place, near));
            Ok(far)
        }
    });
}

async fn measure(agent: Agent, RunQuestion { host, port, plan }: RunQuestion, near: DuplexStream) {
    let (mut read, mut write) = split(near);
    let stop = CancellationToken::new();
    let (sender, mut words) = mpsc::channel(WORDS);
    let target = Through::new(agent, host.clone(), port);
    let measuring = async {
        let ended = bench::run(&target, &host, &plan, &stop, |live| drop(sender.try_send(Word::Live(live)))).await;
        let last = match ended {
            Ok(report) => Word::Report(Box::new(report)),
            Err(error) => Word::Failed(error.failure(&host)),
        };
        // A command that is gone doesn't want to know.
        let _ = sender.send(last).await;
        drop(sender);
    };
    let telling = async {
        while let Some(word) = words.recv().await {
            if !matches!(timeout(SILENCE, write_line(&mut write, &word)).await, Ok(Ok(()))) {
                stop.cancel();
                words.close();
            }
        }
        let _ = write.shutdown().await;
    };
    let listening = async {
        let _ = read.read(&mut [0]).await;
        stop.cancel();
    };
    let both = async { tokio::join!(measuring, telling) };
    tokio::pin!(both);
    tokio::select! {
        _ = &mut both => return,
        () = listening => {}
    }
    both.await;
}

async fn serve_for(agent: Agent, mut place: Place, near: DuplexStream) {
    let (mut read, mut write) = split(near);
    let own = agent.status().await.own;
    let addresses: Vec<String> = own.addresses.iter().map(ToString::to_string).collect();
    let mut word = Word::Ready(format!("ready {} {}", plain(&own.dns_name), addresses.join(" ")));
    let mut byte = [0];
    loop {
        if !matches!(timeout(SILENCE, write_line(&mut write, &word)).await, Ok(Ok(()))) {
            break;
        }
        tokio::select! {
            served = place.next() => word = Word::Served(served),
            _ = read.read(&mut byte) => break,
        }
    }
    place.close().await;
}

/// Has the agent make a run.
pub(super) fn run(client: &Client, question: &RunQuestion, mut tell: impl FnMut(Live)) -> Result<Report, Failure> {
    let mut report = None;
    talk(client, RUN, question, "ending the measurement", Some(SILENCE), |word| {
        match word {
            Word::Live(live) => tell(live),
            Word::Report(told) => report = Some(*told),
            Word::Failed(failure) => return Err(failure),
            Word::Ready(_) | Word::Served(_) => {}
        }
        Ok(())
    })?;
    report.ok_or_else(|| {
        Failure::new(Exit::Unavailable, "the agent ended the measurement without a report")
            .next("it may just be stopping; its own log says why")
    })
}

/// Has the agent take part in runs until told to stop.
pub(super) fn serve(client: &Client, port: u16) -> Result<(), Failure> {
    talk(client, SERVE, &ServeQuestion { port }, "no longer serving", None, |word| match word {
        Word::Ready(line) | Word::Served(line) => print(&line),
        Word::Failed(failure) => Err(failure),
        Word::Live(_) | Word::Report(_) => Ok(()),
    })
}

/// Calls a verb and hears the agent's words to their end. The first signal tells it to stop.
fn talk(
    client: &Client,
    path: &str,
    question: &impl Serialize,
    stopping: &'static str,
    patience: Option<Duration>,
    mut hear: impl FnMut(Word) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let stream = client.open(path, question, CALL_TIME)?;
    let runtime = runtime()?;
    let broken = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Unavailable, format!("the agent broke the measurement off: {error}"))
            .next("it may just be stopping; its own log says why")
    };
    let ended = runtime.block_on(async {
        let stop = session::stop_on_signals(stopping)?;
        stream.set_nonblocking(true).map_err(|error| broken(&error))?;
        let (read, mut write) = UnixStream::from_std(stream).map_err(|error| broken(&error))?.into_split();
        let mut words = Lines::bounded(read, MAX_WORD);
        let mut told = false;
        loop {
            let word = async {
                match patience {
                    Some(patience) => timeout(patience, words.next()).await.map_err(|_| BenchError::Silent)?,
                    None => words.next().await,
                }
            };
            tokio::select! {
                word = word => match word {
                    Ok(word) => hear(word)?,
                    // All is said.
                    Err(BenchError::Ended) => return Ok(()),
                    Err(error) => return Err(broken(&error)),
                },
                () = stop.cancelled(), if !told => {
                    told = true;
                    // An agent that is gone has stopped.
                    let _ = write.write_all(b"\n").await;
                }
            }
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}
