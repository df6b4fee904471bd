//! What the handshakes of all peers share: our static key, and how many of them this node makes.
//!
//! A handshake costs four Diffie-Hellmans, so strangers must not be able to order them by the thousand. An initiation
//! must carry the right first MAC (the sender knows our public key), then fit into a budget of the whole node; beyond
//! the budget it is answered with a cookie (WireGuard paper §5.4.7), and only who returns it from the address that it
//! was sent to gets served, from a second budget.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use super::session::SessionError;
use crate::key::{NodePrivate, NodePublic};

/// Initiations per second that are looked at without a cookie: a tenth of a core.
const HANDSHAKES_PER_SECOND: u32 = 400;
/// How many may come at once: a tailnet's worth of peers that all saw us restart.
const HANDSHAKE_BURST: u32 = 400;
/// Bytes of a cookie reply.
pub const COOKIE_ROOM: usize = 64;

/// Our static key as boringtun wants it, and the limiter that it wants along, which limits nothing: its own would count
/// ten handshakes a second on the system's clock.
pub struct Identity {
    private: StaticSecret,
    public: PublicKey,
    limiter: Arc<RateLimiter>,
}

impl Identity {
    /// The identity that belongs to a node key.
    pub fn new(key: &NodePrivate) -> Self {
        let private = StaticSecret::from(*key.expose_bytes());
        let public = PublicKey::from(&private);
        let limiter = Arc::new(RateLimiter::new(&public, u64::MAX));
        Self { private, public, limiter }
    }

    pub(super) fn private(&self) -> StaticSecret {
        self.private.clone()
    }

    pub(super) fn public(&self) -> PublicKey {
        self.public
    }

    pub(super) fn limiter(&self) -> Arc<RateLimiter> {
        Arc::clone(&self.limiter)
    }
}

/// What to do with an initiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It says to be from this key: go on with that peer's session, if it is a peer.
    From(NodePublic),
    /// Too many at once: send back the cookie reply, so many bytes of the buffer.
    Challenge(usize),
}

/// Lets initiations in or not.
pub struct Gate {
    /// Always asks for a cookie.
    challenger: RateLimiter,
    open: Budget,
    with_cookie: Budget,
}

impl Gate {
    /// A gate with full budgets.
    pub fn new(identity: &Identity) -> Self {
        Self {
            challenger: RateLimiter::new(&identity.public, 0),
            open: Budget::default(),
            with_cookie: Budget::default(),
        }
    }

    /// Decides about the initiation `message` and finds out whose it is. `reply` has [`COOKIE_ROOM`].
    ///
    /// # Errors
    /// [`SessionError::WrongMac`] before any Diffie-Hellman; [`SessionError::Overloaded`] when both budgets are spent;
    /// [`SessionError::Forged`] when no key comes out.
    pub fn admit(
        &mut self,
        now: Instant,
        identity: &Identity,
        source: Source,
        message: &[u8],
        reply: &mut [u8],
    ) -> Result<Admission, SessionError> {
        let verified = match identity.limiter.verify_packet(None, message, reply) {
            Ok(Packet::HandshakeInit(initiation)) => initiation,
            Ok(_) => return Err(SessionError::Unexpected),
            Err(TunnResult::Err(error)) => return Err(error.into()),
            Err(_) => return Err(SessionError::Overloaded),
        };
        if !self.open.take(now) {
            match self.challenger.verify_packet(Some(source.address()), message, reply) {
                Ok(_) => {}
                Err(TunnResult::WriteToNetwork(cookie)) => return Ok(Admission::Challenge(cookie.len())),
                Err(_) => return Err(SessionError::Overloaded),
            }
            if !self.with_cookie.take(now) {
                return Err(SessionError::Overloaded);
            }
        }
        let half = parse_handshake_anon(&identity.private, &identity.public, &verified)?;
        Ok(Admission::From(NodePublic::from_bytes(half.peer_static_public)))
    }
}

/// Where a handshake message came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A UDP address.
    Udp(IpAddr),
    /// A relay, which has authenticated the sender.
    Derp(NodePublic),
}

impl Source {
    /// An address that a cookie can be bound to.
    pub fn address(self) -> IpAddr {
        match self {
            Self::Udp(address) => address,
            Self::Derp(key) => {
                let bytes = key.as_bytes().first_chunk().copied().unwrap_or_default();
                IpAddr::V6(Ipv6Addr::from(bytes))
            }
        }
    }
}

/// A token bucket.
#[derive(Debug)]
struct Budget {
    tokens: u32,
    filled: Option<Instant>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { tokens: HANDSHAKE_BURST, filled: None }
    }
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        let filled = *self.filled.get_or_insert(now);
        let elapsed = now.saturating_duration_since(filled);
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let earned = millis.saturating_mul(u64::from(HANDSHAKES_PER_SECOND)) / 1000;
        if earned > 0 {
            let earned_time = Duration::from_millis(earned.saturating_mul(1000) / u64::from(HANDSHAKES_PER_SECOND));
            let tokens = u64::from(self.tokens).saturating_add(earned).min(u64::from(HANDSHAKE_BURST));
            self.tokens = u32::try_from(tokens).unwrap_or(HANDSHAKE_BURST);
            self.filled = filled.checked_add(earned_time).filter(|at| *at <= now).or(Some(now));
        }
        let left = self.tokens.checked_sub(1);
        self.tokens = left.unwrap_or(0);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "virtual time needs an origin")]
    fn a_budget_is_spent_and_comes_back_with_time() {
        let start = Instant::now();
        let mut budget = Budget::default();
        let taken = (0..2 * HANDSHAKE_BURST).filter(|_| budget.take(start)).count();
        assert_eq!(taken, HANDSHAKE_BURST as usize);
        let later = start + Duration::from_millis(500);
        let taken = (0..2 * HANDSHAKE_BURST).filter(|_| budget.take(later)).count();
        assert_eq!(taken, HANDSHAKES_PER_SECOND as usize / 2);
        assert!(budget.take(later + Duration::from_secs(100_000_000)));
    }
}
