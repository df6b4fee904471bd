//! Logins by a person: the URLs that nodes without an auth key are sent to, and what became of them.

use std::collections::BTreeMap;

use nixtail_proto::key::{MachinePublic, NodePublic};
use nixtail_proto::tailcfg::RegisterRequest;

use super::admission::Refusal;
use crate::auth_key::Entitlement;

/// Most logins that wait at a time.
const MAX_LOGINS: usize = 100;

/// What happens to a node that comes without an auth key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoginPolicy {
    /// It is refused.
    #[default]
    Refused,
    /// A person logs in at a URL. The node's follow-up is answered when that is done, as Tailscale's control does.
    Held,
    /// As [`Self::Held`], but a follow-up that comes too early is answered at once with the same URL.
    Polled,
}

/// All logins that were begun.
#[derive(Debug)]
pub(super) struct Logins {
    pub(super) policy: LoginPolicy,
    /// Where people log in, in front of `/login/…`.
    base: String,
    last: u64,
    /// By URL.
    begun: BTreeMap<String, Login>,
}

#[derive(Debug)]
struct Login {
    machine: MachinePublic,
    node_key: NodePublic,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting,
    Done,
    Refused(String),
}

impl Logins {
    pub(super) fn new(base: String) -> Self {
        Self { policy: LoginPolicy::default(), base, last: 0, begun: BTreeMap::new() }
    }

    /// What a registration without an auth key gets.
    pub(super) fn ask(&mut self, machine: MachinePublic, request: &RegisterRequest) -> Result<Entitlement, Refusal> {
        if self.policy == LoginPolicy::Refused {
            return Err(Refusal::NoAuthKey);
        }
        let own = |login: &Login| login.machine == machine && login.node_key == request.node_key;
        let Some((url, login)) = self.begun.iter().find(|(_, login)| own(login)) else {
            return Err(self.begin(machine, request.node_key));
        };
        let url = url.clone();
        match &login.state {
            State::Waiting if request.followup == url && self.policy == LoginPolicy::Held => Err(Refusal::Waits),
            State::Waiting => Err(Refusal::Login(url)),
            State::Done => {
                self.begun.remove(&url);
                let tags = request.hostinfo.request_tags.clone();
                Ok(Entitlement { ephemeral: request.ephemeral, preauthorized: false, tags })
            }
            State::Refused(words) => {
                let refusal = Refusal::LoginRefused(words.clone());
                self.begun.remove(&url);
                Err(refusal)
            }
        }
    }

    /// The URLs where a person is awaited, oldest first.
    pub(super) fn waiting(&self) -> Vec<String> {
        let waits = |(_, login): &(&String, &Login)| matches!(login.state, State::Waiting);
        self.begun.iter().filter(waits).map(|(url, _)| url.clone()).collect()
    }

    /// A person logged in at `url`, or was refused with these words. Whether that login waited.
    pub(super) fn finish(&mut self, url: &str, refused: Option<&str>) -> bool {
        let Some(login) = self.begun.get_mut(url).filter(|login| matches!(login.state, State::Waiting)) else {
            return false;
        };
        login.state = refused.map_or(State::Done, |words| State::Refused(words.to_owned()));
        true
    }

    /// Puts another URL in the place of one; `None` when that didn't wait.
    pub(super) fn replace(&mut self, url: &str) -> Option<String> {
        let login = self.begun.remove(url)?;
        let url = self.new_url(login.node_key);
        self.begun.insert(url.clone(), login);
        Some(url)
    }

    fn begin(&mut self, machine: MachinePublic, node_key: NodePublic) -> Refusal {
        if self.begun.len() >= MAX_LOGINS {
            return Refusal::TooManyLogins;
        }
        let url = self.new_url(node_key);
        self.begun.insert(url.clone(), Login { machine, node_key, state: State::Waiting });
        Refusal::Login(url)
    }

    /// No secret: whoever reaches a devnet that has logins may finish one of his own.
    fn new_url(&mut self, node_key: NodePublic) -> String {
        self.last += 1;
        let key = node_key.to_string();
        let key = key.strip_prefix("nodekey:").and_then(|hex| hex.get(..12)).unwrap_or_default();
        format!("{}/login/{:04}-{key}", self.base, self.last)
    }
}
