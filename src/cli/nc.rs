//! `nixtail nc`: a stream to a peer's port on stdin and stdout, or handed to ssh as a descriptor.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Deserialize, Serialize};

use super::socket::SocketArgs;
use crate::agent::DIAL_DEADLINE;
use crate::report::{Exit, Failure};

/// The dial's own deadline, and a little for its answer to get here.
const DEADLINE: Duration = DIAL_DEADLINE.saturating_add(Duration::from_secs(5));
/// Bytes moved at once.
const BUFFER: usize = 64 << 10;

/// Connect stdin and stdout to a port of a peer; ssh's ProxyCommand.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The peer's name, full name, or tailnet address.
    host: String,
    /// The TCP port.
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Hand the connected stream over as a descriptor on stdout and end: ssh's ProxyUseFdpass.
    #[arg(long)]
    fdpass: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

/// What `POST /dial` takes.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let target = Target { host: args.host.clone(), port: args.port };
    let stream = args.socket.client()?.open("/dial", &target, DEADLINE)?;
    if args.fdpass { hand_over(&stream) } else { join(stream) }
}

/// Sends the stream's descriptor over stdout, with the one byte that OpenSSH expects beside it (`monitor_fdpass.c`).
fn hand_over(stream: &UnixStream) -> Result<(), Failure> {
    let descriptors = [stream.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Failure::new(Exit::General, "the descriptor doesn't fit into a message"));
    }
    match sendmsg(io::stdout(), &[IoSlice::new(&[0])], &mut control, SendFlags::empty()) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::NOTSOCK) => {
            Err(Failure::new(Exit::Usage, "stdout is no socket, so no descriptor can be handed over")
                .next("--fdpass is for ssh's `ProxyUseFdpass yes`; leave it out elsewhere"))
        }
        Err(error) => Err(Failure::new(Exit::General, format!("the descriptor can't be handed over: {error}"))),
    }
}

/// Copies both ways. Ends when the peer has sent everything: what it hasn't read by then, nobody will.
fn join(stream: UnixStream) -> Result<(), Failure> {
    let mut sending = stream.try_clone().map_err(|error| broken(&error))?;
    let mut receiving = stream;
    // Detached on purpose: a read of stdin can't be interrupted, and the process ends without it.
    std::thread::spawn(move || {
        let sent = copy(&mut io::stdin().lock(), &mut sending);
        if let Err(error) = sent {
            tracing::debug!(%error, "stdin ended badly");
        }
        let _ = sending.shutdown(Shutdown::Write);
    });
    copy(&mut receiving, &mut io::stdout().lock()).map_err(|error| broken(&error))
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        to.write_all(buffer.get(..length).unwrap_or_default())?;
        to.flush()?;
    }
}

fn broken(error: &io::Error) -> Failure {
    Failure::new(Exit::Unavailable, format!("the stream broke: {error}"))
}
