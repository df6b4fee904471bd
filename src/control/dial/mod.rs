//! Dialling control: its key, a connection to it, straight or through a proxy, perhaps TLS, and then ts2021
//! (`control/controlhttp/client.go`).
//!
//! The key and the connection are had at the same time: the key is needed only when TCP and TLS are through, which saves two
//! round trips at the start. Each step has a deadline and a name.

mod race;
mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join;
use nixtail_proto::key::{MachinePrivate, MachinePublic};
use nixtail_proto::proxy::{Proxies, Scheme};
use tokio::sync::watch;
use tokio::time::Instant;

use super::ControlError;
use super::server::Server;
use super::stream::NoiseStream;
use crate::agent::{Stage, Stages};
use crate::net::connect::{Transport, connect_host, connect_through, start_tls};
use crate::net::tls::Trust;
use race::race;

/// Where a connection over plain HTTP lasted no longer than this, something on the way may be meddling with it…
const MEDDLED: Duration = Duration::from_secs(120);
/// …and then TLS gets this lead, as long as that may take on a good network.
const TLS_LEAD: Duration = Duration::from_secs(3);

/// A connection to control, ready for HTTP/2.
pub(super) type Connection = NoiseStream<Box<dyn Transport>>;

/// Opens connections to control, and remembers what helps with the next one.
pub(super) struct Dialler {
    server: Arc<Server>,
    proxies: Proxies,
    /// Control's key. Asked for again when a handshake fails with it: it may have changed.
    key: Option<MachinePublic>,
    /// When the last connection was opened, if that went over plain HTTP though TLS would have done as well.
    last_plain: Option<Instant>,
    stages: Stages,
}

/// A connection and how it came about.
struct Dialled {
    connection: Connection,
    is_tls: bool,
}

impl Dialler {
    pub(super) fn new(server: Arc<Server>, proxies: Proxies) -> Self {
        Self { server, proxies, key: None, last_plain: None, stages: Stages::default() }
    }

    /// The same, whose stages are those of this start.
    pub(super) fn with_stages(self, stages: Stages) -> Self {
        Self { stages, ..self }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// What failed, by its step. A key that was fetched earlier and doesn't work any more is fetched anew first.
    pub(super) async fn dial(&mut self, machine: &MachinePrivate) -> Result<Connection, ControlError> {
        let error = match self.dial_with(machine, self.key).await {
            Ok(connection) => return Ok(connection),
            Err(error @ ControlError::Handshake { .. }) => error,
            Err(error) => return Err(error),
        };
        // One that was fetched just now is the right one, and something else is wrong.
        let Some(old) = self.key else { return Err(error) };
        // Kept while no other is there: where only port 80 leads to control, there may never be one.
        let Some(new) = self.server.fetch_key(&self.proxies).await.ok().filter(|new| *new != old) else {
            return Err(error);
        };
        tracing::info!("control has another key now");
        self.dial_with(machine, Some(new)).await
    }

    /// With `https://` and no port, TLS on 443 and plain HTTP on 80 are raced: ts2021 needs no TLS, and each is blocked
    /// somewhere. A port that the user named is the only one tried.
    async fn dial_with(
        &mut self,
        machine: &MachinePrivate,
        key: Option<MachinePublic>,
    ) -> Result<Connection, ControlError> {
        let was_meddled_with = self.last_plain.is_some_and(|at| at.elapsed() < MEDDLED);
        let (learn, learned) = watch::channel(key);
        let fetched = async {
            let key = match key {
                Some(key) => key,
                None => self.server.fetch_key(&self.proxies).await?,
            };
            self.stages.mark(Stage::ServerKey);
            learn.send_replace(Some(key));
            Ok(key)
        };
        let attempt = |port, is_tls| self.attempt(machine, learned.clone(), port, is_tls);
        let (https_port, http_port) = self.server.standard_ports;
        let dialled = async {
            match (self.server.is_https, self.server.explicit_port) {
                (false, port) => attempt(port.unwrap_or(http_port), false).await,
                (true, Some(port)) => attempt(port, true).await,
                (true, None) => {
                    let lead = if was_meddled_with { TLS_LEAD } else { Duration::ZERO };
                    race(attempt(https_port, true), attempt(http_port, false), lead).await
                }
            }
        };
        let (key, Dialled { connection, is_tls }) = try_join(fetched, dialled).await?;
        self.key = Some(key);
        self.last_plain = (self.server.is_https && !is_tls).then(Instant::now);
        Ok(connection)
    }

    async fn attempt(
        &self,
        machine: &MachinePrivate,
        mut key: watch::Receiver<Option<MachinePublic>>,
        port: u16,
        is_tls: bool,
    ) -> Result<Dialled, ControlError> {
        let server = &self.server;
        let transport = self.connect(port, is_tls).await?;
        let known = key.wait_for(Option::is_some).await.ok().and_then(|key| *key);
        let Some(key) = known else {
            // There is none, and whoever looked for it says so.
            return std::future::pending().await;
        };
        let connection = upgrade::upgrade(server, transport, machine, &key).await?;
        Ok(Dialled { connection, is_tls })
    }

    /// TCP, perhaps through a proxy, and perhaps TLS over it.
    async fn connect(&self, port: u16, is_tls: bool) -> Result<Box<dyn Transport>, ControlError> {
        let (server, host) = (&self.server, self.server.bare_host());
        // By how the user named control, and not by the port: port 80 mustn't go round a proxy that is there for 443.
        let scheme = if server.is_https { Scheme::Https } else { Scheme::Http };
        let proxied = |failure| ControlError::Proxy { server: server.authority(), failure };
        let proxy = self.proxies.find(scheme, host, port).map_err(|error| proxied(error.into()))?;
        let tcp: Box<dyn Transport> = match proxy {
            Some(proxy) => {
                let connected = async { connect_through(proxy, host, port).await.map_err(proxied) };
                server.within("connecting through the proxy", server.patience, connected).await?
            }
            None => {
                let network = |source| server.network("connecting", source);
                let connected = async { connect_host(host, port).await.map_err(network) };
                Box::new(server.within("connecting", server.patience, connected).await?)
            }
        };
        if !is_tls {
            return Ok(tcp);
        }
        // Middleboxes that break TLS open are tolerated here: the handshake inside proves that it is control.
        let secured = async {
            let tls = start_tls(tcp, host, Trust::Anybody).await.map_err(|source| server.network("TLS", source))?;
            Ok(Box::new(tls) as Box<dyn Transport>)
        };
        server.within("TLS", server.patience, secured).await
    }
}

#[cfg(test)]
mod tests;
