//! The SSH endpoint: what listens on port 22 inside the tunnel, and runs one short list of commands.
//!
//! Who the peer is, the tunnel has settled before a byte comes here (the node key of its WireGuard session); whether it
//! may log in, the netmap's SSH policy says ([`AdmissionControl`]); what it may run, [`nixtail_proto::nix_command`]. No
//! credential is looked at, no shell is started, and there is no pty, no forwarding, no sftp and no environment.
//!
//! ```text
//! stream ── GatedStream ── russh ── Handler::data ── InputQueue ── child's stdin
//!              ▲ gate                                   │ fullness
//!              └──────────────── Windows ◄──────────────┘
//! child's stdout, stderr ── pump (waits for the client's window) ── russh ── stream
//! ```

mod admission;
mod connection;
mod endpoint;
mod flow;
mod gated_stream;
mod handler;
mod host_key;
mod netmap_authorizer;
mod session;

pub use admission::{Admission, AdmissionControl, Authorizer, Peer};
pub use endpoint::{
    AllowedCommands, ConnectionEnd, ConnectionReport, ControlReply, ControlVerbs, Endpoint, EndpointConfig, Limits,
    SshError,
};
pub use host_key::{HostKey, HostKeyError};
pub use netmap_authorizer::NetmapAuthorizer;
