//! `nixtail-bench counted` under callgrind, and what of its output is told.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::figures::Cost;

/// What is moved.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) peers: u16,
    pub(crate) present: u16,
    pub(crate) streams: u16,
    pub(crate) bursts: u16,
}

/// Below this function everything counts, and nothing elsewhere.
const COUNTED: &str = "*hub::host::counted*";
/// How the allocator's ways in are named.
const ALLOCATING: [&str; 6] = ["malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign"];
/// How the C library's functions that copy and clear memory begin, for whatever processor they are.
const COPYING: [&str; 6] = ["memcpy", "memmove", "memset", "__memcpy_", "__memmove_", "__memset_"];

/// Where callgrind's output of one workload lies.
pub(crate) fn output(workload: &Workload, way: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{way}.callgrind", workload.name))
}

/// What each packet costs the node that sends, or receives.
pub(crate) fn count(workload: &Workload, way: &str) -> Cost {
    let output = output(workload, way);
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--quiet", "--dump-instr=yes", "--compress-pos=no"]);
    valgrind.arg(format!("--toggle-collect={COUNTED}"));
    valgrind.arg(format!("--callgrind-out-file={}", output.display()));
    valgrind.args([env!("CARGO_BIN_EXE_nixtail-bench"), "counted", way]);
    for (name, value) in [
        ("peers", workload.peers),
        ("present", workload.present),
        ("streams", workload.streams),
        ("bursts", workload.bursts),
    ] {
        valgrind.arg(format!("--{name}={value}"));
    }
    // Where a copy is one instruction for the processor, valgrind counts one for each byte.
    valgrind.env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-ERMS,-FSRM").stdin(Stdio::null());
    let run = valgrind.output().expect("valgrind starts");
    assert!(run.status.success(), "{valgrind:?}: {}\n{}", run.status, String::from_utf8_lossy(&run.stderr));
    let moved: serde_json::Value = serde_json::from_slice(&run.stdout).expect("a line of JSON");
    let packets = moved["packets"].as_f64().expect("how many packets");
    let text = fs::read_to_string(&output).expect("callgrind's output");
    let counts = Counts::of(&text);
    assert!(counts.instructions > 0, "callgrind found no function {COUNTED}: was the program stripped?");
    counts.per(packets)
}

/// Totals of one output.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    instructions: u64,
    copying: u64,
    allocations: u64,
}

impl Counts {
    /// Reads callgrind's format ("Callgrind Format Specification" of valgrind's manual), as far as it is needed: one event, costs
    /// by instruction and line, names compressed.
    fn of(text: &str) -> Self {
        let (mut counts, mut names) = (Self::default(), HashMap::new());
        let (mut function, mut callee, mut is_call) = (Kind::Other, Kind::Other, false);
        // Calls are counted also where nothing else is; so what counts is how often an allocator's first instruction ran.
        let (mut first, mut allocating) = (HashSet::new(), HashMap::<&str, u64>::new());
        for line in text.lines() {
            let mut words = line.split(' ');
            if let Some(name) = line.strip_prefix("fn=") {
                function = kind(name, &mut names);
            } else if let Some(name) = line.strip_prefix("cfn=") {
                callee = kind(name, &mut names);
            } else if line.starts_with("calls=") {
                is_call = true;
                if callee == Kind::Allocating {
                    first.extend(words.nth(1));
                }
            } else if line.starts_with("0x")
                && let Some(cost) = words.clone().nth(2).and_then(|cost| cost.parse::<u64>().ok())
            {
                // After `calls=` stands what the call cost, which the callee has counted itself.
                if std::mem::take(&mut is_call) {
                    continue;
                }
                counts.instructions += cost;
                match (function, words.next()) {
                    (Kind::Copying, _) => counts.copying += cost,
                    (Kind::Allocating, Some(address)) => *allocating.entry(address).or_default() += cost,
                    _ => {}
                }
            }
        }
        counts.allocations = first.iter().filter_map(|address| allocating.get(address)).sum();
        counts
    }

    #[allow(clippy::cast_precision_loss, reason = "53 bits of instructions are enough")]
    fn per(&self, packets: f64) -> Cost {
        let [instructions, copying, allocations] =
            [self.instructions, self.copying, self.allocations].map(|count| count as f64 / packets);
        Cost { instructions, copying, allocations }
    }
}

/// What of a function is of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Allocating,
    Copying,
    Other,
}

/// The kind of `(number) name`, or of `(number)` alone, which had its name before.
fn kind(name: &str, names: &mut HashMap<String, Kind>) -> Kind {
    let (number, name) = name.split_once(' ').unwrap_or((name, ""));
    if name.is_empty() {
        return names.get(number).copied().unwrap_or(Kind::Other);
    }
    // A function that calls itself has the depth behind its name.
    let plain = name.split('\'').next().unwrap_or(name);
    let kind = if ALLOCATING.contains(&plain) {
        Kind::Allocating
    } else if COPYING.iter().any(|beginning| name.starts_with(beginning)) {
        Kind::Copying
    } else {
        Kind::Other
    };
    names.insert(number.to_owned(), kind);
    kind
}

#[test]
fn costs_of_functions_are_added_up_and_those_of_calls_are_not() {
    let output = "version: 1\nevents: Ir\npositions: instr line\nfn=(1) work\n0x1 10 100\n0x4 13 20\n\
        cfn=(2) __memcpy_avx_unaligned\ncalls=2 0x20 0\n0x6 14 50\n0x7 14 7\ncfn=(3) malloc\ncalls=400 0x30 0\n\
        0x8 15 40\nfn=(2)\n0x20 0 50\nfn=(3)\n0x30 0 4\n0x31 0 26\n\ntotals: 207\n";
    assert_eq!(Counts::of(output), Counts { instructions: 207, copying: 50, allocations: 4 });
}
