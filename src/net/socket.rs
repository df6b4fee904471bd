//! The UDP sockets of a node: one for each address family, with the kernel's batching (GSO and GRO) where it has it.
#![allow(unsafe_code, reason = "IPV6_DONTFRAG has no safe setter")]

use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::{Context, Poll};

use quinn_udp::{RecvMeta, UdpSocketState};
#[cfg(target_os = "linux")]
use rustix::net::sockopt;
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// What is asked of the kernel for each buffer, as tailscaled does; without privilege the kernel gives less.
const SOCKET_BUFFER: usize = 7 << 20;

/// Receive buffers handed to the kernel in one call. Each holds a whole GRO train.
const RECEIVE_BATCH: usize = 8;

/// One GRO train is at most a whole IP packet long.
const RECEIVE_BUFFER: usize = 64 << 10;

/// The longest run of segments that one send may hold: the payload of the longest UDP datagram over IPv4,
/// rounded down.
pub(crate) const TRANSMIT_BUFFER: usize = 65_000;

/// The most segments the kernel takes in one send (`UDP_MAX_SEGMENTS` of older kernels).
pub(crate) const MAX_SEGMENTS: usize = 64;

/// The UDP sockets of one node. At least one family is bound.
#[derive(Debug)]
pub(crate) struct Sockets {
    v4: Option<Socket>,
    v6: Option<Socket>,
}

/// Why a send stopped before its end: the kernel's buffer is full. `sent` bytes went out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Blocked {
    pub(crate) sent: usize,
}

/// What became of datagrams that the kernel was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// They went out, or were dropped by the network for a reason that may pass.
    Out,
    /// No route leads there.
    Unreachable,
}

/// Whether the kernel may be handed trains to cut up: `NIXTAIL_GSO=0` forbids it.
pub(crate) fn is_offload_wanted() -> bool {
    std::env::var_os("NIXTAIL_GSO").is_none_or(|value| value != "0")
}

impl Sockets {
    /// Binds both families, to the same port where that is free. `port` 0 lets the kernel choose.
    ///
    /// # Errors
    /// The bind's own error, when neither family can be bound.
    pub(crate) fn bind(port: u16) -> io::Result<Self> {
        Self::bind_with(port, is_offload_wanted())
    }

    /// As [`Self::bind`]; `offload` says whether the kernel is handed trains to cut up, where it can.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub(crate) fn bind_with(port: u16, offload: bool) -> io::Result<Self> {
        let v4 = Socket::bind((Ipv4Addr::UNSPECIFIED, port).into(), offload);
        let wanted = v4.as_ref().map_or(port, |socket| socket.port);
        let v6 = Socket::bind((Ipv6Addr::UNSPECIFIED, wanted).into(), offload)
            .or_else(|_| Socket::bind((Ipv6Addr::UNSPECIFIED, 0).into(), offload));
        match (v4, v6) {
            (Err(error), Err(_)) => Err(error),
            (v4, v6) => Ok(Self { v4: v4.ok(), v6: v6.ok() }),
        }
    }

    /// The port that the IPv4 socket is bound to.
    pub(crate) fn port_v4(&self) -> Option<u16> {
        self.v4.as_ref().map(|socket| socket.port)
    }

    /// The port that the IPv6 socket is bound to.
    pub(crate) fn port_v6(&self) -> Option<u16> {
        self.v6.as_ref().map(|socket| socket.port)
    }

    /// Sends `data` to `destination` as datagrams of `segment_size`, the last of which may be shorter.
    ///
    /// What the network refuses is dropped, as on any UDP path. A full send buffer is told, and that no route leads there.
    pub(crate) fn send(&self, destination: SocketAddr, data: &[u8], segment_size: usize) -> Result<Sent, Blocked> {
        match self.family(destination) {
            Some(socket) => socket.send(destination, data, segment_size),
            None => Ok(Sent::Unreachable),
        }
    }

    /// Whether a send to `destination` may go on. Wakes the caller when it may.
    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>, destination: SocketAddr) -> Poll<()> {
        match self.family(destination) {
            Some(socket) => socket.io.poll_send_ready(cx).map(|_| ()),
            None => Poll::Ready(()),
        }
    }

    /// Ready when one of the sockets may have datagrams.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut ready = Poll::Pending;
        for socket in [&self.v4, &self.v6].into_iter().flatten() {
            if socket.io.poll_recv_ready(cx).is_ready() {
                ready = Poll::Ready(());
            }
        }
        ready
    }

    /// Takes what the kernel holds, one batch from each socket, and hands each GRO train to `deliver` with its source
    /// and segment size. Answers whether anything came.
    pub(crate) fn receive(
        &self,
        buffers: &mut ReceiveBuffers,
        mut deliver: impl FnMut(SocketAddr, &mut [u8], usize),
    ) -> bool {
        let mut any = false;
        for socket in [&self.v4, &self.v6].into_iter().flatten() {
            any |= socket.receive(buffers, &mut deliver);
        }
        any
    }

    fn family(&self, destination: SocketAddr) -> Option<&Socket> {
        if destination.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }
}

/// The memory that received trains are read into.
#[derive(Debug)]
pub(crate) struct ReceiveBuffers {
    data: Vec<u8>,
}

impl Default for ReceiveBuffers {
    fn default() -> Self {
        Self { data: vec![0; RECEIVE_BATCH * RECEIVE_BUFFER] }
    }
}

#[derive(Debug)]
struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    port: u16,
    offload: bool,
}

impl Socket {
    fn bind(address: SocketAddr, offload: bool) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::DGRAM,
            Some(socket2::Protocol::UDP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        let socket = std::net::UdpSocket::from(socket);
        let state = UdpSocketState::new((&socket).into())?;
        // Full privilege gets the whole buffer; without it, the kernel's limit.
        if !force_receive_buffer(&socket) {
            let _ = state.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER);
        }
        let _ = state.set_send_buffer_size((&socket).into(), SOCKET_BUFFER);
        allow_fragments(&socket, address.is_ipv6());
        let port = socket.local_addr()?.port();
        Ok(Self { io: UdpSocket::from_std(socket)?, state, port, offload })
    }

    fn send(&self, destination: SocketAddr, data: &[u8], segment_size: usize) -> Result<Sent, Blocked> {
        let segment_size = segment_size.max(1);
        let segments = data.len().div_ceil(segment_size);
        if segments <= 1 {
            return self.send_once(destination, data, None).map_or_else(|error| outcome(&error, 0), |()| Ok(Sent::Out));
        }
        if self.offload && segments <= self.state.max_gso_segments() {
            match self.send_once(destination, data, Some(segment_size)) {
                Ok(()) => return Ok(Sent::Out),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Blocked { sent: 0 }),
                // The device or the route can't segment (quinn-udp remembers the first), or a segment exceeds its MTU:
                // one by one the kernel may fragment them.
                Err(_) => {}
            }
        }
        for (index, segment) in data.chunks(segment_size).enumerate() {
            if let Err(error) = self.send_once(destination, segment, None)
                && outcome(&error, index * segment_size)? == Sent::Unreachable
            {
                return Ok(Sent::Unreachable);
            }
        }
        Ok(Sent::Out)
    }

    fn send_once(&self, destination: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        let transmit = quinn_udp::Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
        self.io.try_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), &transmit))
    }

    fn receive(&self, buffers: &mut ReceiveBuffers, deliver: &mut impl FnMut(SocketAddr, &mut [u8], usize)) -> bool {
        let mut metas = [RecvMeta::default(); RECEIVE_BATCH];
        let received = {
            let mut slices = buffers.data.chunks_exact_mut(RECEIVE_BUFFER).map(IoSliceMut::new);
            // The vector holds exactly RECEIVE_BATCH chunks.
            let mut slices: [IoSliceMut<'_>; RECEIVE_BATCH] =
                std::array::from_fn(|_| slices.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
            self.io.try_io(Interest::READABLE, || self.state.recv((&self.io).into(), &mut slices, &mut metas))
        };
        let count = match received {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => {
                // A pending ICMP error, say: it is taken by reading it, and the next call reads on.
                tracing::debug!(%error, "a UDP receive failed");
                return true;
            }
        };
        for (meta, buffer) in metas.iter().zip(buffers.data.chunks_exact_mut(RECEIVE_BUFFER)).take(count) {
            if let Some(train) = buffer.get_mut(..meta.len).filter(|train| !train.is_empty()) {
                deliver(meta.addr, train, meta.stride.max(1));
            }
        }
        count > 0
    }
}

fn outcome(error: &io::Error, sent: usize) -> Result<Sent, Blocked> {
    if error.kind() == io::ErrorKind::WouldBlock {
        return Err(Blocked { sent });
    }
    tracing::trace!(%error, "a datagram was refused by the network");
    match error.kind() {
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Ok(Sent::Unreachable),
        _ => Ok(Sent::Out),
    }
}

/// Undoes quinn-udp's don't-fragment: an inner packet of 1280 bytes is 1340 or 1360 on the wire, and must get through a
/// network whose MTU is 1280 rather than vanish.
#[cfg(target_os = "linux")]
fn allow_fragments(socket: &std::net::UdpSocket, v6: bool) {
    if v6 {
        let _ = sockopt::set_ipv6_mtu_discover(socket, sockopt::Ipv6PathMtuDiscovery::DONT);
        switch_off(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG);
    } else {
        let _ = sockopt::set_ip_mtu_discover(socket, sockopt::Ipv4PathMtuDiscovery::DONT);
    }
}

/// The same where one option says it, for either family.
#[cfg(not(target_os = "linux"))]
fn allow_fragments(socket: &std::net::UdpSocket, v6: bool) {
    let (level, option) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG) } else { (libc::IPPROTO_IP, libc::IP_DONTFRAG) };
    switch_off(socket, level, option);
}

/// Makes the receive buffer larger than the system allows everybody; only root may, and only Linux can.
#[cfg(target_os = "linux")]
fn force_receive_buffer(socket: &std::net::UdpSocket) -> bool {
    sockopt::set_socket_recv_buffer_size_force(socket, SOCKET_BUFFER).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn force_receive_buffer(_: &std::net::UdpSocket) -> bool {
    false
}

/// Sets an option that is an integer to 0.
fn switch_off(socket: &std::net::UdpSocket, level: libc::c_int, option: libc::c_int) {
    use std::os::fd::AsRawFd;
    let off: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the kernel reads exactly the size of the
    // integer that `off` is.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const off).cast(),
            size_of_val(&off) as libc::socklen_t,
        )
    };
    if result != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "datagrams may not be fragmented");
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    async fn collect(sockets: &Sockets, wanted: usize) -> Vec<Vec<u8>> {
        let mut buffers = ReceiveBuffers::default();
        let mut datagrams = Vec::new();
        let all = async {
            while datagrams.len() < wanted {
                poll_fn(|cx| sockets.poll_readable(cx)).await;
                sockets.receive(&mut buffers, |_, train, size| {
                    datagrams.extend(train.chunks(size).map(<[u8]>::to_vec));
                });
            }
        };
        tokio::time::timeout(Duration::from_secs(5), all).await.unwrap();
        datagrams
    }

    fn sample() -> Vec<u8> {
        (0..40 * 1312 + 100).map(|n| (n % 251) as u8).collect()
    }

    #[tokio::test]
    async fn a_train_of_segments_arrives_as_the_datagrams_it_was_cut_into() {
        let (a, b) = (Sockets::bind(0).unwrap(), Sockets::bind(0).unwrap());
        let data = sample();
        let destination = SocketAddr::from((Ipv4Addr::LOCALHOST, b.port_v4().unwrap()));
        poll_fn(|cx| a.poll_writable(cx, destination)).await;
        a.send(destination, &data, 1312).unwrap();
        let datagrams = collect(&b, 41).await;
        assert_eq!(datagrams.last().unwrap().len(), 100);
        assert_eq!(datagrams.concat(), data);
    }

    #[tokio::test]
    async fn without_offload_the_same_datagrams_go_out_one_by_one() {
        let (mut a, b) = (Sockets::bind(0).unwrap(), Sockets::bind(0).unwrap());
        a.v4.as_mut().unwrap().offload = false;
        let data = sample();
        let destination = SocketAddr::from((Ipv4Addr::LOCALHOST, b.port_v4().unwrap()));
        poll_fn(|cx| a.poll_writable(cx, destination)).await;
        a.send(destination, &data, 1312).unwrap();
        assert_eq!(collect(&b, 41).await.concat(), data);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn datagrams_longer_than_any_mtu_are_fragmented_not_refused() {
        let (a, b) = (Sockets::bind(0).unwrap(), Sockets::bind(0).unwrap());
        for address in ["127.0.0.1", "::1"] {
            let Some(port) = (if address == "::1" { b.port_v6() } else { b.port_v4() }) else { continue };
            let socket = a.family(SocketAddr::new(address.parse().unwrap(), port)).unwrap();
            if address == "127.0.0.1" {
                let mode = sockopt::ip_mtu_discover(&socket.io).unwrap();
                assert_eq!(mode, sockopt::Ipv4PathMtuDiscovery::DONT);
            } else {
                let mode = sockopt::ipv6_mtu_discover(&socket.io).unwrap();
                assert_eq!(mode, sockopt::Ipv6PathMtuDiscovery::DONT);
            }
        }
    }

    #[tokio::test]
    async fn a_destination_without_a_socket_of_its_family_is_dropped() {
        let mut a = Sockets::bind(0).unwrap();
        a.v6 = None;
        assert_eq!(a.send("[::1]:9".parse().unwrap(), &[1, 2, 3], 3), Ok(Sent::Unreachable));
    }
}
