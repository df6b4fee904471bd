//! A wall clock that can be set under a running program, by a library that is loaded before its own (`clock.c`).

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::process::run_ok;
use crate::lab::{PATIENCE, peers};

/// One program's wall clock.
pub(crate) struct Clock {
    library: PathBuf,
    path: PathBuf,
    shift: File,
}

impl Clock {
    /// A clock that is right, with its files in `folder`. `None` where there is no C compiler.
    pub(crate) fn new(folder: &Path) -> Option<Self> {
        let compiler = peers::require_on_path("cc")?;
        let (library, path) = (folder.join("clock.so"), folder.join("clock.shift"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/clock.c");
        let mut compile = Command::new(compiler);
        run_ok(compile.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library).arg(source), PATIENCE);
        fs::write(&path, 0_i64.to_ne_bytes()).unwrap();
        let shift = File::options().write(true).open(&path).unwrap();
        Some(Self { library, path, shift })
    }

    /// What the program needs in its environment.
    pub(crate) fn environment(&self) -> [(&'static str, String); 2] {
        let (library, path) = (self.library.display().to_string(), self.path.display().to_string());
        [("LD_PRELOAD", library), ("NIXTAIL_TEST_CLOCK", path)]
    }

    /// Sets it to so many seconds beside the right time.
    pub(crate) fn set(&self, seconds: i64) {
        self.shift.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }
}
