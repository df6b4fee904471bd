//! What russh asks of us: who may log in, and what becomes of a channel. Nothing here waits.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nixtail_proto::nix_command::{CommandRefusal, NixCommand, Shown, parse_command};
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, Disconnect, MethodKind, MethodSet, Pty, Sig};

use super::connection::{Connection, wants_password};
use super::endpoint::{ConnectionEnd, SshError};
use super::flow::{TRICKLE, lock};
use super::session::{self, Work};

pub(crate) struct ConnectionHandler {
    connection: Arc<Connection>,
    /// The banner has said why this peer isn't let in.
    told: bool,
    /// Words for a client that is turned away right after its login (see [`ConnectionHandler::authenticate`]).
    turned_away: Option<String>,
}

impl ConnectionHandler {
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection, told: false, turned_away: None }
    }

    /// The policy alone decides; no credential is looked at.
    ///
    /// russh can send a banner only before it knows the user. So a peer that would be refused as anybody gets one, and then
    /// a failure that leaves it no method but `none`. (OpenSSH takes an empty list for any method, and asks for a password.
    /// And paramiko knows the banner only while the connection lasts, so the client is left to end it.) Where the refusal depends on the user, the client is let in for as long as it takes to send
    /// a disconnect message with the reason: nothing of it is handled after that. Every client shows either, and none
    /// asks for a password.
    fn authenticate(&mut self, user: &str, password_given: bool) -> Result<Auth, SshError> {
        let decision = match self.connection.decide(user) {
            Ok(_) if wants_password(user) && !password_given => {
                let password = MethodSet::from([MethodKind::Password].as_slice());
                return Ok(Auth::Reject { proceed_with_methods: Some(password), partial_success: true });
            }
            Ok(_) => self.connection.log_in(user),
            Err(rejection) => Err(rejection),
        };
        let rejection = match decision {
            Ok(_) => return Ok(Auth::Accept),
            Err(rejection) => rejection.to_string(),
        };
        tracing::info!(peer = %self.connection.peer().name, user = %Shown::new(user), %rejection, "SSH login refused");
        if self.told {
            if self.connection.chosen_end().is_some() {
                // It has been refused, and tries again.
                return Err(russh::Error::Disconnect.into());
            }
            self.connection.end(ConnectionEnd::Refused(rejection));
            let nothing = MethodSet::from([MethodKind::None].as_slice());
            return Ok(Auth::Reject { proceed_with_methods: Some(nothing), partial_success: false });
        }
        self.turned_away = Some(rejection);
        Ok(Auth::Accept)
    }

    /// Runs what `channel` asked for, once.
    fn run(
        &mut self,
        channel: ChannelId,
        command: Result<NixCommand, CommandRefusal>,
        session: &mut Session,
    ) -> Result<(), SshError> {
        let parts = self.connection.may_run().then(|| self.connection.begin_session(channel)).flatten();
        let Some(parts) = parts else {
            return Ok(session.channel_failure(channel)?);
        };
        session.channel_success(channel)?;
        let connection = &self.connection;
        let work = match command {
            Ok(command) => {
                connection.counters.commands_run.fetch_add(1, Ordering::Relaxed);
                Work::of(command, &connection.endpoint.config.commands)
            }
            Err(refusal) => {
                connection.counters.commands_refused.fetch_add(1, Ordering::Relaxed);
                tracing::info!(peer = %connection.peer().name, %refusal, "SSH command refused");
                Work::Refused(refusal)
            }
        };
        connection.tasks.spawn(session::run(parts, work));
        Ok(())
    }
}

impl Handler for ConnectionHandler {
    type Error = SshError;

    async fn authentication_banner(&mut self) -> Result<Option<String>, SshError> {
        match self.connection.admission.decide_for_anybody() {
            None => Ok(None),
            Some(Ok(acceptance)) if acceptance.message.is_empty() => Ok(None),
            Some(Ok(acceptance)) => Ok(Some(format!("{}\r\n", acceptance.message))),
            Some(Err(rejection)) => {
                self.told = true;
                Ok(Some(format!("nixtail: {rejection}\r\n")))
            }
        }
    }

    async fn auth_none(&mut self, user: &str) -> Result<Auth, SshError> {
        self.authenticate(user, false)
    }

    async fn auth_password(&mut self, user: &str, _password: &str) -> Result<Auth, SshError> {
        self.authenticate(user, true)
    }

    async fn auth_publickey_offered(&mut self, _user: &str, _offer: PublicKeyOffer<'_>) -> Result<Auth, SshError> {
        Ok(Auth::Accept)
    }

    async fn auth_publickey(&mut self, user: &str, _key: VerifiedPublicKey<'_>) -> Result<Auth, SshError> {
        self.authenticate(user, false)
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), SshError> {
        if let Some(reason) = self.turned_away.take() {
            session.disconnect(Disconnect::NoMoreAuthMethodsAvailable, &format!("nixtail: {reason}"), "en")?;
            self.connection.end(ConnectionEnd::Refused(reason));
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), SshError> {
        if !self.connection.may_run() {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        }
        // Without its receiver russh has nothing to wait for when data comes; `data` below takes it all.
        let (_, write) = channel.split();
        if !self.connection.open_channel(write) {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        reply.accept().await;
        Ok(())
    }

    fn adjust_window(&mut self, channel: ChannelId, granted: u32) -> u32 {
        let next = lock(&self.connection.windows).regrant(&channel, granted);
        if granted == TRICKLE && next == TRICKLE {
            self.connection.gate.pause(Instant::now());
        }
        next
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], _session: &mut Session) -> Result<(), SshError> {
        self.connection.take_data(channel, data).map_err(|_| SshError::WindowExceeded)
    }

    async fn extended_data(
        &mut self,
        channel: ChannelId,
        _code: u32,
        data: &[u8],
        _: &mut Session,
    ) -> Result<(), SshError> {
        // No command takes any: counted against the window and dropped.
        lock(&self.connection.windows).data(&channel, data.len()).map_err(|_| SshError::WindowExceeded)
    }

    async fn channel_eof(&mut self, channel: ChannelId, _session: &mut Session) -> Result<(), SshError> {
        self.connection.finish_input(channel);
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _session: &mut Session) -> Result<(), SshError> {
        self.connection.close_channel(channel);
        Ok(())
    }

    async fn exec_request(&mut self, channel: ChannelId, line: &[u8], session: &mut Session) -> Result<(), SshError> {
        let published = self.connection.endpoint.config.commands.published_store.as_deref();
        let command = parse_command(line, published);
        self.run(channel, command, session)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), SshError> {
        self.run(channel, Err(CommandRefusal::Shell), session)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        session: &mut Session,
    ) -> Result<(), SshError> {
        Ok(session.channel_failure(channel)?)
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), SshError> {
        Ok(session.channel_failure(channel)?)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), SshError> {
        Ok(session.channel_failure(channel)?)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), SshError> {
        Ok(session.channel_failure(channel)?)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        session: &mut Session,
    ) -> Result<(), SshError> {
        Ok(session.channel_failure(channel)?)
    }

    async fn signal(&mut self, channel: ChannelId, signal: Sig, _session: &mut Session) -> Result<(), SshError> {
        if matches!(signal, Sig::TERM | Sig::INT | Sig::HUP | Sig::KILL) {
            self.connection.cancel_session(channel);
        }
        Ok(())
    }
}
