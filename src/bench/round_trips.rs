//! Pings through a stream of their own: what a packet beside the bulk waits.
//!
//! They go out at a fixed pace, whether earlier ones are answered or not. With one at a time, a stall of half a second would be one
//! sample of fifty that a user would have met, and no percentile would show it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep_until, timeout};

use super::{BenchError, SILENCE};

/// How often a ping goes out: a hundred samples a second are enough for p99 of a short run, and next to nothing beside the bulk.
const PACE: Duration = Duration::from_millis(10);
/// A ping's bytes.
const PING: usize = 8;
/// Pings that wait for their answer at once: ten seconds of them. Beyond that the stall is known.
const MAX_WAITING: usize = 1024;
/// How long the last ones are waited for.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Where a run stands, for its pings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Before there is load.
    Idle,
    /// While there is.
    Loaded,
    /// After it: no more pings.
    Over,
}

/// How long packets took there and back, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RoundTrips {
    /// How many were measured.
    pub samples: u64,
    /// Half of them took this long at most.
    pub p50_ms: f64,
    /// 99 of 100 did.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

/// Round trips before and under load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Before there was load. `None`: nothing was answered.
    pub idle: Option<RoundTrips>,
    /// Beside the streams.
    pub loaded: Option<RoundTrips>,
    /// Pings without an answer by the end.
    pub unanswered: u64,
}

impl RoundTrips {
    /// Sums them up, in any order. `None` of none.
    #[must_use]
    pub fn of(milliseconds: &[f64]) -> Option<Self> {
        let mut sorted = milliseconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            samples: sorted.len() as u64,
            p50_ms: percentile(&sorted, 50)?,
            p99_ms: percentile(&sorted, 99)?,
            max_ms: *sorted.last()?,
        })
    }
}

/// The smallest of the sorted values that `percent` of 100 aren't above (the nearest rank).
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// What pings have measured so far. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Samples(Arc<Mutex<Measured>>);

#[derive(Debug, Default)]
struct Measured {
    idle: Vec<f64>,
    loaded: Vec<f64>,
    waiting: usize,
}

impl Samples {
    fn lock(&self) -> MutexGuard<'_, Measured> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The median of those under load that came after the first `seen`, and how many there are now.
    pub(super) fn recent(&self, seen: usize) -> (Option<f64>, usize) {
        let measured = self.lock();
        let mut recent = measured.loaded.get(seen..).unwrap_or_default().to_vec();
        recent.sort_by(f64::total_cmp);
        (percentile(&recent, 50), measured.loaded.len())
    }

    /// All of it.
    pub(super) fn latency(&self) -> Latency {
        let measured = self.lock();
        Latency {
            idle: RoundTrips::of(&measured.idle),
            loaded: RoundTrips::of(&measured.loaded),
            unanswered: measured.waiting as u64,
        }
    }
}

/// Pings until the phase is [`Phase::Over`] (or its sender is gone) and what was sent is answered, or isn't in time.
///
/// # Errors
/// The stream breaks, ends, or takes nothing.
pub(super) async fn ping<S>(
    mut stream: S,
    mut phase: watch::Receiver<Phase>,
    samples: Samples,
) -> Result<(), BenchError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut ticks = interval(PACE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut waiting: VecDeque<(Instant, Phase)> = VecDeque::new();
    let (mut answer, mut read) = ([0; PING], 0);
    let mut last = None;
    loop {
        let now = *phase.borrow_and_update();
        if now == Phase::Over {
            last.get_or_insert_with(|| tokio::time::Instant::now() + LAST_ANSWERS);
            if waiting.is_empty() {
                break;
            }
        }
        tokio::select! {
            _ = ticks.tick(), if last.is_none() && waiting.len() < MAX_WAITING => {
                waiting.push_back((Instant::now(), now));
                timeout(SILENCE, stream.write_all(&[0x5a; PING])).await.map_err(|_| BenchError::Silent)??;
            }
            length = stream.read(answer.get_mut(read..).unwrap_or_default()) => {
                read += match length? { 0 => return Err(BenchError::Ended), length => length };
                if read == PING {
                    read = 0;
                    let Some((sent, phase)) = waiting.pop_front() else {
                        return Err(BenchError::Protocol("an answer to no ping"));
                    };
                    let milliseconds = sent.elapsed().as_secs_f64() * 1e3;
                    let mut measured = samples.lock();
                    if phase == Phase::Idle { &mut measured.idle } else { &mut measured.loaded }.push(milliseconds);
                }
            }
            changed = phase.changed(), if last.is_none() => {
                if changed.is_err() {
                    break;
                }
            }
            () = sleep_until(last.unwrap_or_else(tokio::time::Instant::now)), if last.is_some() => break,
        }
        samples.lock().waiting = waiting.len();
    }
    samples.lock().waiting = waiting.len();
    Ok(timeout(SILENCE, stream.shutdown()).await.map_err(|_| BenchError::Silent)??)
}

/// Sends back what comes, to the end of the stream.
///
/// # Errors
/// The stream breaks, or takes nothing.
pub(super) async fn echo<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> Result<(), BenchError> {
    let mut bytes = [0; MAX_WAITING];
    loop {
        let length = stream.read(&mut bytes).await?;
        if length == 0 {
            return Ok(());
        }
        let back = stream.write_all(bytes.get(..length).unwrap_or_default());
        timeout(SILENCE, back).await.map_err(|_| BenchError::Silent)??;
        stream.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let trips = RoundTrips::of(&hundred).unwrap();
        assert_eq!((trips.samples, trips.p50_ms, trips.p99_ms, trips.max_ms), (100, 50.0, 99.0, 100.0));
        let one = RoundTrips::of(&[3.5]).unwrap();
        assert_eq!((one.p50_ms, one.p99_ms, one.max_ms), (3.5, 3.5, 3.5));
        let two = RoundTrips::of(&[2.0, 1.0]).unwrap();
        assert_eq!((two.p50_ms, two.p99_ms), (1.0, 2.0));
        assert_eq!(RoundTrips::of(&[]), None);
    }

    #[tokio::test]
    async fn pings_are_counted_by_the_phase_that_they_were_sent_in() {
        let (near, far) = tokio::io::duplex(1024);
        let echoing = tokio::spawn(echo(far));
        let (sender, phase) = watch::channel(Phase::Idle);
        let samples = Samples::default();
        let pinging = tokio::spawn(ping(near, phase, samples.clone()));
        let some = async |enough: fn(&Latency) -> bool| {
            while !enough(&samples.latency()) {
                tokio::time::sleep(PACE).await;
            }
        };
        some(|latency| latency.idle.is_some()).await;
        assert_eq!(samples.latency().loaded, None);
        sender.send_replace(Phase::Loaded);
        some(|latency| latency.loaded.is_some_and(|loaded| loaded.samples > 2)).await;
        let (median, seen) = samples.recent(0);
        assert!(median.is_some() && seen > 2);
        assert_eq!(samples.recent(1 << 20).0, None);
        sender.send_replace(Phase::Over);
        pinging.await.unwrap().unwrap();
        echoing.await.unwrap().unwrap();
        assert_eq!(samples.latency().unanswered, 0);
    }

    #[tokio::test]
    async fn who_answers_nothing_is_counted_and_not_waited_for() {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (sender, phase) = watch::channel(Phase::Loaded);
        let samples = Samples::default();
        let pinging = tokio::spawn(ping(near, phase, samples.clone()));
        while samples.latency().unanswered < 2 {
            tokio::time::sleep(PACE).await;
        }
        sender.send_replace(Phase::Over);
        timeout(Duration::from_secs(60), pinging).await.expect("an end").unwrap().unwrap();
        assert!(samples.latency().unanswered >= 2);
        drop(far);
    }

    #[tokio::test]
    async fn answers_to_no_ping_are_refused() {
        let (near, mut far) = tokio::io::duplex(1024);
        far.write_all(&[0; 4096 / 8]).await.unwrap();
        let (_sender, phase) = watch::channel(Phase::Over);
        // Nothing is waited for after the end.
        assert!(ping(near, phase, Samples::default()).await.is_ok());
        let (near, mut far) = tokio::io::duplex(1024);
        far.write_all(&[0; 1024]).await.unwrap();
        let (_sender, phase) = watch::channel(Phase::Idle);
        let refused = timeout(Duration::from_secs(60), ping(near, phase, Samples::default())).await.expect("an end");
        assert!(matches!(refused, Err(BenchError::Protocol(_))), "{refused:?}");
    }
}
