//! The Nix of this machine with throw-away stores, and derivations that need no nixpkgs and no internet.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::peers;

/// The programs of Nix that the tests start, and a static busybox as their derivations' builder.
pub(crate) struct Programs {
    /// `nix`, which can ping a store.
    pub(crate) nix: PathBuf,
    /// `nix-build`.
    pub(crate) nix_build: PathBuf,
    /// A static `busybox`.
    pub(crate) busybox: PathBuf,
}

impl Programs {
    /// Finds them on `PATH`. `None` when one is missing; see [`peers::require`].
    pub(crate) fn find() -> Option<Self> {
        let on_path = |name| peers::require_on_path(name);
        // Builders look for the daemon, and Nix for ssh, by themselves.
        for needed in ["nix-daemon", "ssh"] {
            on_path(needed)?;
        }
        Some(Self { nix: on_path("nix")?, nix_build: on_path("nix-build")?, busybox: on_path("busybox")? })
    }
}

/// One process' Nix: a configuration, a home and a chroot store, all in one folder.
pub(crate) struct Place {
    folder: PathBuf,
}

impl Place {
    /// Makes it in `folder`. `max_jobs` of 0 is for who builds nothing.
    pub(crate) fn make(folder: PathBuf, max_jobs: u32) -> Self {
        for name in ["etc", "home"] {
            fs::create_dir_all(folder.join(name)).expect("make a folder for Nix");
        }
        // Build users are for root's daemons; substituters would be asked, without internet, for seconds.
        let conf = format!("build-users-group =\nsubstituters =\nmax-jobs = {max_jobs}\n");
        fs::write(folder.join("etc/nix.conf"), conf).expect("write nix.conf");
        Self { folder }
    }

    /// What its processes find in their environment.
    pub(crate) fn environment(&self) -> [(&'static str, String); 2] {
        let at = |name: &str| self.folder.join(name).display().to_string();
        [("NIX_CONF_DIR", at("etc")), ("HOME", at("home"))]
    }

    /// `program` with this environment, and nothing of the test's own but `PATH`.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).envs(self.environment());
        command
    }

    /// The root of its store; paths in it are as `nix/store/…`.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// The content of an output that Nix named `/nix/store/…`.
    pub(crate) fn read_output(&self, named: &str) -> String {
        let path = self.store().join(named.trim().trim_start_matches('/'));
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The names of the derivations that were built *here*: each leaves a log, which copying does not.
    pub(crate) fn built(&self) -> Vec<String> {
        let logs = self.store().join("nix/var/log/nix/drvs");
        let folders = fs::read_dir(logs).into_iter().flatten().filter_map(Result::ok);
        let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().filter_map(Result::ok));
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        // The rest of a hash, a dash, the name, `.drv`, and how the log is packed.
        names.filter_map(|name| Some(name.split_once('-')?.1.split(".drv").next()?.to_owned())).collect()
    }
}

/// Writes [`derivations`] into `folder`, with the busybox that they need.
pub(crate) fn write_derivations(folder: &Path, programs: &Programs, salt: &str) -> PathBuf {
    let tools = folder.join("tools");
    fs::create_dir_all(&tools).expect("make a folder");
    fs::copy(&programs.busybox, tools.join("busybox")).expect("copy busybox");
    let file = folder.join("derivations.nix");
    fs::write(&file, derivations(&tools, salt)).expect("write an expression");
    file
}

/// An expression that has these attributes, new to every store by `salt`: `top` (seven derivations in three levels),
/// `failing` (its last words, then exit code 7), `brief` (6 s), `slow` (30 s), `long` (10 minutes), `ticking` (a line a second,
/// three of them).
///
/// `tools` is a folder with a static `busybox` in it. (Busybox takes the applet from its own name, and `<hash>-busybox` is none.)
pub(crate) fn derivations(tools: &Path, salt: &str) -> String {
    format!(
        r#"let
  tools = builtins.path {{ path = /. + "{tools}"; name = "test-tools"; }};
  run = name: inputs: script: derivation {{
    inherit name inputs;
    salt = "{salt}";
    system = builtins.currentSystem;
    builder = "${{tools}}/busybox";
    args = [ "sh" "-euc" ''
      busybox=${{tools}}/busybox
      total=0
      for input in $inputs; do total=$((total + $($busybox cat $input))); done
      ${{script}}
    '' ];
  }};
  leaf = n: run "leaf-${{toString n}}" [ ] "$busybox sleep 0.4; echo ${{toString n}} > $out";
  middle = name: leaves: run name (map leaf leaves) "$busybox sleep 0.2; echo $total > $out";
in {{
  top = run "top" [ (middle "left" [ 1 2 ]) (middle "right" [ 4 8 ]) ] "echo total $total > $out";
  failing = run "failing" [ ] "echo the last words of $name; $busybox sleep 0.2; exit 7";
  pausing = run "pausing" [ ] "echo pausing has begun; $busybox sleep 5; echo done > $out";
  brief = run "brief" [ ] "echo brief has begun; $busybox sleep 6; echo done > $out";
  slow = run "slow" [ ] "echo slow has begun in {salt}; $busybox sleep 30; echo done > $out";
  long = run "long" [ ] "echo long has begun in {salt}; $busybox sleep 600; echo done > $out";
  ticking = run "ticking" [ ] "for n in 1 2 3; do echo tick $n; $busybox sleep 1; done; echo done > $out";
}}
"#,
        tools = tools.display(),
    )
}

/// How many derivations `top` of [`write_derivations`] has.
pub(crate) const DERIVATIONS: usize = 7;

/// What `top` holds.
pub(crate) const TOP: &str = "total 15\n";

/// Nix takes the write permission from what is in a store; without it an ordinary user can remove nothing.
pub(crate) fn make_removable(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700)).is_ok() {
            make_removable(&entry.path());
        }
    }
}
