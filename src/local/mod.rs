//! The local API: HTTP/1 over a Unix socket that only the agent's own user (or root) can use.
//!
//! [`Server`] serves [`Routes`]: those of every agent and whatever a role adds with [`Routes::add`].
//! [`Client`] is what the command line talks to it with. Answers are JSON with a `schema` number; a failure is a
//! [`Failure`](crate::report::Failure) in `error`.

mod client;
mod routes;
mod server;
mod socket_path;

pub use client::Client;
pub use routes::{Request, Routes};
pub use server::{ServeError, Server};
pub use socket_path::{BindError, BoundSocket, SocketPath};

/// The `schema` number of every answer. It grows when a key changes its meaning or goes; new keys may come without.
pub const SCHEMA: u32 = 1;

#[cfg(test)]
mod tests;
