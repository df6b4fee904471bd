//! Histories by the thousand: those that once failed first, then new ones.
//!
//! A history that fails is made as small as it can be made in a minute and written to `kept/`, from where it is played in each
//! run. `make sim N=20000` plays more of them, from another seed each time.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::history::{History, any_history};
use crate::landmarks::REQUIRED;
use crate::play::{Outcome, play};
use crate::reference::Longest;

/// As many as `make test` plays, always the same ones: what fails there fails for everybody.
const HISTORIES: usize = 1000;
const SEED: u64 = 1;
/// From how many on each landmark must have been passed.
const ENOUGH: usize = 1000;
/// How long a failing history is made smaller.
const SHRINK_FOR: Duration = Duration::from_secs(60);
/// What the whole test program may have had in memory at a time, transfers of 64 MiB and ten thousand peers beside it.
const MOST_MEMORY_KIB: u64 = 512 << 10;

#[test]
fn histories_go_as_the_reference_model_says() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let count = number("NIXTAIL_SIM_HISTORIES").map_or(HISTORIES, |count| usize::try_from(count).unwrap());
    let seed = number("NIXTAIL_SIM_SEED").unwrap_or(SEED);
    let kept = kept_histories();
    println!("seed {seed}: {} kept histories, then {count} new ones", kept.len());
    let run = Run { begun: now(), ..Run::default() };
    for (name, history) in &kept {
        run.take(attempt(history).map_err(|error| format!("{name}: {error}\n{history:?}")));
    }
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, NonZero::get) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count || run.has_failed() {
                        return;
                    }
                    run.take(new_history(seed, index));
                    run.show_progress(index + 1, count);
                }
            });
        }
    });
    run.finish(count);
}

/// `NIXTAIL_SIM_HISTORY=FILE` plays that one alone and tells everything that happens.
#[test]
fn one_history_is_told() {
    let Some(path) = std::env::var_os("NIXTAIL_SIM_HISTORY") else { return };
    let history: History = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    println!("{:?}", play(&history, true).unwrap());
}

/// What all histories together have shown.
struct Run {
    begun: Instant,
    total: Mutex<Total>,
}

#[derive(Default)]
struct Total {
    landmarks: BTreeMap<&'static str, (u64, u64)>,
    longest: Longest,
    virtual_time: Duration,
    packets: u64,
    echoes: u64,
    played: u64,
    failures: Vec<String>,
}

impl Default for Run {
    fn default() -> Self {
        Self { begun: now(), total: Mutex::default() }
    }
}

impl Run {
    fn take(&self, outcome: Result<Outcome, String>) {
        let mut total = self.total.lock().unwrap();
        match outcome {
            Ok(outcome) => {
                for (landmark, times) in outcome.landmarks {
                    let (histories, all) = total.landmarks.entry(landmark).or_default();
                    *histories += 1;
                    *all += times;
                }
                total.longest = total.longest.max(outcome.longest);
                total.virtual_time += outcome.virtual_time;
                total.packets += outcome.packets;
                total.echoes += outcome.echoes;
                total.played += 1;
            }
            Err(failure) => total.failures.push(failure),
        }
    }

    fn has_failed(&self) -> bool {
        !self.total.lock().unwrap().failures.is_empty()
    }

    fn show_progress(&self, done: usize, count: usize) {
        if done.is_multiple_of((count / 20).max(100)) {
            eprintln!("{done} of {count} histories in {:.0} s", (now() - self.begun).as_secs_f64());
        }
    }

    fn finish(self, count: usize) {
        let total = self.total.into_inner().unwrap();
        let hours = total.virtual_time.as_secs_f64() / 3600.0;
        let took = (now() - self.begun).as_secs_f64();
        let memory = peak_memory_kib();
        println!(
            "{} histories in {took:.1} s: {hours:.1} virtual hours, {} packets, {} echoes",
            total.played, total.packets, total.echoes
        );
        println!("longest: {:?}; memory at most {} MiB", total.longest, memory.unwrap_or(0) >> 10);
        println!("passed (histories, times):");
        for (landmark, (histories, times)) in &total.landmarks {
            println!("{histories:>7} {times:>9}  {landmark}");
        }
        assert!(total.failures.is_empty(), "{}", total.failures.join("\n"));
        let missing: Vec<_> = REQUIRED.iter().filter(|landmark| !total.landmarks.contains_key(*landmark)).collect();
        assert!(count < ENOUGH || missing.is_empty(), "no history came by: {missing:?}");
        assert!(memory.is_none_or(|memory| memory < MOST_MEMORY_KIB), "{memory:?} KiB of memory");
    }
}

/// Makes the history with this number and plays it. If it fails, makes it smaller and keeps it.
fn new_history(seed: u64, index: usize) -> Result<Outcome, String> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..16].copy_from_slice(&(index as u64).to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let mut tree = any_history().new_tree(&mut runner).map_err(|reason| reason.to_string())?;
    let mut failure = match attempt(&tree.current()) {
        Ok(outcome) => return Ok(outcome),
        Err(failure) => failure,
    };
    let (begun, mut smallest) = (now(), tree.current());
    println!("history {index} of seed {seed} fails: {failure}\nmaking it smaller");
    while now() - begun < SHRINK_FOR && tree.simplify() {
        while now() - begun < SHRINK_FOR {
            match attempt(&tree.current()) {
                Err(error) => {
                    (failure, smallest) = (error, tree.current());
                    break;
                }
                Ok(_) if tree.complicate() => {}
                Ok(_) => break,
            }
        }
    }
    let path = kept().join(format!("seed-{seed}-history-{index}.json"));
    let written = std::fs::write(&path, format!("{smallest:?}\n"));
    Err(format!("history {index} of seed {seed}: {failure}\n{smallest:?}\nkept as {} ({written:?})", path.display()))
}

/// Plays it. A panic is a failure, too.
fn attempt(history: &History) -> Result<Outcome, String> {
    catch_unwind(AssertUnwindSafe(|| play(history, false))).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().cloned();
        let words = words.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned()));
        Err(format!("a panic: {}", words.unwrap_or_default()))
    })
}

fn kept() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/simulation/kept")
}

fn kept_histories() -> BTreeMap<String, History> {
    let Ok(folder) = std::fs::read_dir(kept()) else { return BTreeMap::new() };
    let paths = folder.filter_map(|entry| Some(entry.ok()?.path()));
    let paths = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    let read = |path: PathBuf| {
        let history = serde_json::from_str(&std::fs::read_to_string(&path).unwrap());
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name.clone(), history.unwrap_or_else(|error| panic!("{name}: {error}")))
    };
    paths.map(read).collect()
}

/// The most memory that this process has had, where the system tells.
fn peak_memory_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[expect(clippy::disallowed_methods, reason = "how long all this takes is told to people")]
fn now() -> Instant {
    Instant::now()
}
