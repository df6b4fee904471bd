//! What an agent joins with.

use std::time::Duration;

use nixtail_proto::proxy::Proxies;

use crate::auth::Credential;
use crate::control::Person;
use crate::state::KeptIdentity;

/// How long joining may take: a slow control plane and a slow relay together.
pub const JOIN_DEADLINE: Duration = Duration::from_secs(60);
/// How long a dial waits for the peer.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(30);
/// How long leaving may take: log out, close the streams, end the threads.
pub const LEAVE_DEADLINE: Duration = Duration::from_secs(10);

/// What an agent joins a tailnet with.
#[derive(Debug)]
pub struct Config {
    /// The control server's URL.
    pub login_server: String,
    /// What it logs in with. `None`: with its kept identity, or by a person.
    pub credential: Option<Credential>,
    /// The identity that it comes back with, if it is kept; its folder is for this control server. A node without one is
    /// new each time.
    pub identity: Option<KeptIdentity>,
    /// Who is told of a login page, where there is no credential.
    pub person: Option<Person>,
    /// The name that it asks for; control may add a number to it.
    pub hostname: String,
    /// The tags that it asks for, `tag:name`.
    pub tags: Vec<String>,
    /// Whether control should forget it once it is gone.
    pub ephemeral: bool,
    /// The SSH host keys that peers are told of, in OpenSSH's one-line form.
    pub ssh_host_keys: Vec<String>,
    /// The UDP port; 0 lets the kernel choose.
    pub port: u16,
    /// Whether peers may be reached directly. Off only in tests of the relayed path.
    pub direct: bool,
    /// Whether peers may be reached through relays. Off only in tests of the direct path.
    pub derp: bool,
    /// The HTTP proxies that lead to control and to relays. [`Proxies::read`] takes them from the environment, where a
    /// program has them from.
    pub proxies: Proxies,
    /// How long joining may take.
    pub join_deadline: Duration,
}

impl Config {
    /// A new node that control forgets once it is gone: without tags, on any port, over direct paths and relays, with no proxy.
    /// What is to be otherwise is set by name: `Config { port: 41641, ..Config::new(…) }`.
    #[must_use]
    pub fn new(login_server: String, credential: Option<Credential>, hostname: String) -> Self {
        Self {
            login_server,
            credential,
            identity: None,
            person: None,
            hostname,
            tags: Vec::new(),
            ephemeral: true,
            ssh_host_keys: Vec::new(),
            port: 0,
            direct: true,
            derp: true,
            proxies: Proxies::default(),
            join_deadline: JOIN_DEADLINE,
        }
    }
}
