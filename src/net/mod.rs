//! Where packets meet the operating system: UDP sockets, DERP connections, and the thread that owns them.

pub(crate) mod connect;
pub(crate) mod dataplane;
pub mod derp;
pub(crate) mod http;
pub(crate) mod interfaces;
pub(crate) mod link_watch;
mod memory;
pub(crate) mod peer_user;
pub(crate) mod pipe;
pub(crate) mod socket;
pub(crate) mod stun_servers;
#[cfg(feature = "cli")]
pub(crate) mod survey;
pub(crate) mod tls;
