//! System calls: a train over loopback as src/net/socket.rs sends and receives it, whole or datagram by datagram.

use std::io::{ErrorKind, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use divan::Bencher;
use divan::counter::BytesCount;
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};

use crate::{SEALED, TRAIN};

const BYTES: usize = TRAIN * SEALED;
/// As src/net/socket.rs has it: buffers for one call, each for a whole train.
const RECEIVE_BATCH: usize = 8;
const RECEIVE_BUFFER: usize = 64 << 10;

struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
}

impl Socket {
    fn bind() -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let state = UdpSocketState::new((&socket).into()).unwrap();
        Self { socket, state }
    }

    /// Sends all at once, or one by one.
    fn send(&self, destination: SocketAddr, train: &[u8], is_whole: bool) {
        let size = if is_whole { train.len() } else { SEALED };
        for contents in train.chunks(size) {
            let segment_size = is_whole.then_some(SEALED);
            let transmit = Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
            self.state.try_send((&self.socket).into(), &transmit).unwrap();
        }
    }

    /// Receives all that is there. Returns how many bytes.
    fn receive(&self, buffers: &mut [Vec<u8>]) -> usize {
        let mut taken = 0;
        while taken < BYTES {
            let mut slices = buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer));
            let mut slices: [IoSliceMut<'_>; RECEIVE_BATCH] = std::array::from_fn(|_| slices.next().unwrap());
            let mut meta = [RecvMeta::default(); RECEIVE_BATCH];
            match self.state.recv((&self.socket).into(), &mut slices, &mut meta) {
                Ok(count) => taken += meta[..count].iter().map(|meta| meta.len).sum::<usize>(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
        taken
    }
}

#[divan::bench(args = ["GSO", "one by one"], sample_size = 1, sample_count = 2000)]
fn udp_send(bencher: Bencher<'_, '_>, how: &str) {
    let (from, to) = (Socket::bind(), Socket::bind());
    let (train, destination) = (vec![0x5a; BYTES], to.socket.local_addr().unwrap());
    let mut buffers = vec![vec![0; RECEIVE_BUFFER]; RECEIVE_BATCH];
    let emptied = || to.receive(&mut buffers);
    bencher
        .counter(BytesCount::new(BYTES))
        .with_inputs(emptied)
        .bench_local_values(|_| from.send(destination, &train, how == "GSO"));
}

#[divan::bench(args = ["GRO", "one by one"], sample_size = 1, sample_count = 2000)]
fn udp_receive(bencher: Bencher<'_, '_>, how: &str) {
    let (from, to) = (Socket::bind(), Socket::bind());
    let (train, destination) = (vec![0x5a; BYTES], to.socket.local_addr().unwrap());
    let mut buffers = vec![vec![0; RECEIVE_BUFFER]; RECEIVE_BATCH];
    bencher
        .counter(BytesCount::new(BYTES))
        .with_inputs(|| from.send(destination, &train, how == "GRO"))
        .bench_local_values(|()| assert_eq!(to.receive(&mut buffers), BYTES));
}
