//! Connecting, registering and logging out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nixtail_proto::control::{AnswerError, Claim, Entry, Means, Registration, Step, printable};
use nixtail_proto::key::NodePrivate;
use nixtail_proto::secret::Secret;
use nixtail_proto::tailcfg::{CAPABILITY_VERSION, RegisterAuth, RegisterRequest, RegisterResponse, Timestamp};
use rand::rngs::StdRng;
use tokio::time::{sleep_until, timeout, timeout_at};

use super::client::Client;
use super::description::Description;
use super::dial::Dialler;
use super::server::Server;
use super::{ControlConfig, ControlError};
use crate::agent::Stage;
use crate::auth::{self, Credential};

/// How long control may take to decide on a registration. Headscale takes seconds on a loaded machine.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long control may hold the request that awaits a person. Then it is sent again: the connection may be dead.
const FOLLOWUP_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a person may take to log in. Headscale keeps a login for 15 minutes.
const PERSON_TIMEOUT: Duration = Duration::from_secs(900);
/// How long control may take to say whether it knows us.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(15);
/// How long taking back a registration may take, beyond the deadline of the join.
const TAKE_BACK_TIMEOUT: Duration = Duration::from_secs(3);
/// An end of the key that lies in the past: a logout. Go sends the same second.
const LOGGED_OUT: Timestamp = Timestamp::from_unix(123);
const REGISTER: &str = "/machine/register";

/// How to get to control: what stays the same over all connections.
pub(super) struct Login {
    pub(super) config: ControlConfig,
    server: Arc<Server>,
    dialler: Dialler,
    /// The node key that took the place of the configured one, if any did.
    new_node_key: Option<NodePrivate>,
    /// Whether the node is running. Its node key can't be another one then: the tunnel and the relays have it.
    is_running: bool,
    /// The registration under way. It outlives the attempts: what one of them sent may have been taken.
    registration: Option<Registration>,
}

impl Login {
    pub(super) fn new(config: ControlConfig) -> Result<Self, ControlError> {
        let server = Arc::new(Server::parse(&config.url)?);
        let dialler = Dialler::new(Arc::clone(&server), config.proxies.clone()).with_stages(config.stages.clone());
        Ok(Self { config, server, dialler, new_node_key: None, is_running: false, registration: None })
    }

    /// Opens a connection.
    pub(super) async fn connect(&mut self) -> Result<Client, ControlError> {
        let connection = self.dialler.dial(&self.config.machine_key).await?;
        let client = Client::begin(connection, Arc::clone(&self.server), self.config.node_key).await?;
        self.config.stages.mark(Stage::Connected);
        Ok(client)
    }

    /// What is being done, or was when nothing more came.
    pub(super) fn step(&self) -> &'static str {
        self.server.step()
    }

    /// The node key that took the place of the configured one, if control wanted another.
    pub(super) fn new_node_key(&self) -> Option<&NodePrivate> {
        self.new_node_key.as_ref()
    }

    /// The node runs from now on, with the keys that it has.
    pub(super) fn handle_running(&mut self) {
        self.is_running = true;
    }

    /// How a first registration begins.
    pub(super) fn entry(&self) -> Entry {
        self.config.identity.as_ref().map_or(Entry::New, |kept| kept.entry())
    }

    /// Registers our node key, trying again until the deadline as long as the network or control's state are at fault.
    /// Where a person has to log in, that person's time is added. Gives the connection on which it was done.
    ///
    /// # Errors
    /// A refusal at once; anything else at the deadline.
    pub(super) async fn register(
        &mut self,
        mut client: Option<Client>,
        description: &Description,
        entry: Entry,
        deadline: Instant,
    ) -> Result<Client, ControlError> {
        let mut registration = self.registration.take().unwrap_or_else(|| self.begin(entry));
        let registered = self.drive(&mut registration, &mut client, description, deadline).await;
        if matches!(&registered, Err(error) if !error.is_refusal()) {
            self.registration = Some(registration);
        }
        match (registered, client) {
            (Ok(()), Some(client)) => Ok(client),
            (Ok(()), None) => self.connect().await,
            (Err(error), _) => Err(error),
        }
    }

    /// Takes back, as well as that can be done, a registration that came to nothing and that control may have taken all the
    /// same: nobody could use that node, nor its name.
    pub(super) async fn take_back(&mut self) {
        let is_kept = self.config.identity.is_some();
        if is_kept || !self.registration.as_ref().is_some_and(Registration::is_unanswered) {
            return;
        }
        let taken_back = async {
            let client = self.connect().await?;
            self.log_out(&client, TAKE_BACK_TIMEOUT).await
        };
        match timeout(TAKE_BACK_TIMEOUT, taken_back).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a registration couldn't be taken back"),
            Err(_) => tracing::debug!("a registration couldn't be taken back in time"),
        }
    }

    fn begin(&self, entry: Entry) -> Registration {
        let means = self.config.auth.as_ref().map_or(Means::Nothing, means);
        // Where there is a credential, nobody waits to be asked.
        let has_person = self.config.person.is_some() && means == Means::Nothing;
        let old_node_key = self.config.identity.as_ref().and_then(|kept| kept.old_node_key());
        Registration::new(entry, means, has_person, self.config.node_key, old_node_key)
    }

    /// Takes one step after the other, until the registration ends or `until` has come.
    async fn drive(
        &mut self,
        registration: &mut Registration,
        client: &mut Option<Client>,
        description: &Description,
        mut until: Instant,
    ) -> Result<(), ControlError> {
        let mut rng = rand::make_rng::<StdRng>();
        let mut last_error = None;
        loop {
            let step = registration.poll_step(Instant::now());
            if let Step::ShowLogin(url) = &step {
                until = until.max(Instant::now() + PERSON_TIMEOUT);
                if let Some(person) = &self.config.person {
                    person.show_login(url);
                }
                if self.is_running {
                    // Whoever started it may look no more.
                    tracing::warn!(url, "control has forgotten this node and wants a person to log in");
                }
                continue;
            }
            let is_claim = matches!(step, Step::Register(_));
            // A wait beyond the deadline needn't be waited for.
            let is_late = matches!(step, Step::Wait(at) if at >= until);
            let taken = match is_late {
                true => None,
                false => timeout_at(until.into(), self.take(step, registration, client, description)).await.ok(),
            };
            let error = match taken {
                Some(Ok(Progress::Going)) => continue,
                Some(Ok(Progress::Done)) => return Ok(()),
                Some(Ok(Progress::Troubled(error))) => error,
                Some(Err(error)) => return Err(error),
                None => {
                    if is_claim {
                        registration.handle_no_answer(Instant::now(), &mut rng);
                    }
                    let (server, after) = (self.server.authority(), self.config.deadline);
                    return Err(last_error.unwrap_or(ControlError::Timeout { server, what: self.step(), after }));
                }
            };
            tracing::info!(%error, "trying again to log in");
            last_error = Some(error);
        }
    }

    /// Takes one step. An error is one that trying again doesn't change.
    async fn take(
        &mut self,
        step: Step,
        registration: &mut Registration,
        client: &mut Option<Client>,
        description: &Description,
    ) -> Result<Progress, ControlError> {
        let mut rng = rand::make_rng::<StdRng>();
        let done = match step {
            Step::ShowLogin(_) => Ok(()),
            Step::Wait(at) => {
                sleep_until(at.into()).await;
                Ok(())
            }
            Step::AuthKey => self.auth_key().await.map(|key| {
                self.config.stages.mark(Stage::AuthKey);
                registration.handle_auth_key(Instant::now(), key);
            }),
            Step::NodeKey if self.is_running => return Err(ControlError::KeyEnded),
            Step::NodeKey => {
                let key = NodePrivate::generate(&mut rng);
                if let Some(kept) = &self.config.identity {
                    kept.handle_new_node_key(&key)?;
                }
                self.config.node_key = key.public();
                *client = client.take().map(|client| client.speaking_for(key.public()));
                registration.handle_node_key(key.public());
                self.new_node_key = Some(key);
                Ok(())
            }
            Step::Register(claim) => match self.connected(client).await {
                Ok(connection) => match self.claim(&connection, claim, description).await {
                    Ok(answer) => {
                        registration.handle_answer(Instant::now(), answer, &mut rng);
                        Ok(())
                    }
                    Err(ControlError::Answer(error)) => {
                        registration.handle_status(Instant::now(), &error, &mut rng);
                        return Ok(Progress::Troubled(match error {
                            AnswerError::NotRegistered => {
                                ControlError::protocol(&self.server.authority(), "it takes no registrations")
                            }
                            error => error.into(),
                        }));
                    }
                    Err(error) if error.is_configuration() => return Err(error),
                    Err(error) => {
                        *client = None;
                        registration.handle_no_answer(Instant::now(), &mut rng);
                        return Ok(Progress::Troubled(error));
                    }
                },
                Err(error) => Err(error),
            },
            Step::AskWhetherKnown => match self.connected(client).await {
                Ok(connection) => {
                    self.is_known(&connection, description).await.map(|known| registration.handle_known(known))
                }
                Err(error) => Err(error),
            },
            Step::Done(_) => {
                self.config.stages.mark(Stage::Registered);
                if let Some(kept) = &self.config.identity {
                    kept.handle_registered()?;
                }
                return Ok(Progress::Done);
            }
            Step::Failed(error) => return Err(error.into()),
        };
        match done {
            Ok(()) => Ok(Progress::Going),
            Err(error) if error.is_configuration() || error.is_refusal() => Err(error),
            Err(error) => {
                match error.retry_after() {
                    Some(wait) => registration.handle_status(Instant::now(), &AnswerError::Later(wait), &mut rng),
                    None => registration.handle_undone(Instant::now(), &mut rng),
                }
                *client = None;
                Ok(Progress::Troubled(error))
            }
        }
    }

    /// The connection that there is, or a new one.
    async fn connected(&mut self, client: &mut Option<Client>) -> Result<Client, ControlError> {
        match client {
            Some(client) => Ok(client.clone()),
            None => Ok(client.insert(self.connect().await?).clone()),
        }
    }

    /// An auth key out of the credential.
    async fn auth_key(&self) -> Result<Secret, ControlError> {
        let ControlConfig { url, tags, ephemeral, proxies, .. } = &self.config;
        let request = auth::Request { login_server: url, tags, ephemeral: *ephemeral, proxies };
        match &self.config.auth {
            Some(credential) => Ok(auth::auth_key(credential, &request).await?),
            None => Ok(Secret::default()),
        }
    }

    /// Sends a registration.
    async fn claim(
        &self,
        client: &Client,
        claim: Claim,
        description: &Description,
    ) -> Result<RegisterResponse, ControlError> {
        if let Some(kept) = &self.config.identity {
            kept.handle_sent()?;
        }
        let deadline = if claim.followup.is_some() { FOLLOWUP_TIMEOUT } else { REGISTER_TIMEOUT };
        let request = RegisterRequest {
            node_key: claim.node_key,
            old_node_key: claim.old_node_key.unwrap_or_default(),
            auth: claim.auth_key.map(|auth_key| RegisterAuth { auth_key }),
            followup: claim.followup.unwrap_or_default(),
            hostinfo: description.hostinfo.clone(),
            ..self.request()
        };
        self.post(client, &request, deadline).await
    }

    /// Whether control knows our node key: what an update of it leads to.
    async fn is_known(&self, client: &Client, description: &Description) -> Result<bool, ControlError> {
        let request = description.map_request(self.config.node_key, self.config.disco_key, false);
        match client.post("/machine/map", &request, "whether it knows this node", KNOWN_TIMEOUT).await {
            Ok(_) => Ok(true),
            Err(ControlError::Answer(AnswerError::NotRegistered)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends our node key: control forgets an ephemeral node at once.
    pub(super) async fn log_out(&self, client: &Client, deadline: Duration) -> Result<(), ControlError> {
        let request = RegisterRequest {
            expiry: Some(LOGGED_OUT),
            // testcontrol wants one.
            hostinfo: Description::new(&self.config).hostinfo,
            ..self.request()
        };
        let answer = self.post(client, &request, deadline).await?;
        // `NodeKeyExpired` is no error: headscale says so of the key that has just ended.
        if answer.error.is_empty() {
            return Ok(());
        }
        Err(ControlError::Logout { reason: printable(answer.error.as_bytes()) })
    }

    /// What is kept of a node that was logged out goes.
    pub(super) fn forget(&self) -> Result<(), ControlError> {
        match &self.config.identity {
            Some(kept) => Ok(kept.handle_logged_out()?),
            None => Ok(()),
        }
    }

    fn request(&self) -> RegisterRequest {
        RegisterRequest {
            version: CAPABILITY_VERSION,
            node_key: self.config.node_key,
            ephemeral: self.config.ephemeral,
            ..RegisterRequest::default()
        }
    }

    async fn post(
        &self,
        client: &Client,
        request: &RegisterRequest,
        deadline: Duration,
    ) -> Result<RegisterResponse, ControlError> {
        let answer = client.post(REGISTER, request, "registration", deadline).await?;
        serde_json::from_slice(&answer)
            .map_err(|error| ControlError::protocol(&self.server.authority(), format!("its answer: {error}")))
    }
}

/// How a step went.
enum Progress {
    /// It is done.
    Going,
    /// It isn't, and may be the next time.
    Troubled(ControlError),
    /// It was the last: control has let the node in.
    Done,
}

fn means(credential: &Credential) -> Means {
    match credential {
        Credential::AuthKey(_) => Means::AuthKey,
        Credential::OauthSecret(_) | Credential::WorkloadIdentity(_) => Means::KeyMaker,
    }
}
