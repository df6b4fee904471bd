//! The figures that were recorded, and how far others may be from them.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

/// The file, from the root of the tree.
pub(crate) const FILE: &str = "bench/tests/counted/figures.json";

/// The parts by which counts may differ. One more copy of each packet is 1 % of all instructions, and 16 % of those that copy.
const INSTRUCTIONS_TOLERANCE: f64 = 0.01;
const COPYING_TOLERANCE: f64 = 0.04;
/// Allocations for each packet: one in two hundred is none.
pub(crate) const ALLOCATIONS_TOLERANCE: f64 = 0.005;

/// What a packet costs.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Cost {
    pub(crate) instructions: f64,
    /// Instructions of `memcpy`, `memmove` and `memset`, which the others contain.
    pub(crate) copying: f64,
    pub(crate) allocations: f64,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instructions, copying, allocations } = self;
        write!(f, "{instructions:.0} instructions ({copying:.0} to copy and clear), {allocations:.3} allocations")
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// What instructions depend on besides the code.
    pub(crate) made_by: String,
    pub(crate) send: Cost,
    pub(crate) receive: Cost,
}

impl Figures {
    pub(crate) fn recorded() -> Self {
        let text = fs::read_to_string(path()).expect("figures.json is there");
        serde_json::from_str(&text).expect("figures.json can be read")
    }

    pub(crate) fn record(&self) {
        let rounded = |cost: &Cost| Cost {
            instructions: cost.instructions.round(),
            copying: cost.copying.round(),
            allocations: (cost.allocations * 1000.0).round() / 1000.0,
        };
        let rounded =
            Self { made_by: self.made_by.clone(), send: rounded(&self.send), receive: rounded(&self.receive) };
        let text = serde_json::to_string_pretty(&rounded).expect("figures can be written");
        fs::write(path(), text + "\n").expect("figures.json can be written");
    }

    /// What of `counted` isn't as it was recorded, in words. Where the C library has no names (Debian's libc6-dbg), nothing is known of
    /// what copies.
    pub(crate) fn differences(&self, counted: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        for (way, before, after) in [("sending", self.send, counted.send), ("receiving", self.receive, counted.receive)]
        {
            let instructions = [
                ("instructions", before.instructions, after.instructions, INSTRUCTIONS_TOLERANCE),
                ("instructions to copy and clear memory", before.copying, after.copying, COPYING_TOLERANCE),
            ];
            for (what, before, after, tolerance) in instructions {
                let change = after / before - 1.0;
                if self.made_by == counted.made_by && after > 0.0 && change.abs() > tolerance {
                    let (change, tolerance) = (100.0 * change, 100.0 * tolerance);
                    differences.push(format!(
                        "  {way}: {after:.0} {what}, recorded were {before:.0}: {change:+.1} % ({tolerance:.0} % are allowed)"
                    ));
                }
            }
            let (before, after) = (before.allocations, after.allocations);
            if (after - before).abs() > ALLOCATIONS_TOLERANCE {
                differences.push(format!("  {way}: {after:.3} allocations, recorded were {before:.3}"));
            }
        }
        differences
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.made_by)?;
        write!(f, "sending: {}\nreceiving: {}", self.send, self.receive)
    }
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/counted/figures.json")
}

/// Compiler, C library, valgrind and what it takes the processor for.
pub(crate) fn made_by() -> String {
    let told = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        text.unwrap_or_else(|_| format!("no {program}"))
    };
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    [
        told(&compiler, "--version"),
        told("getconf", "GNU_LIBC_VERSION"),
        told("valgrind", "--version"),
        processor().to_owned(),
    ]
    .join(", ")
}

#[cfg(target_arch = "x86_64")]
fn processor() -> &'static str {
    if std::arch::is_x86_feature_detected!("avx2") { "x86_64 with AVX2" } else { "x86_64" }
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> &'static str {
    std::env::consts::ARCH
}

#[test]
fn what_differs_is_told_both_ways_and_only_allocations_across_compilers() {
    let cost = Cost { instructions: 10_000.0, copying: 500.0, allocations: 0.0 };
    let figures = |made_by: &str, send: Cost| Figures { made_by: made_by.to_owned(), send, receive: cost };
    let recorded = figures("one", cost);
    let told = |made_by: &str, send: Cost| recorded.differences(&figures(made_by, send));
    assert_eq!(told("one", Cost { instructions: 10_090.0, ..cost }), Vec::<String>::new());
    let dearer = Cost { instructions: 10_300.0, allocations: 1.0, ..cost };
    let words = [
        "  sending: 10300 instructions, recorded were 10000: +3.0 % (1 % are allowed)",
        "  sending: 1.000 allocations, recorded were 0.000",
    ];
    assert_eq!(told("one", dearer), words);
    assert_eq!(told("another", dearer), words[1..]);
    assert_eq!(told("one", Cost { copying: 400.0, ..cost }).len(), 1, "what became cheaper is told, too");
    assert_eq!(told("one", Cost { copying: 0.0, ..cost }), Vec::<String>::new(), "a C library without names");
}
