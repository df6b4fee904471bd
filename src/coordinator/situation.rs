//! Which way of telling Nix fits this machine and this user.

use super::mode::Mode;

/// What decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Situation {
    /// Whether this process is root's.
    pub is_root: bool,
    /// Whether Nix is used with a store that was named.
    pub names_store: bool,
    /// Whether there is a daemon of the system's.
    pub has_daemon: bool,
    /// Whether this user's Nix hands everything to that daemon, instead of opening the store itself.
    pub uses_daemon: bool,
    /// Whether the daemon trusts this user, or why that isn't known. `None` where nobody asked.
    pub trusted: Option<Result<bool, String>>,
}

/// Why Nix can't be told in the way that was asked for, or in any.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// System mode is root's.
    #[error("only root can tell the system's Nix of builders")]
    NotRoot,
    /// The daemon ignores what this user says of builders.
    #[error("this machine's Nix builds in a daemon of root's, which doesn't trust this user and ignores your builders")]
    NotTrusted,
    /// The daemon doesn't say whether it would.
    #[error("this machine's Nix builds in a daemon of root's, which doesn't say whether it trusts this user: {0}")]
    Unknown(String),
    /// Own-store mode reaches builders as this user, and the daemon is root's.
    #[error("this machine's Nix builds in a daemon of root's, and no store of your own is named")]
    NoOwnStore,
    /// There is no daemon that could trust anybody.
    #[error("there is no daemon here that your Nix builds in")]
    NoDaemon,
    /// A store that is named is opened by the user's own Nix.
    #[error("a store of your own (--store) isn't the daemon's")]
    NotTheDaemonsStore,
}

impl Situation {
    /// Whether the daemon's word on trust decides anything, given which mode was `asked` for (`None`: whichever fits).
    #[must_use]
    pub fn depends_on_trust(&self, asked: Option<Mode>) -> bool {
        matches!(asked, None | Some(Mode::TrustedUser)) && !self.is_root && !self.names_store && self.uses_daemon
    }

    /// The mode that is `asked` for, or the one that fits.
    ///
    /// # Errors
    /// When it can't be.
    pub fn mode(&self, asked: Option<Mode>) -> Result<Mode, Unfit> {
        match asked {
            Some(Mode::System) if !self.is_root => Err(Unfit::NotRoot),
            Some(Mode::System) => Ok(Mode::System),
            Some(Mode::OwnStore) if !self.is_root && !self.names_store && self.uses_daemon => Err(Unfit::NoOwnStore),
            Some(Mode::OwnStore) => Ok(Mode::OwnStore),
            Some(Mode::TrustedUser) if self.names_store => Err(Unfit::NotTheDaemonsStore),
            // What opens the store itself, as root does, honours builders anyway; the hook runs as root in either case.
            Some(Mode::TrustedUser) if self.is_root && self.has_daemon => Ok(Mode::TrustedUser),
            Some(Mode::TrustedUser) if !self.uses_daemon => Err(Unfit::NoDaemon),
            Some(Mode::TrustedUser) => self.as_trusted_user(),
            None if self.names_store => Ok(Mode::OwnStore),
            None if self.is_root && self.has_daemon => Ok(Mode::System),
            None if self.is_root || !self.uses_daemon => Ok(Mode::OwnStore),
            None => self.as_trusted_user(),
        }
    }

    fn as_trusted_user(&self) -> Result<Mode, Unfit> {
        match &self.trusted {
            Some(Ok(true)) => Ok(Mode::TrustedUser),
            Some(Ok(false)) => Err(Unfit::NotTrusted),
            Some(Err(why)) => Err(Unfit::Unknown(why.clone())),
            None => Err(Unfit::Unknown("it wasn't asked".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Situation {
        Situation { is_root: false, names_store: false, has_daemon: false, uses_daemon: false, trusted: None }
    }

    fn of_daemon(trusted: Option<Result<bool, String>>) -> Situation {
        Situation { has_daemon: true, uses_daemon: true, trusted, ..user() }
    }

    #[test]
    fn the_mode_that_fits_is_found() {
        let root = Situation { is_root: true, ..user() };
        assert_eq!(root.mode(None), Ok(Mode::OwnStore));
        assert_eq!(Situation { has_daemon: true, ..root }.mode(None), Ok(Mode::System));
        assert_eq!(user().mode(None), Ok(Mode::OwnStore));
        // A daemon beside a store that this user may write: Nix opens it itself.
        assert_eq!(Situation { has_daemon: true, ..user() }.mode(None), Ok(Mode::OwnStore));
        assert_eq!(of_daemon(Some(Ok(true))).mode(None), Ok(Mode::TrustedUser));
        assert_eq!(of_daemon(Some(Ok(false))).mode(None), Err(Unfit::NotTrusted));
        assert_eq!(of_daemon(Some(Err("no".into()))).mode(None), Err(Unfit::Unknown("no".into())));
        assert_eq!(Situation { names_store: true, ..of_daemon(None) }.mode(None), Ok(Mode::OwnStore));
    }

    #[test]
    fn what_is_asked_for_is_refused_where_it_cannot_be() {
        assert_eq!(user().mode(Some(Mode::System)), Err(Unfit::NotRoot));
        assert_eq!(user().mode(Some(Mode::TrustedUser)), Err(Unfit::NoDaemon));
        assert_eq!(of_daemon(Some(Ok(true))).mode(Some(Mode::OwnStore)), Err(Unfit::NoOwnStore));
        assert_eq!(of_daemon(Some(Ok(false))).mode(Some(Mode::TrustedUser)), Err(Unfit::NotTrusted));
        let named = Situation { names_store: true, ..of_daemon(None) };
        assert_eq!(named.mode(Some(Mode::TrustedUser)), Err(Unfit::NotTheDaemonsStore));
        assert_eq!(named.mode(Some(Mode::OwnStore)), Ok(Mode::OwnStore));
        let root = Situation { is_root: true, has_daemon: true, ..user() };
        for mode in [Mode::System, Mode::OwnStore, Mode::TrustedUser] {
            assert_eq!(root.mode(Some(mode)), Ok(mode));
        }
    }

    #[test]
    fn the_daemon_is_asked_only_where_its_answer_counts() {
        assert!(of_daemon(None).depends_on_trust(None));
        assert!(of_daemon(None).depends_on_trust(Some(Mode::TrustedUser)));
        assert!(!of_daemon(None).depends_on_trust(Some(Mode::OwnStore)));
        assert!(!user().depends_on_trust(None) && !user().depends_on_trust(Some(Mode::TrustedUser)));
        assert!(!Situation { is_root: true, has_daemon: true, ..user() }.depends_on_trust(None));
        assert!(!Situation { names_store: true, ..of_daemon(None) }.depends_on_trust(None));
    }
}
