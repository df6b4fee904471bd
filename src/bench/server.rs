//! The side that takes part in runs: `bench serve`.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rand::RngExt as _;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadHalf, WriteHalf, split};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::plan::{MAX_STREAMS, Plan, Way};
use super::usage::Usage;
use super::wire::{Arrived, ClientWord, Hello, Lines, Purpose, Refusal, RunId, ServerWord, write_line};
use super::{BenchError, DEADLINES, Deadlines, SILENCE, bulk, round_trips};

/// Runs at once. More would measure each other rather than the tunnel; a few are wanted to see how nodes share it.
pub const MAX_RUNS: usize = 16;
/// Streams of all runs together: two full runs both ways. Each may hold two rings of a MiB and what the queues above them do, so
/// this bounds a server's memory to about 640 MiB, of which a tunnel that keeps up uses a fraction.
const MAX_SERVED_STREAMS: usize = 4 * MAX_STREAMS as usize;
/// Connections that haven't said yet what they are for.
const MAX_GREETINGS: usize = 2 * MAX_SERVED_STREAMS;
/// Ended runs that wait to be told of. Beyond it they are in the log alone.
pub const TOLD: usize = 64;

/// A run that has ended.
#[derive(Debug)]
pub struct Served<P> {
    /// Whose it was.
    pub peer: P,
    /// What it was asked to be.
    pub plan: Plan,
    /// What came of it.
    pub outcome: Result<Done, BenchError>,
}

/// What a run moved, as its server saw it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Done {
    /// Bytes that arrived here, where any were to.
    pub upload_bytes: Option<u64>,
    /// Bytes that the tunnel has taken here, where any were to go.
    pub download_bytes: Option<u64>,
    /// How long that took.
    pub seconds: f64,
}

/// Takes part in runs. Each is bounded in time, and together they are in number. `P` says who a peer is.
#[derive(Debug)]
pub struct Server<P> {
    shared: Arc<Shared<P>>,
    tasks: TaskTracker,
    cancel: CancellationToken,
}

#[derive(Debug)]
struct Shared<P> {
    deadlines: Deadlines,
    greetings: Arc<Semaphore>,
    runs: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    open: Mutex<HashMap<RunId, Open<P>>>,
    told: mpsc::Sender<Served<P>>,
}

/// A run whose connections are awaited.
#[derive(Debug)]
struct Open<P> {
    peer: P,
    joined: mpsc::Sender<Joined>,
}

/// A connection that belongs to a run.
#[derive(Debug)]
struct Joined {
    part: Part,
    stream: Box<dyn Io>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    Stream(Way, u16),
    Pings,
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin + Debug {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin + Debug> Io for S {}

impl<P: Copy + Eq + Debug + Send + 'static> Server<P> {
    /// A server without runs, and where it tells of those that have ended.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Served<P>>) {
        Self::within(DEADLINES)
    }

    pub(super) fn within(deadlines: Deadlines) -> (Self, mpsc::Receiver<Served<P>>) {
        let (told, ended) = mpsc::channel(TOLD);
        let places = |number| Arc::new(Semaphore::new(number));
        let shared = Shared {
            deadlines,
            greetings: places(MAX_GREETINGS),
            runs: places(MAX_RUNS),
            streams: places(MAX_SERVED_STREAMS),
            open: Mutex::default(),
            told,
        };
        let server = Self { shared: Arc::new(shared), tasks: TaskTracker::new(), cancel: CancellationToken::new() };
        (server, ended)
    }

    /// Takes a connection: a new run, or a part of one. What isn't of this protocol is dropped, and told in the log.
    pub fn handle_stream<S>(&self, stream: S, peer: P)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + Debug + 'static,
    {
        let Ok(greeting) = Arc::clone(&self.shared.greetings).try_acquire_owned() else {
            tracing::warn!(?peer, "too many connections say nothing; this one is dropped");
            return;
        };
        let (shared, cancel) = (Arc::clone(&self.shared), self.cancel.clone());
        self.tasks.spawn(async move {
            match cancel.run_until_cancelled(shared.greet(stream, peer, greeting)).await {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::warn!(?peer, %error, "a connection isn't of a run"),
                None => tracing::info!(?peer, "a run was broken off"),
            }
        });
    }

    /// Breaks off what goes on, and waits for it.
    pub async fn stop(&self) {
        self.shared.greetings.close();
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl<P: Copy + Eq + Debug> Shared<P> {
    fn open(&self) -> MutexGuard<'_, HashMap<RunId, Open<P>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn greet<S>(&self, stream: S, peer: P, greeting: OwnedSemaphorePermit) -> Result<(), BenchError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + Debug + 'static,
    {
        let hello =
            timeout(self.deadlines.answer, Lines::new(stream).hello()).await.map_err(|_| BenchError::NoAnswer)?;
        let (hello, mut stream) = hello?;
        drop(greeting);
        match hello {
            Err(theirs) => {
                let words = format!("this server speaks version {}", super::SCHEMA);
                refuse(&mut stream, Refusal::Version { schema: super::SCHEMA }, words).await?;
                Err(BenchError::Version { theirs })
            }
            Ok(Hello { purpose: Purpose::Run(plan), .. }) => self.run(stream, peer, plan).await,
            Ok(Hello { purpose: Purpose::Stream { run, way, number }, .. }) => {
                self.join(&run, peer, Joined { part: Part::Stream(way, number), stream: Box::new(stream) })
            }
            Ok(Hello { purpose: Purpose::Pings { run }, .. }) => {
                self.join(&run, peer, Joined { part: Part::Pings, stream: Box::new(stream) })
            }
        }
    }

    /// Hands a connection to its run.
    fn join(&self, run: &RunId, peer: P, joined: Joined) -> Result<(), BenchError> {
        let open = self.open();
        let run = open.get(run).filter(|open| open.peer == peer);
        let run = run.ok_or(BenchError::Protocol("a stream of no run of this node's"))?;
        run.joined.try_send(joined).map_err(|_| BenchError::Protocol("more streams than were asked for"))
    }

    async fn run<S: Io + 'static>(&self, mut stream: BufReader<S>, peer: P, plan: Plan) -> Result<(), BenchError> {
        if let Err(error) = plan.check() {
            return refuse(&mut stream, Refusal::Plan, error.to_string()).await;
        }
        let parts = parts(&plan);
        let Some(_places) = self.places(parts.len()) else {
            let words = format!("{} of {MAX_RUNS} runs go on already", MAX_RUNS - self.runs.available_permits());
            tracing::info!(?peer, "refused a run: busy");
            return refuse(&mut stream, Refusal::Busy, words).await;
        };
        let (joined, streams) = mpsc::channel(parts.len());
        let run = RunId::from(hex(rand::rng().random()));
        self.open().insert(run.clone(), Open { peer, joined });
        let entry = Entry { shared: self, run: &run };
        let (read, write) = split(stream);
        let served = Run { deadlines: &self.deadlines, plan: &plan, words: Lines::new(read), say: write };
        let outcome = served.serve(&run, parts, streams).await;
        drop(entry);
        match &outcome {
            Ok(done) => tracing::info!(?peer, ?plan, ?done, "measured"),
            Err(error) => tracing::warn!(?peer, %error, "a run failed"),
        }
        // Whoever is to be told may be gone, or slow: the log has it.
        let _ = self.told.try_send(Served { peer, plan, outcome });
        Ok(())
    }

    fn places(&self, streams: usize) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let streams = u32::try_from(streams).ok()?;
        let run = Arc::clone(&self.runs).try_acquire_owned().ok()?;
        Some((run, Arc::clone(&self.streams).try_acquire_many_owned(streams).ok()?))
    }
}

/// Takes a run out of the list, however it ends.
struct Entry<'a, P: Copy + Eq + Debug> {
    shared: &'a Shared<P>,
    run: &'a RunId,
}

impl<P: Copy + Eq + Debug> Drop for Entry<'_, P> {
    fn drop(&mut self) {
        self.shared.open().remove(self.run);
    }
}

/// All connections that a run has besides the one for words.
fn parts(plan: &Plan) -> Vec<Part> {
    let streams = plan.streams().map(|(way, number)| Part::Stream(way, number));
    streams.chain(plan.latency.then_some(Part::Pings)).collect()
}

async fn refuse<W: AsyncWrite + Unpin>(to: &mut W, reason: Refusal, words: String) -> Result<(), BenchError> {
    let word = ServerWord::Refused { reason, words };
    timeout(SILENCE, write_line(to, &word)).await.map_err(|_| BenchError::Silent)?
}

fn hex(bytes: [u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One run, from its first word to its last.
struct Run<'a, S> {
    deadlines: &'a Deadlines,
    plan: &'a Plan,
    words: Lines<ReadHalf<BufReader<S>>>,
    say: WriteHalf<BufReader<S>>,
}

/// What came of one stream.
enum Ended {
    Received(Arrived),
    /// It stays open until the client has read to its end: one that is dropped delivers what it holds for half a minute and no longer.
    Sent(Box<dyn Io>),
}

impl<S: Io> Run<'_, S> {
    async fn serve(
        mut self,
        run: &RunId,
        parts: Vec<Part>,
        mut joined: mpsc::Receiver<Joined>,
    ) -> Result<Done, BenchError> {
        self.say(&ServerWord::Accepted { run: run.clone() }).await?;
        let gathered = timeout(self.deadlines.setup, self.gather(parts, &mut joined)).await;
        let (streams, _pings) = gathered.map_err(|_| BenchError::Setup)??;
        self.say(&ServerWord::Ready).await?;
        let word = timeout(self.deadlines.setup, self.words.next()).await.map_err(|_| BenchError::Silent)??;
        match word {
            ClientWord::Go => {}
            // It was interrupted before it began.
            ClientWord::Stop | ClientWord::Done => return Err(BenchError::Interrupted),
        }
        let deadline = self.plan.duration() + self.deadlines.grace;
        timeout(deadline, self.measure(streams)).await.map_err(|_| BenchError::Overdue)?
    }

    /// Waits for all connections; pings are answered from then on, as long as what is returned lives.
    async fn gather(
        &mut self,
        mut missing: Vec<Part>,
        joined: &mut mpsc::Receiver<Joined>,
    ) -> Result<(Vec<Joined>, Option<AbortOnDropHandle<()>>), BenchError> {
        let (mut streams, mut pings) = (Vec::with_capacity(missing.len()), None);
        while !missing.is_empty() {
            let part = tokio::select! {
                part = joined.recv() => part.ok_or(BenchError::Ended)?,
                // It has nothing to say before all is there: it gave up, or talks nonsense.
                word = self.words.next::<ClientWord>() => {
                    return Err(word.err().unwrap_or(BenchError::Interrupted));
                }
            };
            let Some(index) = missing.iter().position(|wanted| *wanted == part.part) else {
                return Err(BenchError::Protocol("a stream that wasn't asked for, or twice"));
            };
            missing.swap_remove(index);
            if part.part == Part::Pings {
                // That it broke, or was silent, is the client's to tell.
                let echo = async move { drop(round_trips::echo(part.stream).await) };
                pings = Some(AbortOnDropHandle::new(tokio::spawn(echo)));
            } else {
                streams.push(part);
            }
        }
        Ok((streams, pings))
    }

    async fn measure(mut self, streams: Vec<Joined>) -> Result<Done, BenchError> {
        let (usage, began) = (Usage::now(), Instant::now());
        let until = began + self.plan.duration();
        let stop = CancellationToken::new();
        let (received, sent) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for Joined { part, mut stream } in streams {
            let (received, sent, stop) = (Arc::clone(&received), Arc::clone(&sent), stop.clone());
            tasks.spawn(async move {
                match part {
                    Part::Stream(Way::Upload, number) => {
                        bulk::receive(&mut stream, number, began, &received).await.map(Ended::Received)
                    }
                    _ => {
                        bulk::send(&mut stream, until, &stop, &sent).await?;
                        Ok(Ended::Sent(stream))
                    }
                }
            });
        }
        let (mut upload, mut open, mut is_done) = (Vec::new(), Vec::new(), false);
        while !tasks.is_empty() || !is_done {
            tokio::select! {
                Some(ended) = tasks.join_next() => match ended.map_err(std::io::Error::other)?? {
                    Ended::Received(arrived) => upload.push(arrived),
                    Ended::Sent(stream) => open.push(stream),
                },
                word = self.words.next() => match word? {
                    ClientWord::Stop => stop.cancel(),
                    ClientWord::Done => is_done = true,
                    ClientWord::Go => return Err(BenchError::Protocol("it begins twice")),
                },
            }
        }
        drop(open);
        let seconds = began.elapsed().as_secs_f64();
        self.say(&ServerWord::Ended { upload, cost: usage.cost() }).await?;
        let ways = self.plan.direction.ways();
        let moved = |way, bytes: &AtomicU64| ways.contains(&way).then(|| bytes.load(Ordering::Relaxed));
        let done =
            Done { upload_bytes: moved(Way::Upload, &received), download_bytes: moved(Way::Download, &sent), seconds };
        self.until_hung_up().await;
        Ok(done)
    }

    async fn say(&mut self, word: &ServerWord) -> Result<(), BenchError> {
        timeout(SILENCE, write_line(&mut self.say, word)).await.map_err(|_| BenchError::Silent)?
    }

    /// Lets the client hang up first: it has read the last word then.
    async fn until_hung_up(mut self) {
        let until = tokio::time::Instant::now() + self.deadlines.answer;
        tokio::select! {
            _ = self.words.next::<ClientWord>() => {}
            () = sleep_until(until) => {}
        }
    }
}
