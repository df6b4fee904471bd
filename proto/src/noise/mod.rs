//! ts2021: the encrypted connection to control, beneath HTTP/2.
//!
//! It is `Noise_IK_25519_ChaChaPoly_BLAKE2s` with frames of its own and big-endian transport nonces
//! (`tailscale/tailscale` `control/controlbase`). In the order of a connection:
//!
//! 1. [`Initiator`] makes the initiation that goes into the HTTP upgrade, [`respond`] answers it;
//! 2. both then have [`Records`]: a [`Sealer`] and an [`Opener`];
//! 3. [`EarlyPayload`] takes out what control may send before its first HTTP/2 frame.
//!
//! All of it takes bytes as they come, cut anywhere.

mod early;
mod frame;
mod handshake;
mod record;
mod symmetric;

pub use early::{EarlyPayload, MAX_EARLY_PAYLOAD, write_early_payload};
pub use frame::{MAX_FRAME, write_error};
pub use handshake::{Accepted, HandshakeProgress, INITIATION_LEN, Initiator, RESPONSE_LEN, respond};
pub use record::{MAX_PLAINTEXT, Opener, Records, Sealer};

/// What can go wrong between us and the other end of a ts2021 connection. None can be recovered from: the connection
/// is to be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoiseError {
    /// The other end said why it won't go on. The text is not authenticated: a hint, nothing more.
    #[error("the server ended the handshake: {0}")]
    Refused(String),
    /// Something doesn't open with the keys of this connection: a wrong server key, or bytes that were changed.
    #[error("a message does not decrypt (wrong server key, or changed on the way)")]
    Decrypt,
    /// A key of the other end that would make the secret known to anybody.
    #[error("the other end sent a worthless public key")]
    WeakKey,
    /// A frame of a kind that doesn't belong here.
    #[error("a frame of kind {0} is out of place")]
    UnexpectedFrame(u8),
    /// A frame of a wrong size.
    #[error("a frame of {0} bytes has a wrong size")]
    Length(usize),
    /// The early payload is longer than [`MAX_EARLY_PAYLOAD`].
    #[error("an early payload of {0} bytes is too long")]
    EarlyPayloadLength(usize),
    /// 2^64 − 1 records were sent with one key.
    #[error("the connection's keys are used up")]
    Exhausted,
}

#[cfg(test)]
mod tests;
