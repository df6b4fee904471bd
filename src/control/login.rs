//! Connecting, registering and logging out.

use std::sync::Arc;
use std::time::Duration;

use nixtail_proto::control::{RegisterOutcome, printable, register_outcome};
use nixtail_proto::secret::Secret;
use nixtail_proto::tailcfg::{CAPABILITY_VERSION, RegisterAuth, RegisterRequest, RegisterResponse, Timestamp};

use super::client::Client;
use super::description::Description;
use super::dial::Dialler;
use super::server::Server;
use super::{ControlConfig, ControlError};
use crate::agent::Stage;
use crate::auth::{self, Credential};

/// How long control may take to decide on a registration. Headscale takes seconds on a loaded machine.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(30);
/// An end of the key that lies in the past: a logout. Go sends the same second.
const LOGGED_OUT: Timestamp = Timestamp::from_unix(123);

/// How to get to control: what stays the same over all connections.
pub(super) struct Login {
    pub(super) config: ControlConfig,
    server: Arc<Server>,
    dialler: Dialler,
}

impl Login {
    pub(super) fn new(config: ControlConfig) -> Result<Self, ControlError> {
        let server = Arc::new(Server::parse(&config.url)?);
        let dialler = Dialler::new(Arc::clone(&server), config.proxies.clone()).with_stages(config.stages.clone());
        Ok(Self { config, server, dialler })
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

    /// Registers our node key, with the credential that there is.
    pub(super) async fn register(&self, client: &Client, description: &Description) -> Result<(), ControlError> {
        let auth = match &self.config.auth {
            Some(credential) => {
                let auth_key = self.auth_key(credential).await?;
                self.config.stages.mark(Stage::AuthKey);
                Some(RegisterAuth { auth_key })
            }
            None => None,
        };
        let request = RegisterRequest {
            auth,
            hostinfo: description.hostinfo.clone(),
            ephemeral: self.config.ephemeral,
            ..self.request()
        };
        let key = request.auth.as_ref().map(|auth| &auth.auth_key);
        match self.post(client, &request, REGISTER_TIMEOUT).await? {
            RegisterOutcome::Registered { machine_authorized, .. } => {
                self.config.stages.mark(Stage::Registered);
                if !machine_authorized {
                    tracing::info!("control let this node in; its netmap says whether an admin must approve it yet");
                }
                Ok(())
            }
            RegisterOutcome::Refused { reason } => Err(ControlError::Refused { reason: redact(reason, key) }),
            RegisterOutcome::NeedsLogin { url } => Err(ControlError::NeedsLogin { url }),
            RegisterOutcome::NodeKeyExpired => Err(ControlError::NodeKeyExpired),
        }
    }

    /// Ends our node key: control forgets an ephemeral node at once.
    pub(super) async fn log_out(&self, client: &Client, deadline: Duration) -> Result<(), ControlError> {
        let request = RegisterRequest {
            expiry: Some(LOGGED_OUT),
            // testcontrol wants one.
            hostinfo: Description::new(&self.config).hostinfo,
            ephemeral: self.config.ephemeral,
            ..self.request()
        };
        match self.post(client, &request, deadline).await? {
            RegisterOutcome::Refused { reason } => Err(ControlError::Refused { reason }),
            // Above all `NodeKeyExpired`: headscale says so of the key that has just ended.
            _ => Ok(()),
        }
    }

    async fn auth_key(&self, credential: &Credential) -> Result<Secret, ControlError> {
        let ControlConfig { url, tags, ephemeral, proxies, .. } = &self.config;
        let request = auth::Request { login_server: url, tags, ephemeral: *ephemeral, proxies };
        Ok(auth::auth_key(credential, &request).await?)
    }

    fn request(&self) -> RegisterRequest {
        RegisterRequest { version: CAPABILITY_VERSION, node_key: self.config.node_key, ..RegisterRequest::default() }
    }

    async fn post(
        &self,
        client: &Client,
        request: &RegisterRequest,
        deadline: Duration,
    ) -> Result<RegisterOutcome, ControlError> {
        let answer = client.post("/machine/register", request, "registration", deadline).await?;
        let response: RegisterResponse = serde_json::from_slice(&answer)
            .map_err(|error| ControlError::protocol(&self.server.authority(), format!("its answer: {error}")))?;
        Ok(register_outcome(response))
    }
}

/// Control may quote the key that it refuses.
fn redact(text: String, key: Option<&Secret>) -> String {
    match key {
        Some(key) => printable(text.replace(key.expose(), "(the auth key)").as_bytes()),
        None => text,
    }
}
