//! First contact: two nodes with new keys join within a second of each other, one dials the other as soon as both are ready
//! (or, in every other pair, as soon as it is ready itself), and the other's first byte is waited for. What each knows of the
//! other, and when, is chance.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nixtail_proto::stack::{ConnectionId, Read};
use nixtail_proto::tailcfg::RegionId;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::host::Site;
use crate::nat::{Nat, NatKind};
use crate::world::{MILLISECOND, REGION, SECOND, World};

const PAIRS: u64 = 1000;
/// What the 99th of 100 may take from the dial to the first byte back, and what any may.
const P99: Duration = Duration::from_millis(1500);
const LONGEST: Duration = Duration::from_secs(3);
/// An initiation is repeated at 0.25, 0.5, 1 and 2 s, and a few more go out at what becomes known meanwhile.
const MOST_INITIATIONS: usize = 12;
const PORT: u16 = 22;
/// First bytes of WireGuard messages.
const INITIATION: [u8; 4] = [1, 0, 0, 0];
const RESPONSE: [u8; 4] = [2, 0, 0, 0];
const KINDS: [NatKind; 6] = [
    NatKind::Open,
    NatKind::Firewall,
    NatKind::AnyMayAnswer,
    NatKind::AddressMayAnswer,
    NatKind::PortPreserving,
    NatKind::RandomPorts,
];

/// How a pair's first contact went.
#[derive(Debug, Clone, Copy)]
struct Contact {
    seed: u64,
    /// From the dial, or from when both were ready if that was later, to the first byte back.
    took: Duration,
    initiations: usize,
    /// The dialled one learned of the dialler after it had been asked for a session.
    knocked: bool,
    lost: bool,
}

#[test]
fn cold_pairs_reach_each_other_in_time() {
    let workers: u64 = 2;
    let mut contacts: Vec<Contact> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers)
            .map(|worker| scope.spawn(move || (worker..PAIRS).step_by(2).map(cold_pair).collect::<Vec<_>>()))
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    contacts.sort_by_key(|contact| contact.took);
    let quantile = |part: f64| contacts[((contacts.len() - 1) as f64 * part).round() as usize];
    let (median, p99, longest) = (quantile(0.5).took, quantile(0.99).took, quantile(1.0));
    let count = |holds: fn(&&Contact) -> bool| contacts.iter().filter(holds).count();
    let (knocked, lost) = (count(|contact| contact.knocked), count(|contact| contact.lost));
    println!("median {median:?}, p99 {p99:?}, longest {:?} (seed {})", longest.took, longest.seed);
    println!("{knocked} knocked too early, {lost} lost a handshake message");
    assert!(p99 < P99 && longest.took < LONGEST, "p99 {p99:?}, {longest:?}");
    let storm = contacts.iter().find(|contact| contact.initiations > MOST_INITIATIONS);
    assert!(storm.is_none(), "{storm:?}");
    let some = contacts.len() / 20;
    assert!(knocked > some && lost > some, "the test has lost its teeth: {knocked} knocked, {lost} lost");
}

fn cold_pair(seed: u64) -> Contact {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = World::new(seed);
    world.control.automatic = true;
    world.control.delay = [5, 50, 125][rng.random_range(0..3)] * MILLISECOND;
    world.derp.delay = rng.random_range(1..30) * MILLISECOND;
    for site in 0..2 {
        let site = some_site(site, &mut rng);
        world.sites.push(site);
    }
    let (dialler, apart) = (rng.random_range(0..2_usize), rng.random_range(0..1000) * MILLISECOND);
    let (counted, lost) = lose_some(&mut world, &mut rng);
    join(&mut world, 0);
    world.pass(apart);
    join(&mut world, 1);

    let mut pair =
        Pair { dialler, patient: rng.random(), ready: None, dialled: None, sent: false, far: None, knocked: false };
    let end = world.now + 30 * SECOND;
    let answered = loop {
        if pair.step(&mut world) {
            break world.now;
        }
        assert!(world.now < end, "seed {seed}: {:?} {pair:?}", world.elapsed());
        world.step((world.now + MILLISECOND).min(end));
    };
    // Who knows of the other may be answered before it is ready itself.
    let begun = pair.dialled.unwrap().1.max(pair.ready.unwrap_or(answered));
    Contact {
        seed,
        took: answered.saturating_duration_since(begun),
        initiations: counted.get(),
        knocked: pair.knocked,
        lost: lost.get(),
    }
}

fn some_site(number: u8, rng: &mut StdRng) -> Site {
    let mut site = World::open_site();
    let kind = KINDS[rng.random_range(0..KINDS.len())];
    site.nat = Nat::new(kind, [198, 18, 0, number + 1].into(), 60 * SECOND);
    site.access.delay = rng.random_range(0..30) * MILLISECOND;
    site.udp = rng.random_range(0..8) > 0;
    let region: RegionId = REGION;
    site.far.insert(region, rng.random_range(0..40) * MILLISECOND);
    site
}

fn join(world: &mut World, site: usize) {
    let low = u8::try_from(site + 1).unwrap();
    let address = match world.sites[site].nat.kind {
        NatKind::Open | NatKind::Firewall => [192, 0, 2, low],
        _ => [10, 0, low, 1],
    };
    let host = world.add_at(site, (address, 41641).into(), None, (true, true));
    world.hosts[host].node.listen(PORT, 8).unwrap();
    world.handle_record_changed(host);
    world.pump();
}

/// Loses one of the first handshake messages of every fourth pair. Counts initiations, and tells whether one was lost.
fn lose_some(world: &mut World, rng: &mut StdRng) -> (Rc<Cell<usize>>, Rc<Cell<bool>>) {
    let (counted, lost) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    let handles = (Rc::clone(&counted), Rc::clone(&lost));
    let mut to_lose = (rng.random_range(0..4) == 0).then(|| rng.random_range(1..4));
    world.tap = Some(Box::new(move |_, bytes| {
        counted.set(counted.get() + usize::from(bytes.starts_with(&INITIATION)));
        if !bytes.starts_with(&INITIATION) && !bytes.starts_with(&RESPONSE) {
            return true;
        }
        to_lose = to_lose.map(|left| left - 1);
        let passes = to_lose != Some(0);
        if !passes {
            (to_lose, _) = (None, lost.set(true));
        }
        passes
    }));
    handles
}

#[derive(Debug)]
struct Pair {
    dialler: usize,
    /// The dialler waits until the other is ready, too.
    patient: bool,
    /// Since when both are.
    ready: Option<Instant>,
    dialled: Option<(ConnectionId, Instant)>,
    sent: bool,
    far: Option<ConnectionId>,
    knocked: bool,
}

impl Pair {
    /// Does what can be done now. Says whether the first byte is back.
    fn step(&mut self, world: &mut World) -> bool {
        let (now, from, to) = (world.now, self.dialler, 1 - self.dialler);
        if self.ready.is_none() && [from, to].into_iter().all(|host| is_ready(world, host)) {
            self.ready = Some(now);
        }
        let dials = self.ready.is_some() || !self.patient && is_ready(world, from);
        if dials && self.dialled.is_none() {
            let remote = world.hosts[to].tailnet(PORT);
            let dialled = world.hosts[from].node.connect(now, remote).ok();
            self.dialled = dialled.map(|id| (id, now));
            let knows = world.hosts[to].control.known.get(from).is_some_and(Option::is_some);
            self.knocked = dialled.is_some() && !knows;
        }
        let Some((near, _)) = self.dialled else { return false };
        if !self.sent {
            self.sent = world.hosts[from].node.write(now, near, b"x").is_ok_and(|taken| taken > 0);
        }
        self.far = self.far.or_else(|| Some(world.hosts[to].node.accept(PORT)?.id));
        if let Some(far) = self.far {
            let there = &mut world.hosts[to].node;
            if let Ok(Read::Bytes(length)) = there.read(now, far, &mut [0; 8]) {
                there.write(now, far, &b"x".repeat(length)).unwrap();
            }
        }
        world.pump();
        matches!(world.hosts[from].node.read(now, near, &mut [0; 8]), Ok(Read::Bytes(_)))
    }
}

/// What [`Agent::join`] waits for: a netmap, a home relay, and control's knowing of both.
fn is_ready(world: &World, host: usize) -> bool {
    let one = &world.hosts[host];
    let told = one.home != 0 && one.record.home_derp == one.home && one.record.endpoints == one.endpoints;
    told && !one.control.seen.is_empty() && one.relays.contains_key(&one.home)
}
