//! Who is at the other end of a Unix socket.

#![cfg_attr(not(target_os = "linux"), allow(unsafe_code, reason = "getpeereid has no safe form; see SAFETY below"))]

use std::io;
use std::os::unix::net::UnixStream;

use rustix::process::Uid;

/// The user of the process that listens, or connected, there.
///
/// # Errors
/// What the system says.
#[cfg(target_os = "linux")]
pub(crate) fn peer_user(stream: &UnixStream) -> io::Result<Uid> {
    Ok(rustix::net::sockopt::socket_peercred(stream)?.uid)
}

/// The user of the process that listens, or connected, there: getpeereid(3), which macOS and the BSDs have.
///
/// # Errors
/// What the system says.
#[cfg(not(target_os = "linux"))]
pub(crate) fn peer_user(stream: &UnixStream) -> io::Result<Uid> {
    use std::os::fd::AsRawFd as _;
    let (mut user, mut group): (libc::uid_t, libc::gid_t) = (0, 0);
    // SAFETY: the descriptor is open for as long as `stream` is borrowed, and both pointers are to integers of ours.
    let result = unsafe { libc::getpeereid(stream.as_raw_fd(), &raw mut user, &raw mut group) };
    if result == 0 { Ok(Uid::from_raw(user)) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_of_our_own_pair_is_us() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(peer_user(&one).unwrap(), rustix::process::geteuid());
    }
}
