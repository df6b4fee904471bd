//! One measurement of one pair.

use std::error::Error;
use std::thread::sleep;
use std::time::Duration;

use super::cost;
use super::load::words::{Destination, Order, Streams};
use super::plan::{DEPTH, Measure, Quantity};
use super::site::Pair;

/// The length of a request.
const REQUEST: usize = 64;
/// The pause after each answer, where an idle path or one under load is asked: rather that of a person's or a build's requests
/// than the pace of the ends themselves.
const PAUSE: Duration = Duration::from_millis(2);
/// Dials for a median.
const DIALS: usize = 30;
/// How long memory rests before it is looked at.
pub(super) const REST: Duration = Duration::from_secs(3);

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// What goes by before streams are measured.
    pub(super) warm_up: Duration,
    /// How long they are then.
    pub(super) length: Duration,
}

/// What one measurement says.
pub(super) type Said = Vec<(Quantity, f64)>;

/// Measures; nothing goes on between the two any more when it returns.
pub(super) fn measure(pair: &Pair<'_>, measure: Measure, times: Times) -> Result<Said, Box<dyn Error>> {
    // With pauses these are still hundreds, enough for the 99th of 100.
    let requests = times.length / 2;
    let said = match measure {
        Measure::Streams(count) => streams(pair, count, false, times),
        Measure::Both => streams(pair, 1, true, times),
        Measure::Idle => ask(pair, 1, PAUSE, requests)
            .map(|(_, [p50, p99])| vec![(Quantity::IdleP50, p50), (Quantity::IdleP99, p99)]),
        Measure::Loaded => loaded(pair, times),
        Measure::Requests(depth) => ask(pair, depth, Duration::ZERO, requests)
            .map(|(rate, _)| vec![(if depth == 1 { Quantity::Requests } else { Quantity::Pipelined }, rate)]),
        Measure::Connect => {
            let dial = Order::Connect { to: pair.to.clone(), times: DIALS };
            pair.left.end.obey(&dial, Duration::ZERO).map(|answer| vec![(Quantity::Connect, answer.p50_us / 1e3)])
        }
        Measure::Rest => {
            let memory = [&pair.left, &pair.right].map(|side| cost::memory_now(&side.movers));
            Ok(vec![(Quantity::RestingMemory, memory[0].max(memory[1]))])
        }
    };
    let stopped = stop(pair);
    let said = said?;
    stopped.map(|()| said)
}

/// Ends all streams: by a RST of both ends, so that nothing of them is under way in the next measurement.
fn stop(pair: &Pair<'_>) -> Result<(), Box<dyn Error>> {
    for side in [&pair.left, &pair.right] {
        side.end.obey(&Order::Stop, Duration::ZERO)?;
    }
    Ok(())
}

/// So many streams from left to right, and as many back if `both`.
fn streams(pair: &Pair<'_>, count: usize, both: bool, times: Times) -> Result<Said, Box<dyn Error>> {
    for side in [&pair.left, &pair.right] {
        cost::forget_peak(&side.movers);
    }
    let wanted = || Streams { to: pair.to.clone(), streams: count };
    pair.left.end.obey(&Order::Send(wanted()), Duration::ZERO)?;
    if both {
        pair.left.end.obey(&Order::Receive(wanted()), Duration::ZERO)?;
    }
    sleep(times.warm_up);
    let before = Reading::of(pair)?;
    sleep(times.length);
    let after = Reading::of(pair)?;
    let megabits = |bytes_a_second: f64| bytes_a_second * 8.0 / 1e6;
    let [left, right] = [0, 1].map(|side| after.bytes_a_second(&before, side));
    let mut said = match (count, both) {
        (_, true) => vec![(Quantity::Both, megabits(left + right))],
        (1, false) => vec![(Quantity::One, megabits(right))],
        (_, false) => vec![(Quantity::Eight, megabits(right))],
    };
    if count == 1 && !both {
        let gigabytes = (after.received[1] - before.received[1]) / 1e9;
        let cpu = |side: usize| (after.cpu[side] - before.cpu[side]) / gigabytes;
        let memory = [&pair.left, &pair.right].map(|side| cost::peak_memory(&side.movers));
        said.extend([
            (Quantity::SenderCpu, cpu(0)),
            (Quantity::ReceiverCpu, cpu(1)),
            (Quantity::SendingMemory, memory[0].max(memory[1])),
        ]);
    }
    Ok(said)
}

/// What the two ends have got and spent until now.
#[derive(Debug)]
struct Reading {
    received: [f64; 2],
    at: [f64; 2],
    cpu: [f64; 2],
}

impl Reading {
    fn of(pair: &Pair<'_>) -> Result<Self, Box<dyn Error>> {
        let mut reading = Self { received: [0.0; 2], at: [0.0; 2], cpu: [0.0; 2] };
        for (index, side) in [&pair.left, &pair.right].into_iter().enumerate() {
            let count = side.end.obey(&Order::Count, Duration::ZERO)?;
            reading.received[index] = count.received as f64;
            reading.at[index] = count.at_us as f64 / 1e6;
            reading.cpu[index] = cost::cpu_seconds(&side.processes);
        }
        Ok(reading)
    }

    fn bytes_a_second(&self, before: &Self, side: usize) -> f64 {
        (self.received[side] - before.received[side]) / (self.at[side] - before.at[side])
    }
}

/// Requests beside a stream that goes the same way.
fn loaded(pair: &Pair<'_>, times: Times) -> Result<Said, Box<dyn Error>> {
    pair.left.end.obey(&Order::Send(Streams { to: pair.to.clone(), streams: 1 }), Duration::ZERO)?;
    sleep(times.warm_up);
    let (_, [p50, p99]) = ask(pair, 1, PAUSE, times.length)?;
    Ok(vec![(Quantity::LoadedP50, p50), (Quantity::LoadedP99, p99)])
}

/// Requests for so long: how many a second were answered, and half of them, and 99 of 100, after how many milliseconds.
fn ask(pair: &Pair<'_>, depth: usize, pause: Duration, length: Duration) -> Result<(f64, [f64; 2]), Box<dyn Error>> {
    let to: Destination = pair.to.clone();
    let (pause_us, millis) = (pause.as_micros().try_into()?, length.as_millis().try_into()?);
    let order = Order::Echo { to, bytes: REQUEST, depth, pause_us, millis };
    let answer = pair.left.end.obey(&order, length)?;
    Ok((answer.count as f64 / answer.seconds, [answer.p50_us / 1e3, answer.p99_us / 1e3]))
}

/// What a measurement has found, in a few words, for people who watch.
pub(super) fn shown(measure: Measure, said: &[(Quantity, f64)]) -> String {
    let figure =
        |wanted: Quantity| said.iter().find(|(quantity, _)| *quantity == wanted).map_or(f64::NAN, |(_, of)| *of);
    match measure {
        Measure::Streams(1) => format!(
            "{:.0} Mbit/s, {:.2} + {:.2} s/GB, {:.0} MiB",
            figure(Quantity::One),
            figure(Quantity::SenderCpu),
            figure(Quantity::ReceiverCpu),
            figure(Quantity::SendingMemory)
        ),
        Measure::Streams(_) => format!("{:.0} Mbit/s", figure(Quantity::Eight)),
        Measure::Both => format!("{:.0} Mbit/s both ways", figure(Quantity::Both)),
        Measure::Idle => format!("p50 {:.3}, p99 {:.3} ms", figure(Quantity::IdleP50), figure(Quantity::IdleP99)),
        Measure::Loaded => format!("p50 {:.3}, p99 {:.3} ms", figure(Quantity::LoadedP50), figure(Quantity::LoadedP99)),
        Measure::Requests(1) => format!("{:.0} a second", figure(Quantity::Requests)),
        Measure::Requests(_) => format!("{:.0} a second, {DEPTH} at a time", figure(Quantity::Pipelined)),
        Measure::Connect => format!("{:.3} ms to the first byte", figure(Quantity::Connect)),
        Measure::Rest => format!("{:.0} MiB at rest", figure(Quantity::RestingMemory)),
    }
}
