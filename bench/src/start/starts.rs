//! Starts, one after the other, and what their logs say of them.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::nix::figures::Samples;
use crate::stage::{Machine, Who};

use super::control::Control;

/// How long a start may take.
const PATIENCE: Duration = Duration::from_secs(60);

impl Who {
    /// The stages that a log tells, in milliseconds since its start.
    fn stages(self, log: &str) -> Vec<(String, f64)> {
        let stage = |line: &str| match self {
            Self::Nixtail => {
                let (name, ms) = line.split_once("start stage=")?.1.split_once(" ms=")?;
                Some((name.to_owned(), ms.trim().parse().ok()?))
            }
            Self::Tsnet => {
                let step: serde_json::Value = serde_json::from_str(line).ok()?;
                Some((step.get("step")?.as_str()?.to_owned(), step.get("ms")?.as_f64()?))
            }
        };
        log.lines().filter_map(stage).collect()
    }

    /// Whether it has a netmap and a home relay. tsnet says so once that is chosen, connected or not.
    fn is_up(self, stages: &[(String, f64)]) -> bool {
        let wanted: &[&str] = match self {
            Self::Nixtail => &["first netmap", "home relay"],
            Self::Tsnet => &["home"],
        };
        wanted.iter().all(|wanted| stages.iter().any(|(stage, _)| stage == wanted))
    }
}

/// What the starts of one program took.
#[derive(Debug, Clone, Default)]
pub(super) struct Starts {
    pub(super) total: Samples,
    /// The most memory that any of them had when it was up, in bytes.
    most_memory: u64,
    stages: Vec<(String, Samples)>,
}

impl Starts {
    /// The stages' names, in the order in which they were reached first.
    pub(super) fn stages(&self) -> Vec<&str> {
        self.stages.iter().map(|(stage, _)| stage.as_str()).collect()
    }

    /// The median of a stage, in milliseconds.
    pub(super) fn median(&self, wanted: &str) -> Option<f64> {
        let (_, samples) = self.stages.iter().find(|(stage, _)| stage == wanted)?;
        Some(samples.spread()?.median * 1e3)
    }

    /// The most memory that any of them had when it was up, in MiB.
    pub(super) fn memory(&self) -> f64 {
        self.most_memory as f64 / f64::from(1 << 20)
    }

    fn add(&mut self, total: Duration, memory: u64, stages: Vec<(String, f64)>) {
        self.total.add(total);
        self.most_memory = self.most_memory.max(memory);
        for (stage, ms) in stages {
            let at = self.stages.iter().position(|(known, _)| *known == stage).unwrap_or_else(|| {
                self.stages.push((stage, Samples::default()));
                self.stages.len() - 1
            });
            if let Some((_, samples)) = self.stages.get_mut(at) {
                samples.add(Duration::from_secs_f64(ms / 1e3));
            }
        }
    }
}

/// Starts each of them in turns.
pub(super) fn measure(
    folder: &Path,
    node: &Machine,
    control: &Control,
    who: &[Who],
    rounds: u8,
) -> Result<Vec<Starts>, Box<dyn Error>> {
    let program = |name: &str| folder.join("bin").join(name).display().to_string();
    let socket = node.path("start.sock").display().to_string();
    let mut all = vec![Starts::default(); who.len()];
    for round in 0..rounds {
        for (who, starts) in who.iter().zip(&mut all) {
            let name = format!("{}-{round}", who.name());
            let mut command = match who {
                Who::Nixtail => {
                    let line = ["-v", "up", "--login-server", &control.url, "--hostname", &name, "--socket", &socket];
                    node.command(&program("nixtail"), &line)
                }
                Who::Tsnet => node.command(&program("tsnet-peer"), &[&control.url, &name, ""]),
            };
            command.env("TS_AUTHKEY", &control.key).env("TS_NO_LOGS_NO_SUPPORT", "true");
            let begun = Instant::now();
            let mut running = node.start_inside(&name, command)?;
            let up = |log: &str| Some(who.stages(log)).filter(|stages| who.is_up(stages));
            let stages = running.wait_for("a netmap and a home relay", PATIENCE, up)?;
            starts.add(begun.elapsed(), peak_memory(running.id()), stages);
        }
    }
    Ok(all)
}

/// The most memory that a process has had, in bytes; 0 if the system doesn't say.
fn peak_memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_tell_the_stages() {
        let log = "2026 INFO nixtail::agent::stages: start stage=first netmap ms=13.5\nready x\n\
                   2026 INFO nixtail::agent::stages: start stage=home relay ms=44.077\n";
        let stages = Who::Nixtail.stages(log);
        assert_eq!(stages, [("first netmap".to_owned(), 13.5), ("home relay".to_owned(), 44.077)]);
        assert!(Who::Nixtail.is_up(&stages) && !Who::Nixtail.is_up(&stages[..1]));
        let stages = Who::Tsnet.stages("noise\n{\"step\":\"online\",\"ms\":7}\n{\"step\":\"home\",\"ms\":9}\n");
        assert_eq!(stages, [("online".to_owned(), 7.0), ("home".to_owned(), 9.0)]);
        assert!(Who::Tsnet.is_up(&stages));
        let mut starts = Starts::default();
        starts.add(Duration::from_millis(10), 3 << 20, stages);
        assert_eq!((starts.stages(), starts.median("home"), starts.memory()), (vec!["online", "home"], Some(9.0), 3.0));
    }
}
