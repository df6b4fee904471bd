//! The system's calls: trains of sealed packets through UDP sockets on 127.0.0.1, as the dataplane sends and receives them.

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use nixtail_proto::tunnel::session::OVERHEAD;
use tokio::time::timeout;

use super::budget::{Budget, Meter};
use super::{Ends, LoopbackError, PACKET, PAYLOAD, TRAIN};
use crate::net::socket::{self, ReceiveBuffers, Sockets};

/// Bytes of a datagram.
const SEGMENT: usize = PACKET + OVERHEAD;
/// What hasn't come by then was dropped: loopback delivers within the send itself.
const LOST_AFTER: Duration = Duration::from_millis(50);
/// Trains in a row of which nothing comes.
const MAX_LOST: u32 = 20;

/// Whether the dataplane would hand over trains here.
pub(super) fn is_offload_wanted() -> bool {
    socket::is_offload_wanted()
}

pub(super) fn measure(budget: &Budget, offload: bool) -> Result<Ends, LoopbackError> {
    let failed = |error: &dyn std::fmt::Display| LoopbackError::Stage("system calls", error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| failed(&error))?.block_on(async {
        let bind = || Sockets::bind_with(0, offload).map_err(|error| failed(&error));
        let (near, far) = (bind()?, bind()?);
        let port = far.port_v4().ok_or_else(|| failed(&"no IPv4"))?;
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (train, mut buffers) = (vec![0x5a; TRAIN * SEGMENT], ReceiveBuffers::default());
        let (mut ends, mut rounds, mut lost) = (Ends::default(), budget.rounds(), 0);
        while rounds() {
            let mut meter = Meter::start();
            poll_fn(|cx| near.poll_writable(cx, to)).await;
            // A full buffer empties itself: what didn't go out isn't counted.
            let _ = near.send(to, &train, SEGMENT);
            meter.lap(&mut ends.sending);
            let mut arrived = 0;
            while arrived < train.len() && timeout(LOST_AFTER, poll_fn(|cx| far.poll_readable(cx))).await.is_ok() {
                far.receive(&mut buffers, |_, datagrams, _| arrived += datagrams.len());
            }
            meter.lap(&mut ends.receiving);
            ends.bytes += (arrived / SEGMENT * PAYLOAD) as u64;
            lost = if arrived == 0 { lost + 1 } else { 0 };
            if lost > MAX_LOST {
                return Err(failed(&"nothing arrives over 127.0.0.1"));
            }
        }
        Ok(ends)
    })
}
