//! The connection to control: joining, the netmap as it changes, telling what changes of us, leaving.
//!
//! [`Control::login`] returns once control has let the node in. From then on one task keeps a map stream, dialled anew
//! with a growing wait whenever it breaks, and brings updates to control. The netmap stays what it was while there is
//! no stream.

mod client;
mod description;
mod dial;
mod error;
#[cfg(feature = "cli")]
mod knock;
mod login;
mod map;
mod person;
mod server;
mod stream;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nixtail_proto::control::{AnswerError, Backoff, Entry, MapSession, Standing, standing, time_left};
use nixtail_proto::key::{DiscoPublic, MachinePrivate, NodePrivate, NodePublic};
use nixtail_proto::netmap::Netmap;
use nixtail_proto::proxy::Proxies;
use nixtail_proto::tailcfg::Timestamp;
use rand::rngs::StdRng;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::agent::Stages;
use crate::auth::Credential;
use crate::clock::unix_now;
pub use crate::net::connect::ProxyFailure;
use crate::state::KeptIdentity;
use client::Client;
use description::Description;
pub use description::Update;
pub use error::ControlError;
#[cfg(feature = "cli")]
pub(crate) use knock::knock;
use login::Login;
pub use person::Person;

/// A map stream that lasted so long was a good one: the next failure is waited for shortly again.
const GOOD_STREAM: Duration = Duration::from_secs(60);
/// How long a node that control has forgotten tries to be let in again before it starts over.
const AGAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// What a node needs to join.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// The login server: `http(s)://HOST[:PORT]`.
    pub url: String,
    /// What entitles us to join. `None` only works for a node that control knows already, or with a person.
    pub auth: Option<Credential>,
    /// The host name to ask for. What control makes of it is in the netmap.
    pub hostname: String,
    /// The tags to ask for, as `tag:NAME`. The key must be entitled to them.
    pub tags: Vec<String>,
    /// Ask to be forgotten when offline, whatever the key says.
    pub ephemeral: bool,
    /// Who this machine is to control.
    pub machine_key: MachinePrivate,
    /// Who this node is to everybody.
    pub node_key: NodePublic,
    /// Who it is to path discovery.
    pub disco_key: DiscoPublic,
    /// SSH host keys, as lines of an authorized_keys file. Not empty means that SSH is served.
    pub ssh_host_keys: Vec<String>,
    /// The proxies that lead out of here.
    pub proxies: Proxies,
    /// Where the machine key and the node key come from, if they are kept; what becomes of them is kept there.
    pub identity: Option<KeptIdentity>,
    /// Who is told of a login page where there is no credential.
    pub person: Option<Person>,
    /// How long [`Control::login`] tries. A person who has to log in gets 15 minutes.
    pub deadline: Duration,
    /// Where the stages of the start are marked.
    pub stages: Stages,
}

/// How things stand with control.
#[derive(Debug, Clone, Default)]
pub struct ControlStatus {
    /// Since when there has been a map stream that brings netmaps. `None`: there is none at the moment.
    pub connected_since: Option<SystemTime>,
    /// What went wrong last. Stays when it is over; fit to be shown.
    pub last_error: Option<String>,
    /// Control has refused this node for good, in these words: nothing is tried any more.
    pub refused: Option<String>,
}

/// A node's connection to control. Dropping it ends it without a logout.
pub struct Control {
    description: watch::Sender<Description>,
    netmap: watch::Receiver<Option<Arc<Netmap>>>,
    status: watch::Receiver<ControlStatus>,
    acknowledged: watch::Receiver<Option<Description>>,
    cancel: CancellationToken,
    new_node_key: Option<NodePrivate>,
    task: Option<JoinHandle<(Login, Option<Client>)>>,
}

impl Control {
    /// Registers with control, trying again until the configured deadline as long as the network or control's state
    /// are at fault.
    ///
    /// # Errors
    /// A refusal at once; anything else at the deadline.
    pub async fn login(config: ControlConfig) -> Result<Self, ControlError> {
        let deadline = Instant::now() + config.deadline;
        let description = Description::new(&config);
        let mut login = Login::new(config)?;
        let entry = login.entry();
        let client = match login.register(None, &description, entry, deadline).await {
            Ok(client) => client,
            Err(error) => {
                login.take_back().await;
                return Err(error);
            }
        };
        let new_node_key = login.new_node_key().cloned();
        login.handle_running();

        let (description, description_receiver) = watch::channel(description);
        let (netmap_sender, netmap) = watch::channel(None);
        let (status_sender, status) = watch::channel(ControlStatus::default());
        let (acknowledged_sender, acknowledged) = watch::channel(None);
        let cancel = CancellationToken::new();
        let keeper = Keeper {
            login,
            client: Some(client),
            registration: Ok(()),
            description: description_receiver,
            session: MapSession::default(),
            netmap: netmap_sender,
            status: status_sender,
            acknowledged: acknowledged_sender,
        };
        let task = tokio::spawn(keeper.run(cancel.clone()));
        Ok(Self { description, netmap, status, acknowledged, cancel, new_node_key, task: Some(task) })
    }

    /// The node key that took the place of the configured one, because control said that that one has ended.
    #[must_use]
    pub fn new_node_key(&self) -> Option<&NodePrivate> {
        self.new_node_key.as_ref()
    }

    /// The netmap, from the first one on. Ends when control has refused us for good.
    #[must_use]
    pub fn netmap(&self) -> watch::Receiver<Option<Arc<Netmap>>> {
        self.netmap.clone()
    }

    /// How things stand.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<ControlStatus> {
        self.status.clone()
    }

    /// Tells control what changed of us: soon, and only the newest of several.
    pub fn update(&self, update: Update) {
        self.description.send_if_modified(|description| {
            let before = description.clone();
            description.update(update);
            *description != before
        });
    }

    /// Whether control has acknowledged all that it was told so far.
    #[must_use]
    pub fn is_told(&self) -> bool {
        self.acknowledged.borrow().as_ref() == Some(&*self.description.borrow())
    }

    /// Changes whenever control has acknowledged something, for who waits for [`Self::is_told`].
    pub(crate) fn acknowledgements(&self) -> Acknowledgements {
        Acknowledgements(self.acknowledged.clone())
    }

    /// Logs out: control forgets an ephemeral node at once. Ends the task in any case. The connection that there is gets
    /// a third of the time: it may be dead without having said so, and a new one may not.
    ///
    /// # Errors
    /// When control couldn't be told within `deadline`.
    pub async fn logout(mut self, deadline: Duration) -> Result<(), ControlError> {
        let until = Instant::now() + deadline;
        self.cancel.cancel();
        let Some(task) = self.task.take() else { return Ok(()) };
        let Ok((mut login, client)) = task.await else {
            return Err(ControlError::protocol("nixtail", "its own control task failed"));
        };
        let left = || until.saturating_duration_since(Instant::now());
        if let Some(client) = client {
            match login.log_out(&client, left() / 3).await {
                Ok(()) => return login.forget(),
                Err(error) => tracing::debug!(%error, "logging out on the old connection failed: dialling anew"),
            }
        }
        let server = login.config.url.clone();
        let anew = async {
            let client = login.connect().await?;
            login.log_out(&client, deadline).await?;
            login.forget()
        };
        let timeout = |_| Err(ControlError::Timeout { server, what: "logging out", after: deadline });
        tokio::time::timeout(left(), anew).await.unwrap_or_else(timeout)
    }

    /// Goes without a logout: control knows the node as before, and sees it offline.
    pub async fn close(mut self) {
        self.cancel.cancel();
        if let Some(task) = self.task.take() {
            // A task that failed is gone as well.
            let _ = task.await;
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// See [`Control::acknowledgements`].
pub(crate) struct Acknowledgements(watch::Receiver<Option<Description>>);

impl Acknowledgements {
    /// The next one. Never comes once control's task has ended.
    pub(crate) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The task that keeps the map stream.
struct Keeper {
    login: Login,
    client: Option<Client>,
    /// With what a registration begins that is needed before the next stream.
    registration: Result<(), Entry>,
    description: watch::Receiver<Description>,
    session: MapSession,
    netmap: watch::Sender<Option<Arc<Netmap>>>,
    status: watch::Sender<ControlStatus>,
    acknowledged: watch::Sender<Option<Description>>,
}

impl Keeper {
    /// Runs until cancelled, or refused for good. Gives back what a logout needs.
    async fn run(mut self, cancel: CancellationToken) -> (Login, Option<Client>) {
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            let error = tokio::select! {
                () = cancel.cancelled() => break,
                result = self.serve() => match result { Err(error) => error },
            };
            self.session.handle_stream_closed();
            if begun.elapsed() >= GOOD_STREAM {
                backoff.reset();
            }
            let is_final = is_final(&error, self.registration.is_ok());
            if matches!(error, ControlError::Answer(AnswerError::NotRegistered)) {
                self.registration = Err(Entry::Forgotten);
            }
            self.client = None;
            let text = error.to_string();
            tracing::debug!(error = text, "the map stream ended");
            self.status.send_modify(|status| {
                status.connected_since = None;
                status.refused = is_final.then(|| text.clone());
                status.last_error = Some(text);
            });
            if is_final {
                break;
            }
            tokio::select! {
                () = cancel.cancelled() => break,
                () = sleep(wait_after(&error, &mut backoff)) => {}
            }
        }
        (self.login, self.client)
    }

    /// Has a connection, a registration and a map stream, until one of them breaks.
    async fn serve(&mut self) -> Result<Infallible, ControlError> {
        let description = self.description.borrow().clone();
        let client = match (self.client.take(), self.registration) {
            (client, Err(entry)) => {
                let deadline = Instant::now() + AGAIN_TIMEOUT;
                let client = self.login.register(client, &description, entry, deadline).await?;
                self.registration = Ok(());
                client
            }
            (Some(client), Ok(())) => client,
            (None, Ok(())) => self.login.connect().await?,
        };
        self.client = Some(client.clone());
        let status = &self.status;
        let on_message = || {
            status.send_if_modified(|status| {
                let is_new = status.connected_since.is_none();
                status.connected_since.get_or_insert_with(SystemTime::now);
                is_new
            });
        };
        let config = &self.login.config;
        tokio::select! {
            result = map::follow(&client, config, &description, &mut self.session, &self.netmap, on_message) => result,
            result = map::tell(&client, config, self.description.clone(), &self.acknowledged) => result,
            error = end_of_key(config.node_key, self.netmap.subscribe()) => Err(error),
        }
    }
}

/// Ends when our key has, by control's clock.
async fn end_of_key(key: NodePublic, mut netmap: watch::Receiver<Option<Arc<Netmap>>>) -> ControlError {
    loop {
        // A netmap of before says nothing of a key that took the place of its own.
        let ours = netmap.borrow_and_update().clone().filter(|netmap| netmap.self_node.key == key);
        let clock = clock();
        if ours.as_ref().is_some_and(|netmap| standing(netmap, clock) == Standing::Ended) {
            return ControlError::KeyEnded;
        }
        let left = ours.and_then(|netmap| time_left(&netmap, clock));
        let end = async {
            match left {
                Some(left) => sleep(left).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = end => {}
            // The sender lives as long as whoever waits here.
            _ = netmap.changed() => {}
        }
    }
}

/// Whether nothing changes by trying again. Only an answer to a registration says so, and the end of our key: a 4xx to a
/// map request may come from a proxy, or from a control server that is being upgraded.
fn is_final(error: &ControlError, is_registered: bool) -> bool {
    matches!(error, ControlError::KeyEnded) || (!is_registered && error.is_refusal())
}

/// Our own clock.
pub(crate) fn clock() -> Timestamp {
    Timestamp::from_unix(unix_now())
}

/// How long to wait after an error: what control says, else longer and longer.
fn wait_after(error: &ControlError, backoff: &mut Backoff) -> Duration {
    let wait = backoff.next(&mut rand::make_rng::<StdRng>());
    error.retry_after().map_or(wait, |told| told.max(wait))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refused_registration_is_final() {
        let refused = ControlError::Answer(AnswerError::Refused { status: 401, text: "no".to_owned() });
        assert!(is_final(&refused, false));
        assert!(!is_final(&refused, true), "an answer to a map request");
        assert!(is_final(&ControlError::KeyEnded, true), "a key that has ended isn't an answer");
        assert!(!is_final(&ControlError::Answer(AnswerError::NotRegistered), false));
    }
}
