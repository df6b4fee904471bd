//! The direct lane: Nix's worker protocol between two nixtails, straight through the tunnel, without SSH around it.
//!
//! The client says in one line what it wants and then sends plain bytes at once; nothing is waited for, so that the lane
//! costs no round trip of its own. Its FIN is the command's end of input:
//!
//! ```text
//! nixtail-direct 1 LOGIN COMMAND\n
//! … the command's standard input …
//! ```
//!
//! The server answers in frames of a kind, a length and a payload, so that output, stderr and the end with its reason are
//! told apart, and a stream that breaks is told from one that ended:
//!
//! ```text
//!  0        8                               32
//! ┌────────┬───────────────────────────────┬─────────────
//! │ kind   │ length, big-endian            │ payload …
//! └────────┴───────────────────────────────┴─────────────
//! 1 accepted  nothing                      once, first
//! 2 refused   kind of refusal (1), words   once, instead of it; nothing follows
//! 3 data      bytes of standard output
//! 4 stderr    bytes of standard error
//! 5 ended     exit code (4), words         once, last
//! ```
//!
//! The lane shares its port with SSH; [`protocol_of`] tells which of the two a client speaks.

mod frame;
mod request;

pub use frame::{
    Decoder, Event, FrameError, HEADER_LENGTH, MAX_PAYLOAD, MAX_WORDS, Output, RefusalKind, accepted, ended,
    output_header, refused,
};
pub use request::{MAX_REQUEST, PROTOCOL, Request, RequestError};

/// What a request begins with.
const GREETING: &[u8] = b"nixtail-direct ";

/// What a client of the shared port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The direct lane.
    Direct,
    /// SSH, or something that an SSH server is to turn away.
    Ssh,
}

/// Tells from a client's first bytes what it speaks; `None` while they may be either's.
pub fn protocol_of(first: &[u8]) -> Option<Protocol> {
    if first.starts_with(GREETING) {
        Some(Protocol::Direct)
    } else if GREETING.starts_with(first) {
        None
    } else {
        Some(Protocol::Ssh)
    }
}

#[cfg(test)]
mod tests;
