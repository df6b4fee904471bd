//! The kernel's own news (rtnetlink(7)), which everybody may listen to. Only what kind of news it is gets read; what there is
//! now is asked of the system anew.
#![allow(unsafe_code, reason = "tokio can't know that a descriptor stays the same one")]

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `RTMGRP_LINK`, and `_IFADDR` and `_ROUTE` of IPv4 and IPv6.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// Some dozen messages.
const BUFFER: usize = 16 << 10;
/// Length, type, flags, sequence, port.
const HEADER_LEN: usize = 16;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
/// `RTM_NEWLINK` to `RTM_DELADDR`.
const LINKS_AND_ADDRESSES: std::ops::RangeInclusive<u16> = 16..=21;
/// Routes to our own addresses, which come with them.
const TABLE_LOCAL: u8 = 255;
/// `RTM_F_CLONED`: the kernel's cache, not a route.
const CLONED: u32 = 0x200;

/// Listens to the kernel.
#[derive(Debug)]
pub(crate) struct LinkWatch {
    /// `None` where the sandbox has no such sockets.
    socket: Option<AsyncFd<OwnedFd>>,
    buffer: Vec<u8>,
}

impl LinkWatch {
    /// Begins to listen, within a tokio runtime. Where that isn't allowed, it tells nothing.
    pub(crate) fn start() -> Self {
        let socket = open().inspect_err(|error| {
            tracing::info!(%error, "the kernel doesn't tell of changes of addresses here: they are looked at every few seconds");
        });
        Self { socket: socket.ok(), buffer: vec![0; BUFFER] }
    }

    /// Waits for a change of interfaces, addresses or routes. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        loop {
            let Some(socket) = &self.socket else { return std::future::pending().await };
            let buffer = &mut self.buffer;
            let read = socket
                .async_io(Interest::READABLE, |socket| Ok(recv(socket, buffer.as_mut_slice(), RecvFlags::empty())?.0));
            match read.await {
                Ok(length) => {
                    if is_news(self.buffer.get(..length).unwrap_or_default()) {
                        return;
                    }
                }
                // It fell behind, and some news is lost.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => return,
                Err(error) => {
                    tracing::warn!(%error, "the kernel tells of changes of addresses no more");
                    self.socket = None;
                }
            }
        }
    }
}

fn open() -> std::io::Result<AsyncFd<OwnedFd>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
    // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped, which `AsyncFd` does after it was deregistered.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// Whether one of the messages in `data` tells of a change that matters.
fn is_news(mut data: &[u8]) -> bool {
    while let Some((header, _)) = data.split_first_chunk::<HEADER_LEN>() {
        let [l0, l1, l2, l3, t0, t1, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let Some(body) = data.get(HEADER_LEN..length) else { return false };
        let matters = match u16::from_ne_bytes([t0, t1]) {
            NEW_ROUTE | DEL_ROUTE => is_route(body),
            kind => LINKS_AND_ADDRESSES.contains(&kind),
        };
        if matters {
            return true;
        }
        data = data.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn is_route(body: &[u8]) -> bool {
    match body.first_chunk::<12>() {
        Some(&[_, _, _, _, table, _, _, _, f0, f1, f2, f3]) => {
            table != TABLE_LOCAL && u32::from_ne_bytes([f0, f1, f2, f3]) & CLONED == 0
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_LEN + body.len()).unwrap();
        let mut message = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], body].concat();
        message.resize(message.len().next_multiple_of(4), 0);
        message
    }

    fn route(table: u8, flags: u32) -> Vec<u8> {
        let body = [&[2, 24, 0, 0, table, 2, 0, 1][..], &flags.to_ne_bytes(), &[9; 5]].concat();
        message(NEW_ROUTE, &body)
    }

    #[test]
    fn what_matters_is_told_from_what_does_not() {
        assert!(is_news(&message(20, &[0; 9])));
        assert!(is_news(&route(254, 0)));
        assert!(is_news(&[route(TABLE_LOCAL, 0), message(21, &[1; 8])].concat()));
        assert!(!is_news(&[route(TABLE_LOCAL, 0), route(254, CLONED), message(3, &[])].concat()));
        assert!(!is_news(&[]));
    }

    #[test]
    fn what_makes_no_sense_is_no_news() {
        for length in [0_u32, 3, 15, 17, u32::MAX] {
            let mut wrong = message(20, &[]);
            wrong[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(!is_news(&wrong), "{length}");
        }
    }
}
