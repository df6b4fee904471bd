//! The two messages of the handshake (`control/controlbase/handshake.go`): `-> e, es, s, ss` and `<- e, ee, se`.

use rand_core::CryptoRng;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::NoiseError;
use super::frame::{Frames, KIND_ERROR, KIND_INITIATION, KIND_RESPONSE, error_text, write_header};
use super::record::{Opener, Records, Sealer};
use super::symmetric::{Symmetric, TAG};
use crate::key::{MachinePrivate, MachinePublic};

const KEY: usize = 32;
const INITIATION_HEADER: usize = 5;
const INITIATION_PAYLOAD: usize = KEY + (KEY + TAG) + TAG;
const RESPONSE_PAYLOAD: usize = KEY + TAG;

/// Bytes of the initiation: u16 version, kind, u16 length, ephemeral key, sealed machine key, tag.
pub const INITIATION_LEN: usize = INITIATION_HEADER + INITIATION_PAYLOAD;
/// Bytes of the response: kind, u16 length, ephemeral key, tag.
pub const RESPONSE_LEN: usize = super::frame::HEADER + RESPONSE_PAYLOAD;

/// The client's end of a handshake that waits for its answer.
pub struct Initiator {
    symmetric: Symmetric,
    machine: StaticSecret,
    ephemeral: StaticSecret,
    frames: Frames,
}

impl Initiator {
    /// Begins a handshake with the control server whose key is `control`, and gives the initiation to send.
    ///
    /// # Errors
    /// [`NoiseError::WeakKey`] when `control` is no real key.
    pub fn new(
        version: u16,
        machine: &MachinePrivate,
        control: &MachinePublic,
        rng: &mut dyn CryptoRng,
    ) -> Result<(Self, [u8; INITIATION_LEN]), NoiseError> {
        let (ephemeral, machine_public) = (ephemeral(rng), machine.public());
        let machine = StaticSecret::from(*machine.expose_bytes());
        let mut symmetric = start(version, control);

        let ephemeral_public = PublicKey::from(&ephemeral).to_bytes();
        symmetric.mix_hash(&ephemeral_public);
        let key = symmetric.mix_dh(&ephemeral, control.as_bytes())?;
        let mut sealed_machine = *machine_public.as_bytes();
        let machine_tag = symmetric.seal(&key, &mut sealed_machine);
        let key = symmetric.mix_dh(&machine, control.as_bytes())?;
        let tag = symmetric.seal(&key, &mut []);

        let mut message = Vec::with_capacity(INITIATION_LEN);
        message.extend_from_slice(&version.to_be_bytes());
        write_header(KIND_INITIATION, INITIATION_PAYLOAD, &mut message);
        for part in [&ephemeral_public[..], &sealed_machine, &machine_tag, &tag] {
            message.extend_from_slice(part);
        }
        let (message, _) = split(&message)?;
        Ok((Self { symmetric, machine, ephemeral, frames: Frames::default() }, message))
    }

    /// Takes bytes from the server. When its answer is whole, the handshake is done: what followed the answer already
    /// lies in the opener.
    ///
    /// # Errors
    /// When the server refuses or isn't the one whose key we have.
    pub fn handle_bytes(mut self, bytes: &[u8]) -> Result<HandshakeProgress, NoiseError> {
        self.frames.push(bytes);
        let (server_ephemeral, tag) = match self.frames.next()? {
            None => return Ok(HandshakeProgress::Waiting(self)),
            Some((KIND_ERROR, text)) => return Err(NoiseError::Refused(error_text(text))),
            Some((KIND_RESPONSE, payload)) => take_response(payload)?,
            Some((kind, _)) => return Err(NoiseError::UnexpectedFrame(kind)),
        };
        let mut symmetric = self.symmetric;
        symmetric.mix_hash(&server_ephemeral);
        symmetric.mix_dh(&self.ephemeral, &server_ephemeral)?;
        let key = symmetric.mix_dh(&self.machine, &server_ephemeral)?;
        symmetric.open(&key, &mut [], &tag)?;
        let (ours, theirs) = symmetric.split();
        Ok(HandshakeProgress::Done(Records { sealer: Sealer::new(&ours), opener: Opener::new(&theirs, self.frames) }))
    }
}

/// Where a handshake stands after some bytes.
pub enum HandshakeProgress {
    /// The answer isn't whole yet.
    Waiting(Initiator),
    /// Both ends have their keys.
    Done(Records),
}

/// What a server has after it answered an initiation.
pub struct Accepted {
    /// Who the client is.
    pub machine: MachinePublic,
    /// The capability version that it claims.
    pub version: u16,
    /// The answer to send.
    pub response: [u8; RESPONSE_LEN],
    /// The connection after it.
    pub records: Records,
}

/// The server's end: answers an initiation.
///
/// # Errors
/// When `initiation` is none, or was made for another server's key.
pub fn respond(control: &MachinePrivate, initiation: &[u8], rng: &mut dyn CryptoRng) -> Result<Accepted, NoiseError> {
    let initiation: &[u8; INITIATION_LEN] = initiation.try_into().map_err(|_| NoiseError::Length(initiation.len()))?;
    let (header, rest) = initiation.split_first_chunk::<INITIATION_HEADER>().expect("it is longer than its header");
    let [v0, v1, kind, l0, l1] = *header;
    if kind != KIND_INITIATION {
        return Err(NoiseError::UnexpectedFrame(kind));
    }
    if usize::from(u16::from_be_bytes([l0, l1])) != INITIATION_PAYLOAD {
        return Err(NoiseError::Length(usize::from(u16::from_be_bytes([l0, l1]))));
    }
    let version = u16::from_be_bytes([v0, v1]);
    let (client_ephemeral, rest) = split::<KEY>(rest)?;
    let (mut machine, rest) = split::<KEY>(rest)?;
    let (machine_tag, rest) = split::<TAG>(rest)?;
    let (tag, _) = split::<TAG>(rest)?;

    let ephemeral = ephemeral(rng);
    let ephemeral_public = PublicKey::from(&ephemeral).to_bytes();
    let mut symmetric = start(version, &control.public());
    let control = StaticSecret::from(*control.expose_bytes());
    symmetric.mix_hash(&client_ephemeral);
    let key = symmetric.mix_dh(&control, &client_ephemeral)?;
    symmetric.open(&key, &mut machine, &machine_tag)?;
    let key = symmetric.mix_dh(&control, &machine)?;
    symmetric.open(&key, &mut [], &tag)?;

    symmetric.mix_hash(&ephemeral_public);
    symmetric.mix_dh(&ephemeral, &client_ephemeral)?;
    let key = symmetric.mix_dh(&ephemeral, &machine)?;
    let tag = symmetric.seal(&key, &mut []);
    let (theirs, ours) = symmetric.split();

    let mut response = Vec::with_capacity(RESPONSE_LEN);
    write_header(KIND_RESPONSE, RESPONSE_PAYLOAD, &mut response);
    response.extend_from_slice(&ephemeral_public);
    response.extend_from_slice(&tag);
    let (response, _) = split(&response)?;
    Ok(Accepted {
        machine: MachinePublic::from_bytes(machine),
        version,
        response,
        records: Records { sealer: Sealer::new(&ours), opener: Opener::new(&theirs, Frames::default()) },
    })
}

/// The state after what both ends know beforehand: the prologue with the version, and the server's key.
fn start(version: u16, control: &MachinePublic) -> Symmetric {
    let mut symmetric = Symmetric::new();
    symmetric.mix_hash(format!("Tailscale Control Protocol v{version}").as_bytes());
    symmetric.mix_hash(control.as_bytes());
    symmetric
}

fn ephemeral(rng: &mut dyn CryptoRng) -> StaticSecret {
    let mut bytes = Zeroizing::new([0; KEY]);
    rng.fill_bytes(bytes.as_mut_slice());
    StaticSecret::from(*bytes)
}

fn take_response(payload: &[u8]) -> Result<([u8; KEY], [u8; TAG]), NoiseError> {
    let (ephemeral, rest) = split::<KEY>(payload)?;
    let tag = rest.try_into().map_err(|_| NoiseError::Length(payload.len()))?;
    Ok((ephemeral, tag))
}

fn split<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), NoiseError> {
    bytes.split_first_chunk().map(|(head, rest)| (*head, rest)).ok_or(NoiseError::Length(bytes.len()))
}
