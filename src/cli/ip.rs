//! `nixtail ip`: this node's addresses.

use super::{print, socket::SocketArgs, status};
use crate::report::{Exit, Failure};

/// Print this node's addresses inside the tailnet.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Only the IPv4 address.
    #[arg(short = '4', conflicts_with = "v6")]
    v4: bool,
    /// Only the IPv6 address.
    #[arg(short = '6')]
    v6: bool,
    #[command(flatten)]
    socket: SocketArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let status = status::get(&args.socket.client()?)?;
    let wanted = |address: &&std::net::IpAddr| !(args.v4 && address.is_ipv6() || args.v6 && address.is_ipv4());
    let addresses: Vec<_> = status.own.addresses.iter().filter(wanted).collect();
    if addresses.is_empty() {
        return Err(Failure::new(Exit::Unavailable, "this node has no such address in its tailnet"));
    }
    addresses.into_iter().try_for_each(print)
}
