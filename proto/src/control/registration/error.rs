//! Why a registration came to nothing.

use crate::credential::{advice, is_used_up};

/// Why control doesn't let a node in. Trying again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// Control said no: a bad, used or ended auth key, or a tag that it may not give.
    #[error(
        "control refused this node: {reason}; {}",
        if *.was_known && is_used_up(.reason) {
            "control has forgotten this node, and an auth key that is good for one use can't bring it back: use a reusable key or an OAuth client's secret"
        } else {
            advice(.reason)
        }
    )]
    Refused {
        /// In control's words, without our key, fit to be shown.
        reason: String,
        /// Control had let this node in before.
        was_known: bool,
    },
    /// There is nothing to log in with but a person, and none is there.
    #[error(
        "control wants a person to log in at {url}{}",
        if *.had_key {
            ", although it got an auth key; see that the key is one of this control server"
        } else {
            "; pass an auth key (--auth-key file:PATH or TS_AUTHKEY) to join without one, or run `nixtail up` at a terminal"
        }
    )]
    NeedsLogin {
        /// Control's login page.
        url: String,
        /// An auth key was sent, and control asks for a person all the same.
        had_key: bool,
    },
    /// Control wants a person to log in, at a place that is no web page.
    #[error("control wants a person to log in and names no web page for it; pass an auth key to join without one")]
    BadLoginUrl,
    /// Control says that our node key has ended, and says so of the new one, too.
    #[error(
        "control says that this node's key has ended, also of the new one that was made; start again as a new node \
         (another --state-dir), and check the clock of the control server"
    )]
    Expired,
    /// Tailnet lock is on, and the new key would have to be signed.
    #[error(
        "this tailnet has tailnet lock on, and a new key of this node would have to be signed, which nixtail can't do; \
         switch tailnet lock off for this tailnet, or use tailscaled here"
    )]
    TailnetLock,
}
