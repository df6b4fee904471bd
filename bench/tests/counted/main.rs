//! No regression unseen: what the hot path costs is counted, not timed, and held against what was recorded.
//!
//! Callgrind counts what a whole node does while bulk TCP goes through it, in memory and under virtual time (`nixtail-bench
//! counted`): instructions, those of them that only copy or clear memory, and allocations, for each packet. Two runs differ by
//! no instruction, so whatever differs is a change of the code, or of what made it: compiler, C library, valgrind.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what goes wrong here fails the test")]

mod callgrind;
mod figures;
#[path = "../../../tests/lab/peers.rs"]
#[allow(dead_code, unreachable_pub, reason = "this takes the part it needs")]
mod peers;

use std::env;
use std::thread;

use callgrind::Workload;
use figures::{Cost, Figures};

/// What many peers and streams may add to the cost of a packet.
const SCALE_TOLERANCE: f64 = 0.05;

const BULK: Workload = Workload { name: "bulk", peers: 1, present: 1, streams: 1, bursts: 0 };
/// The same segments in the same trains, between two nodes that have nothing else and in a tailnet where much goes on.
const ALONE: Workload = Workload { name: "alone", peers: 1, present: 1, streams: 1, bursts: 50 };
const CROWDED: Workload = Workload { name: "crowded", peers: 256, present: 10, streams: 100, bursts: 1 };

/// What sending and receiving costs.
fn count(workload: &Workload) -> [Cost; 2] {
    thread::scope(|scope| {
        let ways = ["send", "receive"].map(|way| scope.spawn(move || callgrind::count(workload, way)));
        ways.map(|way| way.join().expect("it was counted"))
    })
}

fn can_count() -> bool {
    peers::require_on_path("valgrind").is_some()
}

#[test]
fn the_hot_path_costs_what_was_recorded() {
    if !can_count() {
        return;
    }
    let [send, receive] = count(&BULK);
    let counted = Figures { made_by: figures::made_by(), send, receive };
    println!("{counted}");
    if env::var_os("NIXTAIL_COUNTED").is_some_and(|value| value == "record") {
        counted.record();
        return;
    }
    let recorded = Figures::recorded();
    if recorded.made_by != counted.made_by {
        peers::say(&format!(
            "counted: the figures were recorded with {}; this is {}: only allocations are compared",
            recorded.made_by, counted.made_by
        ));
    }
    let differences = recorded.differences(&counted);
    assert!(
        differences.is_empty(),
        "the hot path costs otherwise than {} says, for each packet:\n{}\nWhere: callgrind_annotate {}\nWho allocates: \
         callgrind_annotate --tree=caller --inclusive=yes with the same file, at malloc.\nIf that is meant, or if it became \
         cheaper, which is worth holding on to: `make counted RECORD=1`, and commit the file.",
        figures::FILE,
        differences.join("\n"),
        callgrind::output(&BULK, "*").display(),
    );
}

#[test]
fn a_packet_costs_the_same_among_256_peers_and_100_streams() {
    if !can_count() {
        return;
    }
    let (alone, crowded) = thread::scope(|scope| {
        let alone = scope.spawn(|| count(&ALONE));
        let crowded = count(&CROWDED);
        (alone.join().expect("it was counted"), crowded)
    });
    for ((way, alone), crowded) in ["sending", "receiving"].into_iter().zip(alone).zip(crowded) {
        println!("{way}: alone {alone}; with 256 peers and 100 streams {crowded}");
        let files = [&ALONE, &CROWDED].map(|workload| callgrind::output(workload, "*").display().to_string());
        assert!(
            crowded.instructions <= alone.instructions * (1.0 + SCALE_TOLERANCE)
                && crowded.allocations <= alone.allocations * (1.0 + SCALE_TOLERANCE) + figures::ALLOCATIONS_TOLERANCE,
            "{way} a packet costs {alone} between two nodes, and {crowded} in a node with 256 peers and 100 streams: more than \
             {:.0} % more. Something looks at each peer or stream for each packet; where: callgrind_annotate {}",
            100.0 * SCALE_TOLERANCE,
            files.join(" and "),
        );
    }
}
