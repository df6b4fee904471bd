//! Runs in words for people: a line for each second, and the report.

use super::plan::{Direction, Plan};
use super::report::{Flow, Interval, PathChange, Report, gbit_per_s};
use super::round_trips::RoundTrips;
use super::server::Served;
use crate::agent::Path;
use crate::report::words::{bytes, count, duration, round_trip};

/// Rates of streams that stand in one line.
const RATES_IN_A_LINE: usize = 8;

/// What is measured, before it begins: `bench-1 over 192.0.2.7:41641: upload of 4 streams for 10 s`.
#[must_use]
pub fn beginning(host: &str, plan: &Plan, path: Path) -> String {
    let streams = count(plan.streams.into(), "stream");
    let each = if plan.direction == Direction::Both { " each" } else { "" };
    format!("{host} over {path}: {}, {streams}{each}, for {}", plan.direction.name(), duration(plan.duration()))
}

/// One second: `   3 s   2.41 Gbit/s   287.0 MiB   round trip 1.4 ms`.
#[must_use]
pub fn interval(direction: Direction, interval: &Interval) -> String {
    let seconds = interval.length().as_secs_f64();
    let way = |amount: u64| format!("{:>11}   {:>10}", rate(gbit_per_s(amount, seconds)), bytes(amount));
    let moved = match direction {
        Direction::Upload => way(interval.upload_bytes),
        Direction::Download => way(interval.download_bytes),
        Direction::Both => format!("up {}   down {}", way(interval.upload_bytes), way(interval.download_bytes)),
    };
    let waited = interval.p50_ms.map(|p50| format!("   round trip {}", round_trip(p50))).unwrap_or_default();
    format!("{:>6.1} s   {moved}{waited}", interval.to_s)
}

/// The path became another one.
#[must_use]
pub fn path_change(change: &PathChange) -> String {
    format!("{:>6.1} s   the path is now {}, before it was {}", change.at_s, change.path, change.before)
}

/// The report, a line for each thing.
#[must_use]
pub fn report(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    if report.interrupted {
        lines.push(row("interrupted", "what there was until then"));
    }
    if !report.confirmed {
        lines.push(row(
            "unconfirmed",
            "the other side hasn't told what arrived: uploads are what the tunnel has taken here",
        ));
    }
    for (name, flow) in [("upload", &report.upload), ("download", &report.download)] {
        lines.extend(flow.iter().flat_map(|flow| flow_lines(name, flow)));
    }
    if report.direction == Direction::Both {
        lines.push(row("sum", &moved(report.gbit_per_s, report.bytes, report.seconds)));
    }
    let there = |cost: Option<f64>| cost.map_or_else(|| "unknown there".to_owned(), |cost| format!("{cost:.2} there"));
    let cpu = format!("{:.2} s/GB here, {}", report.cpu_s_per_gb, there(report.remote_cpu_s_per_gb));
    lines.push(row("cpu", &cpu));
    let memory = |amount: Option<u64>| amount.map_or_else(|| "unknown".to_owned(), bytes);
    lines.push(row("memory", &format!("{} here, {} there", memory(report.rss_bytes), memory(report.remote_rss_bytes))));
    if let Some(latency) = &report.latency {
        let mut words = format!("{} idle, {} under load", trips(latency.idle), trips(latency.loaded));
        if latency.unanswered > 0 {
            words.push_str(&format!("; {} unanswered", count(latency.unanswered, "ping")));
        }
        lines.push(row("round trip", &words));
    }
    lines.push(row("path", &path_words(report)));
    lines
}

/// What a server tells of a run: `laptop: upload, 4 streams, 1.21 Gbit/s, 721.3 MiB in 5.00 s`.
#[must_use]
pub fn served<P>(peer: &str, served: &Served<P>) -> String {
    let streams = count(served.plan.streams.into(), "stream");
    let mut words = format!("{peer}: {}, {streams}", served.plan.direction.name());
    match &served.outcome {
        Err(error) => words.push_str(&format!(", failed: {error}")),
        Ok(done) => {
            for (name, amount) in [("up", done.upload_bytes), ("down", done.download_bytes)] {
                let Some(amount) = amount else { continue };
                let name = if served.plan.direction == Direction::Both { format!("{name} ") } else { String::new() };
                let moved = moved(gbit_per_s(amount, done.seconds), amount, done.seconds);
                words.push_str(&format!(", {name}{moved}"));
            }
        }
    }
    words
}

/// A rate in the unit that suits it: `2.41 Gbit/s`, `93.5 Mbit/s`, `640 kbit/s`.
#[must_use]
pub fn rate(gbit_per_s: f64) -> String {
    let bits = gbit_per_s * 1e9;
    match bits {
        // What would be rounded to 1,000 of one unit is one of the next.
        _ if bits >= 999.5e6 => format!("{gbit_per_s:.2} Gbit/s"),
        _ if bits >= 99.95e6 => format!("{:.0} Mbit/s", bits / 1e6),
        _ if bits >= 999.5e3 => format!("{:.1} Mbit/s", bits / 1e6),
        _ => format!("{:.0} kbit/s", bits / 1e3),
    }
}

fn row(name: &str, words: &str) -> String {
    format!("{name:<12}{words}")
}

fn moved(gbit_per_s: f64, amount: u64, seconds: f64) -> String {
    format!("{}, {} in {seconds:.2} s", rate(gbit_per_s), bytes(amount))
}

fn flow_lines(name: &str, flow: &Flow) -> Vec<String> {
    let mut lines = vec![row(name, &moved(flow.gbit_per_s, flow.bytes, flow.seconds))];
    if flow.streams.len() > 1 {
        let rates: Vec<String> = flow.streams.iter().map(|stream| rate(stream.gbit_per_s)).collect();
        let name = |index| if index == 0 { "  each" } else { "" };
        let each = rates.chunks(RATES_IN_A_LINE).enumerate();
        lines.extend(each.map(|(index, rates)| row(name(index), &rates.join("  "))));
    }
    lines
}

fn trips(trips: Option<RoundTrips>) -> String {
    let Some(trips) = trips else { return "unknown".to_owned() };
    format!("{} (p99 {})", round_trip(trips.p50_ms), round_trip(trips.p99_ms))
}

fn path_words(report: &Report) -> String {
    if report.path_changes.is_empty() && report.path == report.path_at_end {
        return format!("{} from begin to end", report.path);
    }
    let times = match report.path_changes.len() {
        0 | 1 => "changed".to_owned(),
        times => format!("changed {times} times"),
    };
    format!("{} at the begin, {} at the end: {times}", report.path, report.path_at_end)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::report::Conditions;
    use crate::bench::round_trips::Latency;
    use crate::bench::usage::Cost;
    use crate::bench::wire::Arrived;

    const DIRECT: &str = "192.0.2.7:41641";

    fn direct() -> Path {
        Path::Direct { address: DIRECT.parse().unwrap() }
    }

    #[test]
    fn rates_change_their_unit_in_time() {
        for (gbit, words) in [
            (12.345, "12.35 Gbit/s"),
            (0.9996, "1.00 Gbit/s"),
            (0.9994, "999 Mbit/s"),
            (0.0935, "93.5 Mbit/s"),
            (0.0009996, "1.0 Mbit/s"),
            (0.00064, "640 kbit/s"),
            (0.0, "0 kbit/s"),
        ] {
            assert_eq!(rate(gbit), words);
        }
    }

    #[test]
    fn each_second_is_a_line_whose_columns_stand() {
        let second =
            Interval { from_s: 2.0, to_s: 3.0, upload_bytes: 300 << 20, download_bytes: 5 << 20, p50_ms: None };
        assert_eq!(interval(Direction::Upload, &second), "   3.0 s   2.52 Gbit/s    300.0 MiB");
        assert_eq!(interval(Direction::Download, &second), "   3.0 s   41.9 Mbit/s      5.0 MiB");
        let silent = Interval { upload_bytes: 0, p50_ms: Some(1.44), ..second };
        assert_eq!(interval(Direction::Upload, &silent), "   3.0 s      0 kbit/s          0 B   round trip 1.4 ms");
        assert_eq!(
            interval(Direction::Both, &second),
            "   3.0 s   up 2.52 Gbit/s    300.0 MiB   down 41.9 Mbit/s      5.0 MiB"
        );
        // What remains at the end is less than a second.
        let rest = Interval { from_s: 5.0, to_s: 5.5, upload_bytes: 62_500_000, ..second };
        assert_eq!(interval(Direction::Upload, &rest), "   5.5 s   1.00 Gbit/s     59.6 MiB");
    }

    #[test]
    fn a_run_is_announced_and_its_path_is_told() {
        let plan = Plan::new(Direction::Both, 4, Duration::from_secs(10));
        assert_eq!(beginning("b", &plan, direct()), format!("b over {DIRECT}: both ways, 4 streams each, for 10 s"));
        let change = PathChange { at_s: 4.0, before: direct(), path: Path::Derp { region: 4 } };
        assert_eq!(path_change(&change), format!("   4.0 s   the path is now DERP region 4, before it was {DIRECT}"));
    }

    fn sample(streams: u16, remote: Option<Cost>) -> Report {
        let plan = Plan::new(Direction::Upload, streams, Duration::from_secs(4));
        let arrived =
            (0..streams).map(|number| Arrived { number, bytes: 500_000_000, from_s: 0.0, to_s: 4.0 }).collect();
        let trips = RoundTrips { samples: 100, p50_ms: 0.21, p99_ms: 4.2, max_ms: 9.0 };
        let conditions = Conditions {
            interrupted: remote.is_none(),
            path: direct(),
            path_at_end: direct(),
            path_changes: Vec::new(),
            local: Cost { cpu_s: 2.0, rss_bytes: Some(30 << 20) },
            remote,
            latency: Some(Latency { idle: Some(trips), loaded: None, unanswered: 2 }),
            intervals: Vec::new(),
        };
        Report::new("b", &plan, Some(Flow::of(arrived)), None, conditions)
    }

    #[test]
    fn the_report_has_a_line_for_each_thing() {
        let remote = Cost { cpu_s: 1.0, rss_bytes: Some(24 << 20) };
        assert_eq!(
            report(&sample(2, Some(remote))),
            [
                "upload      2.00 Gbit/s, 953.7 MiB in 4.00 s",
                "  each      1.00 Gbit/s  1.00 Gbit/s",
                "cpu         2.00 s/GB here, 1.00 there",
                "memory      30.0 MiB here, 24.0 MiB there",
                "round trip  0.2 ms (p99 4.2 ms) idle, unknown under load; 2 pings unanswered",
                "path        192.0.2.7:41641 from begin to end",
            ]
        );
        let many = report(&sample(20, Some(remote)));
        assert_eq!(many.iter().filter(|line| line.contains("1.00 Gbit/s  ") || line.starts_with("  each")).count(), 3);
    }

    #[test]
    fn what_is_not_known_is_said() {
        let lines = report(&sample(1, None));
        assert!(lines[0].starts_with("interrupted") && lines[1].starts_with("unconfirmed"), "{lines:?}");
        assert!(lines.iter().any(|line| line == "cpu         4.00 s/GB here, unknown there"), "{lines:?}");
        assert!(lines.iter().any(|line| line == "memory      30.0 MiB here, unknown there"), "{lines:?}");
        let mut changed = sample(1, None);
        changed.path_at_end = Path::Derp { region: 9 };
        assert_eq!(path_words(&changed), format!("{DIRECT} at the begin, DERP region 9 at the end: changed"));
    }
}
