//! ICMP echo, version 4 and 6 (RFC 792, RFC 4443 §4): answers to it, requests, and recognising replies.

use std::net::IpAddr;

use super::{Packet, Transport, build, protocol};

const ECHO_REPLY_V4: u8 = 0;
const UNREACHABLE_V4: u8 = 3;
const ECHO_REQUEST_V4: u8 = 8;
const TIME_EXCEEDED_V4: u8 = 11;
const PARAMETER_PROBLEM_V4: u8 = 12;
const UNREACHABLE_V6: u8 = 1;
const PACKET_TOO_BIG_V6: u8 = 2;
const TIME_EXCEEDED_V6: u8 = 3;
const PARAMETER_PROBLEM_V6: u8 = 4;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Type, code, checksum, and the identifier and sequence number of an echo.
const ECHO_HEADER: usize = 8;

/// What sort of ICMP message a packet is, as far as we tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Someone asks whether we are there.
    EchoRequest,
    /// The answer to such a question of ours.
    EchoReply,
    /// Unreachable, too big, time exceeded, parameter problem: about a packet that we sent.
    Error,
    /// Anything else.
    Other,
}

/// Identifier and sequence number of an echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Echo {
    /// Tells one asker from another.
    pub identifier: u16,
    /// Tells one question from another.
    pub sequence: u16,
}

/// Which sort of ICMP message `packet` is; `None` if it isn't ICMP of its own family.
pub fn kind(packet: &Packet<'_>) -> Option<Kind> {
    let Transport::Icmp { kind, code } = packet.transport else {
        return None;
    };
    if packet.payload.len() < ECHO_HEADER {
        return Some(Kind::Other);
    }
    Some(match (packet.destination, kind, code) {
        (IpAddr::V4(_), ECHO_REQUEST_V4, 0) | (IpAddr::V6(_), ECHO_REQUEST_V6, 0) => Kind::EchoRequest,
        (IpAddr::V4(_), ECHO_REPLY_V4, 0) | (IpAddr::V6(_), ECHO_REPLY_V6, 0) => Kind::EchoReply,
        (IpAddr::V4(_), UNREACHABLE_V4 | TIME_EXCEEDED_V4 | PARAMETER_PROBLEM_V4, _)
        | (IpAddr::V6(_), UNREACHABLE_V6 | PACKET_TOO_BIG_V6 | TIME_EXCEEDED_V6 | PARAMETER_PROBLEM_V6, _) => {
            Kind::Error
        }
        _ => Kind::Other,
    })
}

/// The answer to an echo request, or `None` if `packet` isn't a whole one.
pub fn reply(packet: &Packet<'_>) -> Option<Vec<u8>> {
    if packet.fragment || kind(packet)? != Kind::EchoRequest {
        return None;
    }
    let answer = match packet.destination {
        IpAddr::V4(_) => ECHO_REPLY_V4,
        IpAddr::V6(_) => ECHO_REPLY_V6,
    };
    let rest = packet.payload.get(4..)?;
    message(packet.destination, packet.source, answer, rest)
}

/// An echo request with `data` to be sent back. `None` if the addresses are of two families.
pub fn request(source: IpAddr, destination: IpAddr, echo: Echo, data: &[u8]) -> Option<Vec<u8>> {
    let kind = match destination {
        IpAddr::V4(_) => ECHO_REQUEST_V4,
        IpAddr::V6(_) => ECHO_REQUEST_V6,
    };
    let mut rest = Vec::with_capacity(4 + data.len());
    rest.extend_from_slice(&echo.identifier.to_be_bytes());
    rest.extend_from_slice(&echo.sequence.to_be_bytes());
    rest.extend_from_slice(data);
    message(source, destination, kind, &rest)
}

/// Which question `packet` answers; `None` if it isn't a whole echo reply.
pub fn as_reply(packet: &Packet<'_>) -> Option<Echo> {
    if packet.fragment || kind(packet)? != Kind::EchoReply {
        return None;
    }
    let [_, _, _, _, a, b, c, d] = *packet.payload.first_chunk::<ECHO_HEADER>()?;
    Some(Echo { identifier: u16::from_be_bytes([a, b]), sequence: u16::from_be_bytes([c, d]) })
}

fn message(source: IpAddr, destination: IpAddr, kind: u8, rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::with_capacity(4 + rest.len());
    body.extend_from_slice(&[kind, 0, 0, 0]);
    body.extend_from_slice(rest);
    let (number, check) = match destination {
        IpAddr::V4(_) => (protocol::ICMP_V4, build::checksum(&body)),
        IpAddr::V6(_) => {
            let number = protocol::ICMP_V6;
            let check = build::pseudo_checksum(source, destination, number, &body);
            (number, check)
        }
    };
    body.get_mut(2..4)?.copy_from_slice(&check.to_be_bytes());
    build::ip(source, destination, number, &body)
}
