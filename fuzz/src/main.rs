//! The fuzzer: libFuzzer around one of the targets, which the environment names.
//!
//! `NIXTAIL_FUZZ_TARGET=NAME fuzz FOLDER` fuzzes one; `NIXTAIL_FUZZ_SEEDS=FOLDER fuzz` prints all names, and writes what each begins
//! with into a folder of that name.
#![no_main]

mod targets;

use std::path::Path;
use std::sync::OnceLock;
use std::{env, fs, io, process};

use targets::{TARGETS, Target};

const TARGET: &str = "NIXTAIL_FUZZ_TARGET";
const SEEDS: &str = "NIXTAIL_FUZZ_SEEDS";

fn write_seeds(folder: &Path) -> io::Result<()> {
    for target in TARGETS {
        let folder = folder.join(target.name);
        fs::create_dir_all(&folder)?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
        println!("{}", target.name);
    }
    Ok(())
}

fn initialize() {
    let Some(folder) = env::var_os(SEEDS) else { return };
    let written = write_seeds(Path::new(&folder)).inspect_err(|error| eprintln!("writing seeds: {error}"));
    process::exit(i32::from(written.is_err()));
}

fn chosen() -> &'static Target {
    static CHOSEN: OnceLock<&'static Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = env::var(TARGET).unwrap_or_default();
        TARGETS
            .iter()
            .find(|target| target.name == name)
            .unwrap_or_else(|| panic!("{TARGET} names no target: {name:?}"))
    })
}

libfuzzer_sys::fuzz_target!(init: initialize(), |data: &[u8]| (chosen().run)(data));
