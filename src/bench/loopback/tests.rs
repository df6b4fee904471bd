use std::time::Duration;

use super::*;
use crate::report::terminal::Terminal;

const SHORT: Duration = Duration::from_millis(5);

fn ends(sending_ms: u64, receiving_ms: u64) -> Ends {
    let time = Duration::from_millis;
    Ends { bytes: 1_000_000_000, sending: time(sending_ms), receiving: time(receiving_ms) }
}

fn sample() -> Loopback {
    let path = [
        (StageName::Tcp, ends(400, 300)),
        (StageName::Wireguard, ends(800, 1000)),
        (StageName::Node, ends(200, 200)),
        (StageName::Syscalls, ends(600, 500)),
    ];
    let others = [(StageName::SyscallsOneByOne, ends(2000, 3000))];
    Loopback::new(&path, &others, Together { gbit_per_s: 3.5, cpu_s_per_gb: 4.2 }, true)
}

#[test]
fn stages_add_up_and_the_largest_of_the_slower_end_is_the_limit() {
    let result = sample();
    assert_eq!((result.sum.sending.cpu_s_per_gb, result.sum.receiving.cpu_s_per_gb), (2.0, 2.0));
    assert_eq!((result.sum.sending.gbit_per_s, result.sum.sending.share), (4.0, Some(1.0)));
    let wireguard = result.stages[1];
    assert_eq!((wireguard.sending.gbit_per_s, wireguard.sending.share), (10.0, Some(0.4)));
    // Where both are as slow, the one that can't be helped by sending less.
    assert_eq!((result.limit.stage, result.limit.end), (StageName::Wireguard, End::Receiving));
    assert_eq!((result.limit.share, result.limit.end_gbit_per_s), (0.5, 4.0));
    assert_eq!(result.others[0].receiving.share, None);
    let slow_sender = [(StageName::Tcp, ends(500, 1)), (StageName::Syscalls, ends(900, 2))];
    let result = Loopback::new(&slow_sender, &[], Together { gbit_per_s: 0.0, cpu_s_per_gb: 0.0 }, true);
    assert_eq!((result.limit.stage, result.limit.end), (StageName::Syscalls, End::Sending));
}

#[test]
fn a_part_is_taken_out_and_noise_makes_nothing_negative() {
    let node = ends(1500, 1400);
    let half = Ends { bytes: 500_000_000, sending: Duration::from_millis(200), receiving: Duration::from_millis(800) };
    let rest = node.without(&half);
    assert_eq!((rest.sending, rest.receiving), (Duration::from_millis(1100), Duration::ZERO));
    assert_eq!(rest.bytes, node.bytes);
    // What was never measured takes nothing away.
    assert_eq!(node.without(&Ends::default()), node);
}

#[test]
fn the_table_names_the_limit() {
    let lines = words::lines(&sample(), &Terminal::NONE);
    assert_eq!(lines.len(), 1 + 4 + 1 + 1 + 3);
    assert!(lines[2].starts_with("WireGuard ") && lines[2].contains("10.00"), "{lines:#?}");
    assert_eq!(
        lines.last().unwrap(),
        "your limit is WireGuard, opening packets: 50 % of what the end that receives spends, of which a core does 4.00 Gbit/s in all"
    );
}

#[test]
fn every_stage_that_runs_in_one_thread_measures() {
    let budget = || Budget::new(SHORT, CancellationToken::new());
    let stages: [(&str, Ends); 5] = [
        ("tcp", stacks::measure(&budget()).unwrap()),
        ("wireguard", wireguard::measure(&budget()).unwrap()),
        ("nodes", nodes::measure(&budget()).unwrap()),
        ("with offload", datagrams::measure(&budget(), true).unwrap()),
        ("without", datagrams::measure(&budget(), false).unwrap()),
    ];
    for (name, ends) in stages {
        assert!(ends.bytes > 0 && !ends.sending.is_zero() && !ends.receiving.is_zero(), "{name}: {ends:?}");
    }
}

#[tokio::test]
async fn all_of_it_runs_and_can_be_stopped() {
    let stop = CancellationToken::new();
    let mut told = Vec::new();
    let result = run(SHORT, &stop, |what| told.push(what)).await.unwrap();
    assert_eq!(result.stages.len(), 4);
    assert!(told.len() >= 6 && result.together.gbit_per_s > 0.0 && result.together.cpu_s_per_gb > 0.0, "{result:?}");
    let whole = result.stages.iter().map(|stage| stage.sending.share.unwrap()).sum::<f64>();
    assert!((whole - 1.0).abs() < 1e-9, "{whole}");
    let json = serde_json::to_string(&result).unwrap();
    let limit = serde_json::from_str::<Loopback>(&json).unwrap().limit;
    // The last digit of a number may be another one (serde_json's `float_roundtrip`).
    assert_eq!((limit.stage, limit.end), (result.limit.stage, result.limit.end));
    stop.cancel();
    assert!(matches!(run(MAX_STAGE_TIME, &stop, |_| {}).await, Err(LoopbackError::Interrupted)));
}
