//! What passes between the program that Nix starts and the agent: one message with a builder's name and two descriptors,
//! and then the agent's frames ([`nixtail_proto::direct`], without output) until the last word.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The longest message, in bytes: a host name and its end of line.
const MAX_MESSAGE: usize = 256;

/// Nix's end of a session, handed over.
#[derive(Debug)]
pub(super) struct Handover {
    /// The builder that is asked for. Checked to be there by whoever looks it up.
    pub(super) builder: String,
    /// What Nix writes to.
    pub(super) stdin: OwnedFd,
    /// What Nix reads from.
    pub(super) stdout: OwnedFd,
}

/// Sends `builder` and this process' standard input and output.
pub(super) fn send(to: &StdUnixStream, builder: &str, stdin: BorrowedFd<'_>, stdout: BorrowedFd<'_>) -> io::Result<()> {
    let message = format!("{builder}\n");
    let descriptors = [stdin, stdout];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if message.len() > MAX_MESSAGE || !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the builder's name is too long"));
    }
    // Rust's runtime has switched SIGPIPE off.
    let sent = sendmsg(to, &[IoSlice::new(message.as_bytes())], &mut control, SendFlags::empty())?;
    if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives what [`send`] sent. Cancel safe.
///
/// # Errors
/// When it is anything else.
pub(super) async fn receive(from: &UnixStream) -> io::Result<Handover> {
    loop {
        from.readable().await?;
        match from.try_io(Interest::READABLE, || receive_now(from.as_fd())) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

/// Not to wait, and to have what comes closed in children.
#[cfg(target_os = "linux")]
const RECEIVE: RecvFlags = RecvFlags::CMSG_CLOEXEC.union(RecvFlags::DONTWAIT);
/// Elsewhere that can't be had with the message; [`receive_now`] does it right after.
#[cfg(not(target_os = "linux"))]
const RECEIVE: RecvFlags = RecvFlags::DONTWAIT;

fn receive_now(from: BorrowedFd<'_>) -> io::Result<Handover> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut message = [0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(from, &mut [IoSliceMut::new(&mut message)], &mut control, RECEIVE)?;
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let both = descriptors.next().and_then(|mut rights| Some((rights.next()?, rights.next()?)));
    let (stdin, stdout) = both.ok_or_else(|| invalid("no descriptors came with the message"))?;
    for descriptor in [&stdin, &stdout] {
        fcntl_setfd(descriptor, FdFlags::CLOEXEC)?;
    }
    // Written at once and short, it comes in one piece.
    let text = message.get(..received.bytes).and_then(|text| text.strip_suffix(b"\n"));
    let builder = text.and_then(|text| std::str::from_utf8(text).ok()).ok_or_else(|| invalid("it names no builder"))?;
    Ok(Handover { builder: builder.to_owned(), stdin, stdout })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[tokio::test]
    async fn descriptors_arrive_with_the_name() {
        let (near, far) = StdUnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        let (mut nix, stdin) = StdUnixStream::pair().unwrap();
        send(&near, "builder-1", stdin.as_fd(), stdin.as_fd()).unwrap();
        let got = receive(&UnixStream::from_std(far).unwrap()).await.unwrap();
        assert_eq!(got.builder, "builder-1");
        drop(stdin);
        nix.write_all(b"x").unwrap();
        let mut byte = [0];
        StdUnixStream::from(got.stdin).read_exact(&mut byte).unwrap();
        StdUnixStream::from(got.stdout).write_all(b"y").unwrap();
        nix.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"y");
    }

    #[tokio::test]
    async fn a_message_without_descriptors_or_name_is_refused() {
        let (mut near, far) = StdUnixStream::pair().unwrap();
        far.set_nonblocking(true).unwrap();
        near.write_all(b"builder-1\n").unwrap();
        let far = UnixStream::from_std(far).unwrap();
        assert_eq!(receive(&far).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        send(&near, "a\nb", near.as_fd(), near.as_fd()).unwrap();
        assert_eq!(receive(&far).await.unwrap().builder, "a\nb", "no builder has such a name");
        assert!(send(&near, &"x".repeat(300), near.as_fd(), near.as_fd()).is_err());
        drop(near);
        assert!(receive(&far).await.is_err());
    }
}
