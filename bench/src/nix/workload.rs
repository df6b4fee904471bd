//! What is copied and built, and how one measurement is made.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use super::figures::Taken;
use super::lanes::Lane;
use super::processor;
use super::rows::RowKind;
use crate::stage::Machine;
use crate::stage::process::{run_command, time, wait_until};

/// How many leaves are built in parallel.
pub(crate) const LEAVES: u32 = 12;

/// Files of the large path.
const FILES: u64 = 4;

/// Longer than any single measurement should take.
const DEADLINE: Duration = Duration::from_secs(240);

/// The derivations, without nixpkgs: the builder is a static busybox, in a folder because it goes by the name it is
/// called by.
const EXPRESSION: &str = r#"{ salt, leaves }:
let
  tools = builtins.path { path = ./tools; name = "tools"; };
  one = i: derivation {
    name = "leaf-${toString i}"; inherit salt; system = builtins.currentSystem;
    builder = "${tools}/busybox"; args = [ "sh" "-ec" "echo ${toString i} > $out" ];
  };
in builtins.genList one leaves
"#;

/// How much is copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Bytes of the large path.
    large: u64,
    /// Small paths, besides the one that refers to them.
    small: u32,
}

impl Size {
    pub(crate) const WHOLE: Self = Self { large: 1 << 30, small: 5_000 };
    pub(crate) const QUICK: Self = Self { large: 8 << 20, small: 50 };
}

/// What is there to be copied and built.
#[derive(Debug)]
pub(crate) struct Workload<'a> {
    coordinator: &'a Machine,
    builder: &'a Machine,
    log: PathBuf,
    large: String,
    small: String,
    /// Makes each derivation one that nobody has built.
    salt: u32,
}

impl<'a> Workload<'a> {
    /// Makes it in the coordinator's store.
    pub(crate) fn make(
        coordinator: &'a Machine,
        builder: &'a Machine,
        stage: &std::path::Path,
        size: Size,
    ) -> Result<Self, Box<dyn Error>> {
        let tools = coordinator.home("tools");
        fs::create_dir(&tools)?;
        fs::copy(stage.join("bin/busybox"), tools.join("busybox"))?;
        fs::write(coordinator.home("leaves.nix"), EXPRESSION)?;
        let folder = coordinator.home("large");
        fs::create_dir(&folder)?;
        for n in 0..FILES {
            // Random, so that nothing on the way can make it shorter.
            let mut random = File::open("/dev/urandom")?.take(size.large / FILES);
            io::copy(&mut random, &mut File::create(folder.join(n.to_string()))?)?;
        }
        let large = coordinator.run("nix-store", &["--add", "/root/large"])?.trim().to_owned();
        fs::remove_dir_all(folder)?;
        fs::write(coordinator.home("small.nix"), small(size.small))?;
        let evaluate = ["--eval", "--read-write-mode", "--json", "/root/small.nix"];
        let small = coordinator.run("nix-instantiate", &evaluate)?.trim().trim_matches('"').to_owned();
        Ok(Self { coordinator, builder, log: stage.join("measured.log"), large, small, salt: 0 })
    }

    /// One measurement of `kind` over `lane`, after what must be so before it.
    pub(crate) fn once(&mut self, kind: RowKind, lane: &Lane) -> Result<Taken, Box<dyn Error>> {
        let (large, small) = (self.large.clone(), self.small.clone());
        match kind {
            RowKind::NoOp => self.build(lane, 1),
            RowKind::Leaves => self.build(lane, LEAVES),
            RowKind::LargeTo => self.copy_to(lane, &large),
            RowKind::LargeFrom => self.copy_from(lane, &large),
            RowKind::SmallTo => self.copy_to(lane, &small),
            RowKind::SmallFrom => self.copy_from(lane, &small),
        }
    }

    fn build(&mut self, lane: &Lane, leaves: u32) -> Result<Taken, Box<dyn Error>> {
        self.salt += 1;
        let (salt, leaves) = (self.salt.to_string(), leaves.to_string());
        let arguments = [
            "/root/leaves.nix",
            "--argstr",
            "salt",
            &salt,
            "--arg",
            "leaves",
            &leaves,
            "--no-out-link",
            "-j0",
            "--builders",
            &lane.machine,
        ];
        self.time(lane, "nix-build", &arguments)
    }

    fn copy_to(&self, lane: &Lane, path: &str) -> Result<Taken, Box<dyn Error>> {
        // As long as the daemon of an earlier copy lives, its paths stay: what is there already would cost nothing.
        wait_until("the builder without the path", DEADLINE, || {
            self.builder.run("nix-collect-garbage", &["--quiet"]).ok()?;
            self.builder.run("nix-store", &["--check-validity", path]).err()
        })?;
        self.time(lane, "nix", &["copy", "--to", &lane.store, path])
    }

    fn copy_from(&self, lane: &Lane, path: &str) -> Result<Taken, Box<dyn Error>> {
        if self.builder.run("nix-store", &["--check-validity", path]).is_err() {
            run_command(lane.command(self.coordinator, "nix", &["copy", "--to", &lane.store, path]), DEADLINE)?;
        }
        self.coordinator.run("sh", &["-c", "chmod -R u+w /nix/copied 2>/dev/null; rm -rf /nix/copied"])?;
        self.time(lane, "nix", &["copy", "--from", &lane.store, "--to", "local?root=/nix/copied", path])
    }

    fn time(&self, lane: &Lane, program: &str, arguments: &[&str]) -> Result<Taken, Box<dyn Error>> {
        let command = lane.command(self.coordinator, program, arguments);
        let before = processor::seconds(self.coordinator);
        let time = time(command, DEADLINE, &self.log).map_err(|error| format!("{}: {error}", lane.title))?;
        Ok(Taken { time, processor: processor::seconds(self.coordinator) - before })
    }
}

/// A text that refers to many small ones.
fn small(count: u32) -> String {
    format!(
        r#"let
  one = i: builtins.toFile "small-${{toString i}}"
    ("file ${{toString i}} " + toString (builtins.genList (x: i * x) 40));
in builtins.toFile "small" (builtins.concatStringsSep "\n" (builtins.genList one {count}))
"#
    )
}
