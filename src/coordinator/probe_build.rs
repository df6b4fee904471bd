//! The proof of a builder: Nix itself builds something through it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use nixtail_proto::run::{Failure, Stage};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

use crate::nix::machines::{Machine, MachineError};
use crate::nix::spawn::{ChildSpec, GroupChild, TERMINATE_GRACE};
use crate::report::plain;

/// How long a probe build may take; it takes 0.3 s on an idle machine.
const PROBE_DEADLINE: Duration = Duration::from_secs(60);
/// The most that is read of what a probe says.
const MAX_WORDS: u64 = 64 * 1024;
/// How the build hook begins to say that it didn't get through to a builder.
const HOOKS_WORDS: &str = "cannot build on ";
/// The longest reason that is passed on, in characters.
const MAX_REASON: usize = 300;

/// Where Nix is told of a store that isn't `/nix/store` (the Nix manual, "Common Environment Variables").
pub(super) const STORE_FOLDER_VARIABLE: &str = "NIX_STORE_DIR";

/// What Nix finds in its environment, where we have it.
const KEPT_VARIABLES: [&str; 12] = [
    "PATH",
    "HOME",
    "USER",
    "LD_LIBRARY_PATH",
    "NIX_CONF_DIR",
    "NIX_DATA_DIR",
    "NIX_LOG_DIR",
    "NIX_PATH",
    STORE_FOLDER_VARIABLE,
    "NIX_STATE_DIR",
    // Which daemon.
    "NIX_REMOTE",
    "NIX_DAEMON_SOCKET_PATH",
];

/// The derivation. Its builder is a part of Nix.
const EXPRESSION: &str = r#"{ system ? builtins.currentSystem, salt }: derivation {
  name = "nixtail-probe"; inherit system salt; builder = "builtin:buildenv"; derivations = ""; manifest = "/dev/null";
}"#;

/// A probe build that is to be made.
///
/// What is built is a built-in of Nix, which runs in the same sandbox as any other and needs no program there. It must be
/// written at the builder, built in its sandbox, and trusted.
#[derive(Debug)]
pub(super) struct ProbeBuild {
    /// `nix-build`.
    program: PathBuf,
    /// What no other build has: two are never the same derivation, which would be built once.
    salt: String,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// The user's own Nix opens the builder's store. It finds ssh's configuration in its environment.
    OwnNix { eval_store: String, store_uri: String, ssh_options: String },
    /// The daemon sends it to the builder as it does with all others, and takes the output back.
    Daemon { machine_line: String, system: String, link: String },
}

impl ProbeBuild {
    /// One that the user's own Nix makes, in the store at `store_uri`.
    pub(super) fn of_own_nix(program: PathBuf, builder: &str, eval_store: &str, store_uri: &str, ssh: String) -> Self {
        let way = Way::OwnNix { eval_store: eval_store.to_owned(), store_uri: store_uri.to_owned(), ssh_options: ssh };
        Self { program, salt: salt(builder), way }
    }

    /// One that a daemon makes, which is told of `machine` alone. Its outcome tells all: whether the daemon takes a word of
    /// this user's, whether its build hook reaches what stands in this user's folder, and what a probe always tells.
    ///
    /// # Errors
    /// When the machine can't stand in a list.
    pub(super) fn of_daemon(program: PathBuf, builder: &str, machine: &Machine) -> Result<Self, MachineError> {
        // This build asks for no feature, so none may be demanded.
        let machine = Machine { mandatory_features: Vec::new(), ..machine.clone() };
        let link = machine.store_uri.split_once('=').map_or(builder, |(_, link)| link);
        let way = Way::Daemon {
            machine_line: machine.line()?.to_string(),
            system: machine.systems.first().cloned().unwrap_or_default(),
            link: link.to_owned(),
        };
        Ok(Self { program, salt: salt(builder), way })
    }

    /// Makes it.
    ///
    /// # Errors
    /// Why it wasn't made there.
    pub(super) async fn run(&self) -> Result<(), Failure> {
        let failed = |reason: String| Failure { stage: Stage::ProbeBuild, reason };
        let mut child = GroupChild::start(&self.command()).await.map_err(|error| failed(error.to_string()))?;
        let Some((stdin, stdout, stderr)) = child.take_pipes() else {
            return Err(failed("it ended before it began".to_owned()));
        };
        drop(stdin);
        let work = async {
            let (_, words) = tokio::join!(read_bounded(stdout), read_bounded(stderr));
            (child.wait().await, words)
        };
        let outcome = timeout(PROBE_DEADLINE, work).await;
        match outcome {
            Ok((Ok(status), words)) if status.success() => self.check_place(&words).map_err(failed),
            Ok((_, words)) => Err(failed(self.explain(reason_in(&words)))),
            Err(_) => {
                // Best effort: dropping the child kills its group in any case.
                let _ = child.terminate(TERMINATE_GRACE).await;
                Err(failed(format!("Nix built nothing within {} s", PROBE_DEADLINE.as_secs())))
            }
        }
    }

    fn command(&self) -> ChildSpec {
        let mut arguments = vec!["--no-out-link"];
        match &self.way {
            Way::OwnNix { eval_store, store_uri, .. } => {
                arguments.extend(["--eval-store", eval_store, "--store", store_uri]);
            }
            Way::Daemon { machine_line, system, .. } => {
                arguments.extend(["--max-jobs", "0", "--option", "builders", machine_line]);
                // Nobody has it, and asking may take long.
                arguments.extend(["--option", "substitute", "false"]);
                // What a builder says of itself is no part of an expression.
                arguments.extend(["--argstr", "system", system]);
            }
        }
        arguments.extend(["--argstr", "salt", &self.salt, "-E", EXPRESSION]);
        let mut spec = ChildSpec::new(&self.program, arguments);
        let kept = KEPT_VARIABLES.into_iter().filter_map(|name| Some((OsString::from(name), std::env::var_os(name)?)));
        spec.environment = kept.collect();
        match &self.way {
            Way::OwnNix { ssh_options, .. } => spec.with_variable("NIX_SSHOPTS", ssh_options),
            Way::Daemon { .. } => spec,
        }
    }

    /// What a hook's child writes before it is accepted goes to the daemon's log; we only hear that it failed.
    fn explain(&self, reason: String) -> String {
        match &self.way {
            Way::Daemon { link, .. } if reason.starts_with(HOOKS_WORDS) => {
                format!("{reason}; root's nix-daemon must be able to start {link}, and its log says what kept it")
            }
            _ => reason,
        }
    }

    /// A daemon that doesn't care for our words may have sent it to a builder that root knows.
    fn check_place(&self, words: &str) -> Result<(), String> {
        match &self.way {
            Way::Daemon { link, .. } if !is_sent_to(words, link) => Err(
                "the daemon didn't send its probe build there: it takes no builders from this user (`trusted-users` in /etc/nix/nix.conf)"
                    .to_owned(),
            ),
            _ => Ok(()),
        }
    }
}

fn salt(builder: &str) -> String {
    format!("{builder}-{}", rand::random::<u64>())
}

/// Whether Nix says that it sent a build to the builder behind `link`: `building '….drv' on 'URI'`.
fn is_sent_to(words: &str, link: &str) -> bool {
    let uris = words.lines().filter_map(|line| line.split_once(".drv' on '")?.1.split('\'').next());
    uris.map(|uri| uri.split('&').next().unwrap_or(uri)).any(|uri| uri.ends_with(link))
}

async fn read_bounded(source: impl AsyncRead + Unpin) -> String {
    let mut bytes = Vec::new();
    let mut bounded = source.take(MAX_WORDS);
    // What was read before an error is all there is to show.
    let _ = bounded.read_to_end(&mut bytes).await;
    let mut rest = bounded.into_inner();
    let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The line that says why: the first of what we started ourselves, else the build hook's on its builder, else Nix's first error
/// that has words beside it, else its last words.
fn reason_in(words: &str) -> String {
    let lines = || words.lines().map(str::trim).filter(|line| !line.is_empty());
    let beginning = |start: &'static str| lines().find(move |line| line.starts_with(start) && line.len() > start.len());
    let own = beginning("nixtail: ").or_else(|| beginning(HOOKS_WORDS));
    let line = own.or_else(|| beginning("error:")).or_else(|| lines().next_back());
    plain(line.unwrap_or("nix-build failed without a word")).chars().take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            store_uri: "ssh-ng://localhost?remote-program=/run/u/nixtail.run/builders/b1".into(),
            systems: vec!["aarch64-linux".into(), "armv7l-linux".into()],
            max_jobs: 2,
            speed_factor: 1,
            supported_features: vec!["kvm".into()],
            mandatory_features: vec!["kvm".into()],
            host_key: None,
        }
    }

    fn words(spec: &ChildSpec) -> Vec<String> {
        spec.arguments.iter().map(|word| word.display().to_string()).collect()
    }

    #[test]
    fn own_nix_opens_the_builders_store_by_ssh_configuration_of_ours() {
        let probe = ProbeBuild::of_own_nix("/bin/nix-build".into(), "b1", "auto", "ssh-ng://u@b1", "-F /r/c".into());
        let spec = probe.command();
        assert_eq!(words(&spec)[..5], ["--no-out-link", "--eval-store", "auto", "--store", "ssh-ng://u@b1"]);
        assert!(spec.environment.iter().any(|(name, value)| name == "NIX_SSHOPTS" && value == "-F /r/c"));
        assert_eq!(probe.check_place(""), Ok(()));
    }

    #[test]
    fn a_daemon_is_told_of_one_machine_and_builds_nothing_itself() {
        let spec = ProbeBuild::of_daemon("/bin/nix-build".into(), "b1", &machine()).unwrap().command();
        let words = words(&spec);
        assert_eq!(words[1..5], ["--max-jobs", "0", "--option", "builders"]);
        // A feature that builds must ask for would keep this one away.
        let uri = machine().store_uri;
        assert_eq!(words[5], format!("{uri} aarch64-linux,armv7l-linux - 2 1 kvm - -"));
        assert!(words.windows(3).any(|words| words == ["--argstr", "system", "aarch64-linux"]), "{words:?}");
        assert!(!spec.environment.iter().any(|(name, _)| name == "NIX_SSHOPTS" || name == "NIX_CONFIG"));
    }

    #[test]
    fn a_build_elsewhere_proves_nothing() {
        let probe = ProbeBuild::of_daemon("/bin/nix-build".into(), "b1", &machine()).unwrap();
        let said =
            |uri: &str| format!("these 1 derivations will be built:\nbuilding '/nix/store/x.drv' on '{uri}'...\n");
        assert_eq!(probe.check_place(&said(&machine().store_uri)), Ok(()));
        assert_eq!(probe.check_place(&said(&format!("{}&x=y", machine().store_uri))), Ok(()));
        for elsewhere in ["ssh-ng://root@mine", "ssh-ng://localhost?remote-program=/r/builders/bb1"] {
            assert!(probe.check_place(&said(elsewhere)).unwrap_err().contains("trusted-users"), "{elsewhere}");
        }
        assert!(probe.check_place("building '/nix/store/x.drv'...\n").is_err());
        let explained = probe.explain("cannot build on 'ssh-ng://localhost': error: x".to_owned());
        assert!(explained.contains("start /run/u/nixtail.run/builders/b1,"), "{explained}");
        assert_eq!(probe.explain("error: x".to_owned()), "error: x");
    }

    #[test]
    fn the_reason_is_ours_or_nixs_first_error() {
        assert_eq!(reason_in("copying\nerror: a\nerror: b\n"), "error: a");
        assert_eq!(reason_in("error:\n  … while\n  error: a\n"), "error: a");
        assert_eq!(reason_in("one\ntwo\n\n"), "two");
        assert_eq!(reason_in(""), "nix-build failed without a word");
        let hook = "cannot build on 'ssh-ng://localhost': error: x\nerror: unable to start any build\n";
        assert_eq!(reason_in(hook), "cannot build on 'ssh-ng://localhost': error: x");
        assert_eq!(reason_in(&format!("{hook}nixtail: builder b1: gone\n")), "nixtail: builder b1: gone");
    }
}
