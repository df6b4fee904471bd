//! `nixtail coordinator --mode`: which way of telling Nix fits, and the way out where none does.

use std::path::Path;

use crate::coordinator::mode::Mode;
use crate::coordinator::situation::{Situation, Unfit};
use crate::nix::daemon::DAEMON_SOCKET;
use crate::nix::probe::is_trusted;
use crate::nix::store::{StoreAccess, StoreConfig};
use crate::report::{Exit, Failure};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ModeArg {
    Auto,
    OwnStore,
    TrustedUser,
    System,
}

impl ModeArg {
    /// The mode that is meant. `names_store` says whether `--store` is given.
    ///
    /// # Errors
    /// When it can't be here, or none can.
    pub(super) async fn resolve(self, names_store: bool) -> Result<Mode, Failure> {
        let asked = match self {
            Self::Auto => None,
            Self::OwnStore => Some(Mode::OwnStore),
            Self::TrustedUser => Some(Mode::TrustedUser),
            Self::System => Some(Mode::System),
        };
        let store = StoreConfig::from_environment(|name| std::env::var_os(name));
        // Neither the home folder nor the version matters to who opens a store.
        let access = store.opened(Path::new("/"), "").access;
        let mut situation = Situation {
            is_root: rustix::process::getuid().is_root(),
            names_store,
            has_daemon: Path::new(DAEMON_SOCKET).exists(),
            uses_daemon: access == StoreAccess::Daemon,
            trusted: None,
        };
        if let (true, Some(socket)) = (situation.depends_on_trust(asked), store.daemon_socket()) {
            situation.trusted = Some(is_trusted(&socket).await.map_err(|error| error.to_string()));
        }
        situation.mode(asked).map_err(|unfit| failure(&unfit))
    }
}

fn failure(unfit: &Unfit) -> Failure {
    let user = super::user_name().unwrap_or_else(|_| "YOU".to_owned());
    let next = match unfit {
        Unfit::NotRoot => "run it as root, or leave `--mode` out".to_owned(),
        Unfit::NotTrusted => format!(
            "let root add `trusted-users = root {user}` to /etc/nix/nix.conf and restart nix-daemon, which makes {user} as good as root there; or run the coordinator as root; or use a store of your own: --store FOLDER here and with Nix"
        ),
        Unfit::Unknown(_) => format!(
            "see whether `nix-store --version` and a build work as {user}, and look at nix-daemon's log; or use a store of your own: --store FOLDER here and with Nix"
        ),
        Unfit::NoOwnStore => {
            "leave `--mode` out where the daemon trusts you; or name a store of your own: --store FOLDER here and with Nix"
                .to_owned()
        }
        Unfit::NoDaemon | Unfit::NotTheDaemonsStore => "use `--mode own-store`, or leave `--mode` out".to_owned(),
    };
    Failure::new(Exit::Configuration, unfit).next(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_not_trusted_hears_all_ways_out() {
        let failure = failure(&Unfit::NotTrusted);
        assert_eq!(failure.exit, Exit::Configuration);
        let words = format!("{failure:?}");
        for way in ["trusted-users", "as root", "--store FOLDER"] {
            assert!(words.contains(way), "{way} missing in {words}");
        }
    }
}
