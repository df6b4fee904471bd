//! The side that asks for a run: `bench run`.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tokio::io::{ReadHalf, WriteHalf, split};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::plan::{Plan, Way};
use super::progress::{Counters, Live, Seconds};
use super::report::{Conditions, Flow, Interval, PathChange, Report, check_arrived};
use super::round_trips::{Phase, Samples, ping};
use super::target::Target;
use super::usage::{Cost, Usage};
use super::wire::{Arrived, ClientWord, Lines, Purpose, Refusal, RunId, ServerWord, write_line};
use super::{BenchError, DEADLINES, Deadlines, IDLE_TIME, SILENCE, WRAP_UP_TIME, bulk};
use crate::agent::Path;
use crate::report::plain;

/// How often a run tells how it goes.
const SECOND: Duration = Duration::from_secs(1);
/// Connections that are dialled at once: half of what a listener keeps for one node before it is accepted.
const DIALS_AT_ONCE: usize = 32;
/// The path is asked of a thread in this process: that it doesn't answer for so long says that it is frozen.
const PATH_TIME: Duration = Duration::from_millis(500);

/// Makes one run against a [`super::Server`] at `target`, which the report calls `host`. `tell` hears how it goes. When `stop` is
/// cancelled the streams end at once, and the report holds what there was.
///
/// # Errors
/// When a connection can't be had or breaks, or the other side is busy, silent, goes on too long, or speaks something else.
pub async fn run<T: Target>(
    target: &T,
    host: &str,
    plan: &Plan,
    stop: &CancellationToken,
    tell: impl FnMut(Live) + Send,
) -> Result<Report, BenchError> {
    run_within(&DEADLINES, target, host, plan, stop, tell).await
}

pub(super) async fn run_within<T: Target>(
    deadlines: &Deadlines,
    target: &T,
    host: &str,
    plan: &Plan,
    stop: &CancellationToken,
    mut tell: impl FnMut(Live) + Send,
) -> Result<Report, BenchError> {
    plan.check()?;
    let connected = tokio::select! {
        connected = connect(deadlines, target, plan) => connected?,
        () = stop.cancelled() => return Err(BenchError::Interrupted),
    };
    let Connected { words, say, streams, pings } = connected;
    let (phase, phases) = watch::channel(Phase::Idle);
    let samples = plan.latency.then(Samples::default);
    let pinging = pings.zip(samples.clone());
    let pinging = pinging.map(|(stream, samples)| AbortOnDropHandle::new(tokio::spawn(ping(stream, phases, samples))));
    if pinging.is_some() {
        tokio::select! {
            () = sleep(IDLE_TIME.min(plan.duration())) => {}
            () = stop.cancelled() => return Err(BenchError::Interrupted),
        }
    }
    let path = path_of(target).await;
    tell(Live::Begins { path });
    let mut run = Run { deadlines, target, plan, stop, words, say, phase, samples, path, path_changes: Vec::new() };
    let ended = run.measure(streams, pinging, &mut tell).await?;
    let latency = run.samples.as_ref().map(Samples::latency);
    let (interrupted, path_changes) = (stop.is_cancelled(), run.path_changes);
    let Ended { local, remote, upload, download, intervals, path_at_end } = ended;
    let conditions = Conditions { interrupted, path, path_at_end, path_changes, local, remote, latency, intervals };
    Ok(Report::new(&plain(host), plan, upload, download, conditions))
}

/// All connections of a run; the other side has them, too.
struct Connected<S> {
    words: Lines<ReadHalf<S>>,
    say: WriteHalf<S>,
    streams: Vec<(Way, u16, S)>,
    pings: Option<S>,
}

async fn connect<T: Target>(
    deadlines: &Deadlines,
    target: &T,
    plan: &Plan,
) -> Result<Connected<T::Stream>, BenchError> {
    let (read, mut say) = split(target.dial().await?);
    let mut words = Lines::new(read);
    let asked = async {
        write_line(&mut say, &Purpose::Run(plan.clone()).hello()).await?;
        words.next().await
    };
    let run = match timeout(deadlines.answer, asked).await.map_err(|_| BenchError::NoAnswer)?? {
        ServerWord::Accepted { run } => run,
        ServerWord::Refused { reason: Refusal::Busy, words } => return Err(BenchError::Busy(plain(&words))),
        ServerWord::Refused { reason: Refusal::Plan, words } => return Err(BenchError::Refused(plain(&words))),
        ServerWord::Refused { reason: Refusal::Version { schema }, .. } => {
            return Err(BenchError::Version { theirs: schema });
        }
        ServerWord::Ready | ServerWord::Ended { .. } => return Err(BenchError::Protocol("an answer to nothing")),
    };
    let parts = async {
        let dials = stream::iter(plan.streams()).map(|(way, number)| {
            let purpose = Purpose::Stream { run: run.clone(), way, number };
            async move { Ok::<_, BenchError>((way, number, open(target, purpose).await?)) }
        });
        let streams = dials.buffer_unordered(DIALS_AT_ONCE).try_collect().await?;
        let pings = match plan.latency {
            true => Some(open(target, Purpose::Pings { run: RunId::clone(&run) }).await?),
            false => None,
        };
        match words.next().await? {
            ServerWord::Ready => Ok((streams, pings)),
            _ => Err(BenchError::Protocol("another word than that all is ready")),
        }
    };
    let (streams, pings) = timeout(deadlines.setup, parts).await.map_err(|_| BenchError::Setup)??;
    Ok(Connected { words, say, streams, pings })
}

async fn open<T: Target>(target: &T, purpose: Purpose) -> Result<T::Stream, BenchError> {
    let mut stream = target.dial().await?;
    write_line(&mut stream, &purpose.hello()).await?;
    Ok(stream)
}

async fn path_of(target: &impl Target) -> Path {
    timeout(PATH_TIME, target.path()).await.unwrap_or(Path::None)
}

/// A run whose connections stand.
struct Run<'a, T: Target> {
    deadlines: &'a Deadlines,
    target: &'a T,
    plan: &'a Plan,
    stop: &'a CancellationToken,
    words: Lines<ReadHalf<T::Stream>>,
    say: WriteHalf<T::Stream>,
    phase: watch::Sender<Phase>,
    samples: Option<Samples>,
    path: Path,
    path_changes: Vec<PathChange>,
}

/// What a run came to.
struct Ended {
    local: Cost,
    remote: Option<Cost>,
    upload: Option<Flow>,
    download: Option<Flow>,
    intervals: Vec<Interval>,
    path_at_end: Path,
}

/// A stream that is over, and what arrived of it where it did so here.
type Over<S> = (S, Option<Arrived>);

/// How a wait for the end of a run ended.
enum Finish {
    /// The other side has told its figures.
    Told(Vec<Arrived>, Cost),
    /// It has not, in the time that somebody who interrupts waits.
    GivenUp,
}

impl<T: Target> Run<'_, T> {
    async fn measure(
        &mut self,
        streams: Vec<(Way, u16, T::Stream)>,
        pinging: Option<AbortOnDropHandle<Result<(), BenchError>>>,
        tell: &mut (impl FnMut(Live) + Send),
    ) -> Result<Ended, BenchError> {
        self.phase.send_replace(Phase::Loaded);
        self.say(ClientWord::Go).await?;
        let (usage, began) = (Usage::now(), Instant::now());
        let mut counters = Counters { began, streams: Vec::with_capacity(streams.len()) };
        let mut tasks = JoinSet::new();
        for (way, number, mut stream) in streams {
            let bytes = Arc::new(AtomicU64::new(0));
            counters.streams.push((way, number, Arc::clone(&bytes)));
            let (until, stop) = (began + self.plan.duration(), self.stop.clone());
            tasks.spawn(async move {
                let arrived = match way {
                    Way::Upload => bulk::send(&mut stream, until, &stop, &bytes).await.map(|()| None)?,
                    Way::Download => Some(bulk::receive(&mut stream, number, began, &bytes).await?),
                };
                Ok((stream, arrived))
            });
        }
        let (mut over, mut intervals) = (Vec::with_capacity(counters.streams.len()), Seconds::new(began));
        let finish = match self.until_end(&mut tasks, &counters, &mut over, &mut intervals, tell).await {
            // Whoever interrupts wants what there is, not how it might have ended.
            Err(_) if self.stop.is_cancelled() => Finish::GivenUp,
            finish => finish?,
        };
        let local = usage.cost();
        drop(tasks);
        intervals.last(&counters, self.samples.as_ref(), tell);
        self.phase.send_replace(Phase::Over);
        if let (Some(pinging), Finish::Told(..)) = (pinging, &finish) {
            pinging.await.map_err(std::io::Error::other)??;
        }
        let path_at_end = path_of(self.target).await;
        let expected = |way| counters.streams.iter().filter(|(of, ..)| *of == way).count();
        let (upload, download, remote) = match finish {
            Finish::Told(upload, cost) => {
                check_arrived(self.plan, expected(Way::Upload), &upload)?;
                (upload, over.iter().filter_map(|(_, arrived)| *arrived).collect(), Some(cost))
            }
            Finish::GivenUp => (counters.so_far(Way::Upload), counters.so_far(Way::Download), None),
        };
        let flow = |way, arrived| (expected(way) > 0).then(|| Flow::of(arrived));
        let (upload, download) = (flow(Way::Upload, upload), flow(Way::Download, download));
        Ok(Ended { local, remote, upload, download, intervals: intervals.all, path_at_end })
    }

    /// Waits until all streams have ended, here and there. Those that are over stay open until then: one that is dropped delivers what
    /// it holds for half a minute and no longer.
    async fn until_end(
        &mut self,
        tasks: &mut JoinSet<Result<Over<T::Stream>, BenchError>>,
        counters: &Counters,
        over: &mut Vec<Over<T::Stream>>,
        intervals: &mut Seconds,
        tell: &mut (impl FnMut(Live) + Send),
    ) -> Result<Finish, BenchError> {
        let start = tokio::time::Instant::from_std(counters.began);
        let mut ticks = interval_at(start + SECOND, SECOND);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut deadline = start + self.plan.duration() + self.deadlines.grace;
        let (mut interrupted, mut is_done) = (false, false);
        loop {
            if tasks.is_empty() && !is_done {
                is_done = true;
                self.say(ClientWord::Done).await?;
            }
            tokio::select! {
                Some(ended) = tasks.join_next() => {
                    over.push(ended.map_err(std::io::Error::other)??);
                }
                word = self.words.next() => match word? {
                    ServerWord::Ended { upload, cost } if is_done => return Ok(Finish::Told(upload, cost)),
                    _ => return Err(BenchError::Protocol("a word in the midst of a run")),
                },
                _ = ticks.tick() => {
                    // What the tunnel is emptied of after the streams' time is told at the end.
                    if counters.began.elapsed() < self.plan.duration() + SECOND / 2 {
                        intervals.next(counters, self.samples.as_ref(), tell);
                    }
                    self.look_at_path(counters.began, tell).await;
                }
                () = self.stop.cancelled(), if !interrupted => {
                    interrupted = true;
                    deadline = deadline.min(tokio::time::Instant::now() + WRAP_UP_TIME);
                    self.say(ClientWord::Stop).await?;
                }
                () = sleep_until(deadline) => {
                    return if interrupted { Ok(Finish::GivenUp) } else { Err(BenchError::Overdue) };
                }
            }
        }
    }

    async fn look_at_path(&mut self, began: Instant, tell: &mut (impl FnMut(Live) + Send)) {
        let path = path_of(self.target).await;
        let before = self.path;
        // Where nothing is known, nothing is known to have changed.
        if path == before || path == Path::None {
            return;
        }
        self.path = path;
        if before != Path::None {
            let change = PathChange { at_s: began.elapsed().as_secs_f64(), before, path };
            self.path_changes.push(change);
            tell(Live::PathChange(change));
        }
    }

    async fn say(&mut self, word: ClientWord) -> Result<(), BenchError> {
        timeout(SILENCE, write_line(&mut self.say, &word)).await.map_err(|_| BenchError::Silent)?
    }
}
