//! What the handshakes of all peers share: our static key, and how many of them this node makes.
//!
//! A handshake costs four Diffie-Hellmans, so strangers must not be able to order them by the thousand. An initiation
//! must carry the right first MAC (the sender knows our public key), then fit into a budget of the whole node; beyond
//! the budget it is answered with a cookie (WireGuard paper §5.4.7), and only who returns it from the address that it
//! was sent to gets served, from a second budget, of which no address has more than a small share: so one that floods us
//! with cookies shuts out itself.

use std::collections::HashMap;
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
/// The share of one address (or IPv6 network of 64 bits) in the initiations with a cookie, as in WireGuard's own code.
const OF_ONE_SOURCE_PER_SECOND: u32 = 20;
/// How many of them may come at once.
const OF_ONE_SOURCE_BURST: u32 = 5;
/// Above so many addresses, those are forgotten that have their whole share again. More than twice as many can't have come since.
const SOURCES_KEPT: usize = 1024;
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
    sources: HashMap<IpAddr, Budget>,
}

impl Gate {
    /// A gate with full budgets.
    pub fn new(identity: &Identity) -> Self {
        Self {
            challenger: RateLimiter::new(&identity.public, 0),
            open: Budget::new(HANDSHAKES_PER_SECOND, HANDSHAKE_BURST),
            with_cookie: Budget::new(HANDSHAKES_PER_SECOND, HANDSHAKE_BURST),
            sources: HashMap::new(),
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
            if !self.with_cookie.has(now) || !self.take_share(now, source) || !self.with_cookie.take(now) {
                return Err(SessionError::Overloaded);
            }
        }
        let half = parse_handshake_anon(&identity.private, &identity.public, &verified)?;
        Ok(Admission::From(NodePublic::from_bytes(half.peer_static_public)))
    }

    /// What is left of a source's share. To be called only where the common budget has something left: that bounds the table.
    fn take_share(&mut self, now: Instant, source: Source) -> bool {
        if self.sources.len() > SOURCES_KEPT {
            self.sources.retain(|_, share| !share.is_full(now));
        }
        let new = || Budget::new(OF_ONE_SOURCE_PER_SECOND, OF_ONE_SOURCE_BURST);
        self.sources.entry(source.network()).or_insert_with(new).take(now)
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
    /// What a sender can't leave by choosing another address of its own: the address, for IPv6 its first half.
    fn network(self) -> IpAddr {
        match self {
            Self::Udp(IpAddr::V6(address)) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            Self::Udp(_) | Self::Derp(_) => self.address(),
        }
    }

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
    per_second: u32,
    burst: u32,
    tokens: u32,
    filled: Option<Instant>,
}

impl Budget {
    /// A full one.
    fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second, burst, tokens: burst, filled: None }
    }

    fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let left = self.tokens.checked_sub(1);
        self.tokens = left.unwrap_or(0);
        left.is_some()
    }

    fn has(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens > 0
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.tokens == self.burst
    }

    fn fill(&mut self, now: Instant) {
        let filled = *self.filled.get_or_insert(now);
        let elapsed = now.saturating_duration_since(filled);
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let earned = millis.saturating_mul(u64::from(self.per_second)) / 1000;
        if earned > 0 {
            let earned_time = Duration::from_millis(earned.saturating_mul(1000) / u64::from(self.per_second));
            let tokens = u64::from(self.tokens).saturating_add(earned).min(u64::from(self.burst));
            self.tokens = u32::try_from(tokens).unwrap_or(self.burst);
            self.filled = filled.checked_add(earned_time).filter(|at| *at <= now).or(Some(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use boringtun::noise::Tunn;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    /// Somebody who knows our public key, and takes what is sent to its address.
    struct Stranger {
        tunn: Tunn,
        source: Source,
    }

    impl Stranger {
        fn new(n: u64, ours: &Identity, source: &str) -> Self {
            let key = NodePrivate::generate(&mut StdRng::seed_from_u64(n));
            let tunn = Tunn::new(Identity::new(&key).private(), ours.public(), None, None, 1, None);
            Self { tunn, source: Source::Udp(source.parse().unwrap()) }
        }

        fn initiate(&mut self, now: Instant, gate: &mut Gate, ours: &Identity) -> Result<Admission, SessionError> {
            let (mut message, mut reply) = ([0; 148], [0; COOKIE_ROOM]);
            let TunnResult::WriteToNetwork(message) = self.tunn.format_handshake_initiation(&mut message, true) else {
                panic!("no initiation");
            };
            let admission = gate.admit(now, ours, self.source, message, &mut reply);
            if let Ok(Admission::Challenge(length)) = admission {
                self.tunn.decapsulate(None, &reply[..length], &mut [0; 148]);
            }
            admission
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "virtual time needs an origin")]
    fn who_floods_us_with_cookies_shuts_out_itself_alone() {
        let ours = Identity::new(&NodePrivate::generate(&mut StdRng::seed_from_u64(1)));
        let (mut gate, now) = (Gate::new(&ours), Instant::now());
        let mut hostile = Stranger::new(2, &ours, "2001:db8::1");
        for _ in 0..HANDSHAKE_BURST {
            assert!(matches!(hostile.initiate(now, &mut gate, &ours), Ok(Admission::From(_))));
        }
        assert!(matches!(hostile.initiate(now, &mut gate, &ours), Ok(Admission::Challenge(_))));
        let mut admitted = 0;
        for host in 0..1000 {
            // Its network has many addresses; the cookie is for one of them.
            let admission = hostile.initiate(now, &mut gate, &ours);
            admitted += u32::from(matches!(admission, Ok(Admission::From(_))));
            if host == 500 {
                hostile.source = Source::Udp("2001:db8::2".parse().unwrap());
            }
        }
        assert_eq!(admitted, OF_ONE_SOURCE_BURST);
        let mut good = Stranger::new(3, &ours, "192.0.2.1");
        assert!(matches!(good.initiate(now, &mut gate, &ours), Ok(Admission::Challenge(_))));
        assert!(matches!(good.initiate(now, &mut gate, &ours), Ok(Admission::From(_))));
        assert_eq!(gate.sources.len(), 2);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "virtual time needs an origin")]
    fn the_table_of_sources_is_bounded() {
        let ours = Identity::new(&NodePrivate::generate(&mut StdRng::seed_from_u64(1)));
        let (mut gate, start) = (Gate::new(&ours), Instant::now());
        for n in 0..100_000_u32 {
            let now = start + Duration::from_micros(u64::from(n) * 2500);
            gate.take_share(now, Source::Udp(IpAddr::V4(n.into())));
            assert!(gate.sources.len() <= 2 * SOURCES_KEPT);
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "virtual time needs an origin")]
    fn a_budget_is_spent_and_comes_back_with_time() {
        let start = Instant::now();
        let mut budget = Budget::new(HANDSHAKES_PER_SECOND, HANDSHAKE_BURST);
        let taken = (0..2 * HANDSHAKE_BURST).filter(|_| budget.take(start)).count();
        assert_eq!(taken, HANDSHAKE_BURST as usize);
        let later = start + Duration::from_millis(500);
        let taken = (0..2 * HANDSHAKE_BURST).filter(|_| budget.take(later)).count();
        assert_eq!(taken, HANDSHAKES_PER_SECOND as usize / 2);
        assert!(budget.take(later + Duration::from_secs(100_000_000)));
    }
}
