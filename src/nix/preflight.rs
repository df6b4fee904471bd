//! What would fail later on this machine, said before it joins, each with its mend.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::configuration::Wishes;
use super::probe::{Findings, Obstacle, PROBE_DEADLINE};
use super::settings::Settings;
use super::store::{Opened, StoreAccess, StoreConfig};

/// The least free disk where the store is, unless `--min-free-disk` says otherwise: enough for the inputs of one ordinary build
/// and its output; below it, Nix fails in the middle of a copy and calls it a lost connection.
pub const MIN_FREE_DISK: u64 = 1 << 30;
/// The name that logins have where none of this machine's users is meant; the Action's have it.
const LOGIN_OF_NOBODY: &str = "nix";

/// So many times the least free disk is little.
const LITTLE: u64 = 4;

/// What is known of a machine that is to be a builder.
#[derive(Debug)]
pub(super) struct Evidence<'a> {
    /// Whom the daemon sees.
    pub(super) user: &'a str,
    pub(super) login: &'a str,
    /// Whether there is a user of that name here.
    pub(super) login_exists: bool,
    pub(super) store: &'a StoreConfig,
    pub(super) opened: &'a Opened,
    pub(super) settings: &'a Settings,
    pub(super) wishes: &'a Wishes,
    pub(super) findings: &'a Findings,
    /// Whether there is a socket of a daemon, and nobody behind it.
    pub(super) nobody_listens: bool,
    pub(super) free_disk: u64,
    pub(super) min_free_disk: u64,
}

/// Something that would fail, or hurt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Which.
    pub kind: ProblemKind,
    /// What is wrong, without a full stop.
    pub what: String,
    /// What to do about it, without a full stop.
    pub mend: String,
}

/// The kinds of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ProblemKind {
    /// The daemon lets this user in, but doesn't trust it.
    NotTrusted,
    /// The daemon doesn't let this user in.
    NotAllowed,
    /// There is a socket, and nobody behind it.
    NoDaemon,
    /// The store or its database can't be written.
    StoreNotWritable,
    /// Too little disk, or none left.
    DiskFull,
    /// User namespaces are refused, and the store needs them.
    NamespacesRefused,
    /// `max-jobs = 0` where it can't be overridden.
    NoJobs,
    /// The group of the build users isn't there.
    NoBuildUsers,
    /// No build ran, for another reason.
    NoBuild,
    /// Builds aren't kept apart although they should be.
    NoSandbox,
    /// Limits that were asked for don't reach builds.
    LimitsIgnored,
    /// The system's daemon would send builds on.
    Forwards,
    /// There is no user of the login's name.
    NoSuchLogin,
    /// The disk is nearly full.
    DiskLow,
    /// It couldn't be tried whether builds run.
    NotTried,
}

impl ProblemKind {
    /// Whether a builder with it can't work, or only works less well.
    pub fn is_fatal(self) -> bool {
        !matches!(
            self,
            Self::NoSandbox | Self::LimitsIgnored | Self::Forwards | Self::NoSuchLogin | Self::DiskLow | Self::NotTried
        )
    }
}

impl Problem {
    fn new(kind: ProblemKind, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { kind, what: what.into(), mend: mend.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.mend)
    }
}

/// All problems, those that make a builder impossible first.
pub(super) fn problems(evidence: &Evidence<'_>) -> Vec<Problem> {
    let mut found: Vec<Problem> =
        [disk(evidence), build(evidence)].into_iter().flatten().chain(warnings(evidence)).collect();
    found.sort_by_key(|problem| !problem.kind.is_fatal());
    found.dedup_by_key(|problem| problem.kind);
    found
}

fn disk(evidence: &Evidence<'_>) -> Option<Problem> {
    let (free, least) = (evidence.free_disk, evidence.min_free_disk);
    let place = evidence.opened.on_disk.display();
    let room = format!(
        "free some (nix-collect-garbage), serve another store with --store FOLDER, or set --min-free-disk below {}",
        mebibytes(free)
    );
    if free < least {
        let what = format!(
            "only {} are free at {place}, less than the {} of --min-free-disk",
            mebibytes(free),
            mebibytes(least)
        );
        return Some(Problem::new(ProblemKind::DiskFull, what, room));
    }
    (free < least.saturating_mul(LITTLE)).then(|| {
        let what = format!("only {} are free at {place}, and builds fail when it is full", mebibytes(free));
        Problem::new(
            ProblemKind::DiskLow,
            what,
            "free some (nix-collect-garbage), or serve another store with --store FOLDER",
        )
    })
}

/// Why nothing was built.
fn build(evidence: &Evidence<'_>) -> Option<Problem> {
    let obstacle = match &evidence.findings.build {
        // Nix falls back to building without a sandbox, where store paths are those of the machine, not of this store.
        Ok(inside) if !inside.sandboxed && is_chroot(evidence) => {
            return Some(namespaces_refused("builds would run outside of it"));
        }
        build => build.as_ref().err(),
    };
    if evidence.findings.trusted == Some(false) {
        let user = evidence.user;
        return Some(Problem::new(
            ProblemKind::NotTrusted,
            format!("Nix' daemon doesn't trust {user}, and refuses what coordinators send"),
            format!(
                "add `trusted-users = root {user}` to /etc/nix/nix.conf and restart nix-daemon, or serve a store of your own with --store FOLDER"
            ),
        ));
    }
    Some(match obstacle? {
        Obstacle::Deadline => Problem::new(
            ProblemKind::NoBuild,
            format!("a trial build didn't end within {} s", PROBE_DEADLINE.as_secs()),
            "look whether Nix builds anything here by hand, and whether another process holds its locks",
        ),
        Obstacle::Shell(reason) => Problem::new(
            ProblemKind::NotTried,
            format!("no trial build was possible, since /bin/sh can't be copied ({reason})"),
            "look by hand whether Nix builds here",
        ),
        Obstacle::Connection(words) => connection(evidence, words),
        Obstacle::Add(words) | Obstacle::Build(words) => known_words(evidence, words).unwrap_or_else(|| {
            Problem::new(
                ProblemKind::NoBuild,
                format!("a trial build failed: {words}"),
                "run `nix-build` here by hand as this user; --nix-daemon and --store name another Nix or store",
            )
        }),
    })
}

/// What it means that the daemon couldn't be talked to.
fn connection(evidence: &Evidence<'_>, words: &str) -> Problem {
    let relays = evidence.opened.access == StoreAccess::Daemon;
    let socket = evidence.store.daemon_socket().unwrap_or_default();
    if relays && evidence.nobody_listens {
        return no_daemon(&socket);
    }
    if let Some(problem) = known_words(evidence, words) {
        return problem;
    }
    if relays {
        let user = evidence.user;
        return Problem::new(
            ProblemKind::NotAllowed,
            format!("Nix' daemon at {} closed the connection without a word", socket.display()),
            format!(
                "it may not let {user} in: add `allowed-users` and `trusted-users` with {user} to /etc/nix/nix.conf and restart nix-daemon; its log says more"
            ),
        );
    }
    Problem::new(
        ProblemKind::NoBuild,
        format!("`nix-daemon --stdio` failed: {words}"),
        "run it here by hand as this user; --nix-daemon and --store name another Nix or store",
    )
}

fn no_daemon(socket: &Path) -> Problem {
    Problem::new(
        ProblemKind::NoDaemon,
        format!("nobody answers at {}", socket.display()),
        "start Nix' daemon (systemctl start nix-daemon), or serve a store of your own with --store FOLDER",
    )
}

/// What Nix' words mean, where they are known. They are those of 2.8 to 2.34, told apart by what the system says.
fn known_words(evidence: &Evidence<'_>, words: &str) -> Option<Problem> {
    let place = evidence.opened.on_disk.display();
    if has_one(words, &["No space left", "disk is full", "disk full", "Disk quota exceeded"]) {
        let mend = "free some (nix-collect-garbage), or serve another store with --store FOLDER";
        return Some(Problem::new(ProblemKind::DiskFull, format!("the disk of {place} is full: {words}"), mend));
    }
    if has_one(words, &["to start any build"]) {
        return Some(Problem::new(
            ProblemKind::NoJobs,
            "Nix' daemon builds nothing, since its nix.conf has `max-jobs = 0`",
            "set max-jobs above 0 in /etc/nix/nix.conf and restart nix-daemon, or serve a store of your own with --store FOLDER",
        ));
    }
    if has_one(words, &["build-users-group"]) {
        return Some(Problem::new(
            ProblemKind::NoBuildUsers,
            format!("Nix has nobody to build as: {words}"),
            "make the group with its users, as Nix' installer does, or set `build-users-group =` (empty) in nix.conf on a machine that is thrown away",
        ));
    }
    let refuses_namespaces = has_one(
        words,
        &[
            "kernel namespaces",
            "unshare",
            "cloning builder process",
            "setting up a private mount namespace",
            "user namespace",
        ],
    );
    // Without them Nix builds outside of the store, where its programs aren't.
    if refuses_namespaces || (is_chroot(evidence) && has_one(words, &["executing '/nix/store"])) {
        return Some(namespaces_refused(words));
    }
    if has_one(words, &["Read-only file system", "Permission denied", "Operation not permitted", "remounting "]) {
        return Some(Problem::new(
            ProblemKind::StoreNotWritable,
            format!("the store at {place} can't be written: {words}"),
            "run Nix' daemon and let it trust this user, give this user the store, or serve one of your own with --store FOLDER",
        ));
    }
    None
}

/// Whether the store isn't where its paths say, so that builds must be shown it there.
fn is_chroot(evidence: &Evidence<'_>) -> bool {
    evidence.opened.access == StoreAccess::Direct && evidence.opened.on_disk != evidence.store.store_folder()
}

fn namespaces_refused(words: &str) -> Problem {
    Problem::new(
        ProblemKind::NamespacesRefused,
        format!("user namespaces are refused here, and a chroot store can't do without: {words}"),
        "on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0; in a container: allow them; or use --private-store FOLDER, the same folder at both ends",
    )
}

fn warnings(evidence: &Evidence<'_>) -> Vec<Problem> {
    let mut found = Vec::new();
    let login = evidence.login;
    if !evidence.login_exists && login != LOGIN_OF_NOBODY {
        found.push(Problem::new(
            ProblemKind::NoSuchLogin,
            format!("there is no user {login} on this machine"),
            "coordinators get in under that name all the same, if the policy lets them; check --login for a slip",
        ));
    }
    let Ok(inside) = &evidence.findings.build else { return found };
    if evidence.settings.sandbox && !inside.sandboxed {
        found.push(Problem::new(
            ProblemKind::NoSandbox,
            "builds aren't kept apart from this machine, although nix.conf says `sandbox`: the kernel refuses namespaces",
            "allow them, or set `sandbox = false` if that is meant",
        ));
    }
    if inside.settings_reach {
        return found;
    }
    let asked = asked_for(evidence.wishes);
    if !asked.is_empty() {
        found.push(Problem::new(
            ProblemKind::LimitsIgnored,
            format!(
                "{} can't take effect: builds run in the system's daemon, to which this Nix passes no settings on",
                asked.join(", ")
            ),
            "set them in /etc/nix/nix.conf and restart nix-daemon, or run the builder as root",
        ));
    }
    if evidence.settings.forwards() {
        found.push(Problem::new(
            ProblemKind::Forwards,
            "nix.conf has `builders`, so that the system's daemon may send builds on, even back to their coordinator",
            "set `builders =` (empty) in /etc/nix/nix.conf and restart nix-daemon",
        ));
    }
    found
}

fn asked_for(wishes: &Wishes) -> Vec<&'static str> {
    let asked = [
        ("--cores", wishes.cores.is_some()),
        ("--build-timeout", wishes.timeout.is_some()),
        ("--max-silent-time", wishes.max_silent_time.is_some()),
        ("--extra-nix-config", !wishes.lines.is_empty()),
    ];
    asked.into_iter().filter_map(|(flag, is_given)| is_given.then_some(flag)).collect()
}

fn has_one(words: &str, parts: &[&str]) -> bool {
    parts.iter().any(|part| words.contains(part))
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nix::probe::Inside;
    use crate::nix::settings::tests::defaults;

    struct Case {
        store: StoreConfig,
        access: StoreAccess,
        settings: Settings,
        wishes: Wishes,
        findings: Findings,
        free_disk: u64,
        login: &'static str,
        login_exists: bool,
        nobody_listens: bool,
    }

    fn works() -> Case {
        let inside = Inside { sandboxed: true, settings_reach: true, ..Inside::default() };
        Case {
            store: StoreConfig::System,
            access: StoreAccess::Daemon,
            settings: defaults(),
            wishes: Wishes::default(),
            findings: Findings { trusted: Some(true), build: Ok(inside) },
            free_disk: 100 << 30,
            login: "carol",
            login_exists: true,
            nobody_listens: false,
        }
    }

    fn fails(obstacle: Obstacle) -> Case {
        Case { findings: Findings { trusted: None, build: Err(obstacle) }, ..works() }
    }

    impl Case {
        fn problems(&self) -> Vec<Problem> {
            let on_disk = self.store.published().map_or_else(|| self.store.store_folder(), Into::into);
            let opened = Opened { on_disk, access: self.access };
            problems(&Evidence {
                user: "bob",
                login: self.login,
                login_exists: self.login_exists,
                store: &self.store,
                opened: &opened,
                settings: &self.settings,
                wishes: &self.wishes,
                findings: &self.findings,
                nobody_listens: self.nobody_listens,
                free_disk: self.free_disk,
                min_free_disk: MIN_FREE_DISK,
            })
        }

        fn kinds(&self) -> Vec<ProblemKind> {
            self.problems().into_iter().map(|problem| problem.kind).collect()
        }
    }

    #[test]
    fn a_machine_that_works_has_no_problems() {
        assert_eq!(works().problems(), []);
    }

    #[test]
    fn what_nix_says_is_understood() {
        let build = |words: &str| fails(Obstacle::Build(words.to_owned()));
        let connection = |words: &str| fails(Obstacle::Connection(words.to_owned()));
        let cases = [
            (Case { nobody_listens: true, ..connection("error: early eof") }, ProblemKind::NoDaemon),
            (connection("error: unexpected EOF from daemon socket"), ProblemKind::NotAllowed),
            (build("opening lock file '/nix/var/nix/db/big-lock': Permission denied"), ProblemKind::StoreNotWritable),
            (fails(Obstacle::Add("creating file: No space left on device".into())), ProblemKind::DiskFull),
            (
                build("unable to start any build; either increase '--max-jobs' or enable remote builds."),
                ProblemKind::NoJobs,
            ),
            (build("the group 'nixbld' specified in 'build-users-group' does not exist"), ProblemKind::NoBuildUsers),
            (
                build("this system does not support the kernel namespaces that are required"),
                ProblemKind::NamespacesRefused,
            ),
            (build("something new"), ProblemKind::NoBuild),
            (fails(Obstacle::Deadline), ProblemKind::NoBuild),
        ];
        for (case, wanted) in cases {
            assert_eq!(case.kinds(), [wanted]);
            assert!(wanted.is_fatal());
        }
        let direct = Case { access: StoreAccess::Direct, ..connection("error: what") };
        assert_eq!(direct.kinds(), [ProblemKind::NoBuild]);
        let shell = fails(Obstacle::Shell("no such file".into()));
        assert_eq!(shell.kinds(), [ProblemKind::NotTried]);
    }

    #[test]
    fn an_untrusted_user_is_named_with_its_mend() {
        let findings = Findings { trusted: Some(false), build: Err(Obstacle::Build("not privileged".into())) };
        let problems = Case { findings, ..works() }.problems();
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].what.contains("bob") && problems[0].mend.contains("trusted-users = root bob"),
            "{problems:?}"
        );
    }

    #[test]
    fn a_full_disk_is_refused_and_a_nearly_full_one_is_told() {
        assert_eq!(Case { free_disk: MIN_FREE_DISK - 1, ..works() }.kinds(), [ProblemKind::DiskFull]);
        assert_eq!(Case { free_disk: 2 * MIN_FREE_DISK, ..works() }.kinds(), [ProblemKind::DiskLow]);
        assert!(!ProblemKind::DiskLow.is_fatal());
    }

    #[test]
    fn what_merely_hurts_is_a_warning() {
        let inside = Inside::default();
        let findings = Findings { trusted: Some(true), build: Ok(inside) };
        let wishes = Wishes { timeout: Some(std::time::Duration::from_secs(1)), ..Wishes::default() };
        let settings = Settings { builders: "ssh://other".into(), ..defaults() };
        let case = Case { findings, wishes, settings, login_exists: false, ..works() };
        use ProblemKind::{Forwards, LimitsIgnored, NoSandbox, NoSuchLogin};
        assert_eq!(case.kinds(), [NoSuchLogin, NoSandbox, LimitsIgnored, Forwards]);
        assert!(case.problems()[2].what.contains("--build-timeout"));
        // Where our settings reach builds, nothing is sent on.
        let reached = Case { findings: works().findings, ..case };
        assert_eq!(reached.kinds(), [NoSuchLogin]);
        // The name that stands for nobody needs nobody.
        assert_eq!(Case { login: LOGIN_OF_NOBODY, ..reached }.kinds(), []);
    }

    #[test]
    fn a_chroot_store_without_namespaces_has_a_way_out() {
        let store = StoreConfig::Chroot { root: Path::new("/home/bob/s").into() };
        let case = Case {
            store,
            access: StoreAccess::Direct,
            ..fails(Obstacle::Build("cloning builder process: EPERM".into()))
        };
        let problems = case.problems();
        assert_eq!(problems[0].kind, ProblemKind::NamespacesRefused);
        assert!(problems[0].mend.contains("--private-store"));
    }
}
