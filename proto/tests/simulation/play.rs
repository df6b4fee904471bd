//! Plays a history: builds its world, lets happen what happens, and holds the world against the reference model all the time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nixtail_proto::tailcfg::RegionId;
use rand::RngExt as _;

use crate::conversation::{Application, Conversation};
use crate::history::{Change, History, SitePlan};
use crate::host::Site;
use crate::landmarks::Observer;
use crate::nat::{Nat, NatKind};
use crate::queue::Queue;
use crate::reference::{self, Longest, Watch};
use crate::world::{MILLISECOND, SECOND, World};

/// How often talkers talk and the model looks, at least.
const TICK: Duration = Duration::from_millis(250);
/// How long nothing happens after the last change: everything must be well by then.
const CALM: Duration = Duration::from_secs(75);
/// After the last word, timers may run for this long …
const RUN_DOWN: Duration = Duration::from_secs(600);
/// … and then it is silent.
const SILENT: Duration = Duration::from_secs(300);
/// Timeouts that a host may have in a [`TICK`] beside two for each packet: asking again each millisecond would be 250.
const TIMEOUTS_PER_TICK: u64 = 50;
/// What a host with UDP and a relay may do in all of [`SILENT`].
const SILENT_TIMEOUTS: u64 = 4;
/// What one without may do: it goes on looking for them. Each second on average.
const SEARCHING_PACKETS_PER_SECOND: u64 = 2;
const SEARCHING_TIMEOUTS_PER_SECOND: u64 = 3;

/// What a history has shown.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) landmarks: BTreeMap<&'static str, u64>,
    pub(crate) longest: Longest,
    pub(crate) virtual_time: Duration,
    pub(crate) packets: u64,
    pub(crate) echoes: u64,
}

struct Play {
    world: World,
    application: Application,
    watches: Vec<Watch>,
    /// What ends by itself.
    ends: Queue<End>,
    outcome: Outcome,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Block(usize),
    Cut(usize),
    Sever(usize, usize),
    RelayDown(RegionId),
    ControlDown,
    Freeze(usize),
    Pause(usize),
}

/// Plays it to its end.
///
/// # Errors
/// What the reference model has against it.
pub(crate) fn play(history: &History, talkative: bool) -> Result<Outcome, String> {
    let mut play = Play::new(history, Observer::new(talkative));
    for (change, milliseconds) in &history.changes {
        play.change(*change);
        play.pass(*milliseconds * MILLISECOND)?;
    }
    while let Some(end) = play.ends.next_at() {
        play.pass(end.saturating_duration_since(play.world.now))?;
    }
    play.pass(CALM)?;
    play.fall_silent()?;
    Ok(play.finish())
}

impl Play {
    fn new(history: &History, observer: Observer) -> Self {
        let mut world = World::new(history.seed);
        world.observer = Some(observer);
        world.control.automatic = true;
        world.relays = (1..=history.regions).map(|region| (region, true)).collect();
        let map = (1..=history.regions).map(|region| (region, World::region(region)));
        world.control.derp_map = Arc::new(map.collect());
        for (number, plan) in history.sites.iter().enumerate() {
            add_site(&mut world, number, plan, history.same_lan);
        }
        let mut application = Application::default();
        for host in 0..world.hosts.len() {
            world.handle_record_changed(host);
            application.start(&mut world, host);
        }
        let hosts = history.hosts();
        for talk in &history.talks {
            let from = usize::from(talk.from) % hosts;
            let to = (from + 1 + usize::from(talk.to) % (hosts - 1)) % hosts;
            let (every, begins) = (talk.every_ms * MILLISECOND, world.now + talk.begins_ms * MILLISECOND);
            let conversation = Conversation::new(from, to, every, talk.bytes.into(), begins);
            application.conversations.push(conversation);
        }
        match hosts {
            2 => world.note("a network of two nodes"),
            40 => world.note("a network of forty nodes"),
            _ => {}
        }
        let watches = vec![Watch::default(); application.conversations.len()];
        Self { world, application, watches, ends: Queue::new(), outcome: Outcome::default() }
    }

    fn pass(&mut self, time: Duration) -> Result<(), String> {
        let end = self.world.now + time;
        loop {
            while let Some(what) = self.ends.pop_due(self.world.now) {
                self.end(what);
            }
            self.application.tick(&mut self.world);
            self.world.pump();
            self.application.handle_events(&mut self.world);
            reference::check(&mut self.world, &mut self.application, &mut self.watches, &mut self.outcome.longest)
                .map_err(|error| format!("at {:?}: {error}", self.world.elapsed()))?;
            if self.world.now >= end {
                return Ok(());
            }
            let tick = self.ends.next_at().into_iter().chain([end, self.world.now + TICK]).min().unwrap_or(end);
            let before: Vec<_> = self.world.hosts.iter().map(|host| (host.timeouts, host.sent)).collect();
            while self.world.step(tick) {
                self.application.handle_events(&mut self.world);
            }
            for (number, (host, before)) in self.world.hosts.iter().zip(before).enumerate() {
                let (timeouts, sent) = (host.timeouts - before.0, host.sent - before.1);
                if timeouts > TIMEOUTS_PER_TICK + 2 * sent {
                    let at = self.world.elapsed();
                    return Err(format!("at {at:?}: host {number} has {timeouts} timeouts for {sent} packets"));
                }
            }
        }
    }

    fn change(&mut self, change: Change) {
        let site_of = |site: u8, world: &World| usize::from(site) % world.sites.len();
        let host_of = |host: u8, world: &World| usize::from(host) % world.hosts.len();
        let region_of = |region: RegionId, world: &World| region % u16::try_from(world.relays.len()).unwrap() + 1;
        let world = &mut self.world;
        world.tell(|| format!("{change:?}"));
        let now = world.now;
        let mut ends = |end: End, for_s: u16| self.ends.push(now + u32::from(for_s) * SECOND, end);
        match change {
            Change::Calm => {}
            Change::Flush { site } => {
                let site = site_of(site, world);
                let one = &mut world.sites[site];
                one.nat.flush();
                one.nat_v6.iter_mut().for_each(Nat::flush);
                self.disturb_site(site);
            }
            Change::Move { site } => {
                let site = site_of(site, world);
                move_site(world, site);
                self.disturb_site(site);
            }
            Change::Block { site, for_s } => {
                let site = site_of(site, world);
                world.sites[site].udp = false;
                ends(End::Block(site), for_s);
                self.disturb_site(site);
            }
            Change::Cut { site, for_s } => {
                let site = site_of(site, world);
                world.sites[site].cut = true;
                world.starve_relays(site);
                ends(End::Cut(site), for_s);
                self.disturb_site(site);
            }
            Change::Sever { site, other, for_s } => {
                let (site, other) = (site_of(site, world), site_of(other, world));
                if site != other {
                    world.severed.insert((site.min(other), site.max(other)));
                    ends(End::Sever(site.min(other), site.max(other)), for_s);
                    self.disturb_site(site);
                }
            }
            Change::Weather { site, weather } => {
                let site = site_of(site, world);
                world.sites[site].access = weather.link();
                self.disturb_site(site);
            }
            Change::Distance { site, region, ms } => {
                let (site, region) = (site_of(site, world), region_of(region, world));
                world.sites[site].far.insert(region, Duration::from_millis(ms.into()));
                self.disturb_site(site);
            }
            Change::RelayDown { region, politely, for_s } => {
                let region = region_of(region, world);
                world.set_relay(region, false, politely);
                ends(End::RelayDown(region), for_s);
            }
            Change::ControlDown { for_s } => {
                world.control.up = false;
                ends(End::ControlDown, for_s);
            }
            Change::Restart { host, new_key } => {
                let host = host_of(host, world);
                self.restart(host, new_key);
            }
            Change::Freeze { host, for_s } => {
                let host = host_of(host, world);
                world.hosts[host].frozen = true;
                ends(End::Freeze(host), for_s);
                self.disturb_host(host);
            }
            Change::Pause { talk, for_s } => {
                let talk = usize::from(talk) % self.application.conversations.len();
                self.application.conversations[talk].paused = true;
                ends(End::Pause(talk), for_s);
            }
        }
    }

    fn end(&mut self, what: End) {
        let world = &mut self.world;
        world.tell(|| format!("the end of {what:?}"));
        match what {
            End::Block(site) => {
                world.sites[site].udp = true;
                self.disturb_site(site);
            }
            End::Cut(site) => {
                world.sites[site].cut = false;
                world.handle_control_reachable();
                self.disturb_site(site);
            }
            End::Sever(site, other) => {
                world.severed.remove(&(site, other));
                self.disturb_site(site);
            }
            End::RelayDown(region) => world.set_relay(region, true, false),
            End::ControlDown => {
                world.control.up = true;
                world.handle_control_reachable();
            }
            End::Freeze(host) => {
                world.hosts[host].frozen = false;
                world.handle_control_reachable();
                self.disturb_host(host);
            }
            End::Pause(talk) => self.application.conversations[talk].paused = false,
        }
    }

    fn restart(&mut self, host: usize, new_key: bool) {
        let world = &mut self.world;
        world.note_restart(host);
        world.restart(host, new_key);
        world.handle_record_changed(host);
        self.application.start(world, host);
        for (watch, conversation) in self.watches.iter_mut().zip(&self.application.conversations) {
            if conversation.from == host || conversation.to == host {
                watch.restart();
            }
        }
    }

    fn disturb_site(&mut self, site: usize) {
        for host in 0..self.world.hosts.len() {
            if self.world.hosts[host].site == site {
                self.disturb_host(host);
            }
        }
    }

    fn disturb_host(&mut self, host: usize) {
        for (watch, conversation) in self.watches.iter_mut().zip(&self.application.conversations) {
            if conversation.from == host || conversation.to == host {
                watch.disturb();
            }
        }
    }

    /// Nobody talks any more: timers end, and packets do.
    fn fall_silent(&mut self) -> Result<(), String> {
        self.application.stop(&mut self.world);
        let world = &mut self.world;
        let rest = |world: &mut World, time| {
            world.pass(time);
            world.hosts.iter_mut().for_each(|host| host.events.clear());
            world.hosts.iter().map(|host| (host.sent, host.timeouts)).collect::<Vec<_>>()
        };
        let before = rest(world, RUN_DOWN);
        let after = rest(world, SILENT);
        for (host, (before, after)) in before.into_iter().zip(after).enumerate() {
            let (sent, timeouts) = (after.0 - before.0, after.1 - before.1);
            let one = &world.hosts[host];
            let at_rest = world.sites[one.site].udp;
            let (most_sent, most_timeouts) = match at_rest {
                true => (0, SILENT_TIMEOUTS),
                false => {
                    (SEARCHING_PACKETS_PER_SECOND * SILENT.as_secs(), SEARCHING_TIMEOUTS_PER_SECOND * SILENT.as_secs())
                }
            };
            if sent > most_sent || timeouts > most_timeouts {
                return Err(format!(
                    "host {host} sends {sent} packets and has {timeouts} timeouts in {SILENT:?} of silence"
                ));
            }
            if one.node.drops().overflow > 0 {
                return Err(format!("host {host} had too much to say: {:?}", one.node.drops()));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Outcome {
        let observer = self.world.observer.take().unwrap_or_default();
        self.outcome.landmarks = observer.landmarks;
        self.outcome.virtual_time = self.world.elapsed();
        self.outcome.packets = self.world.hosts.iter().map(|host| host.sent).sum();
        self.outcome.echoes = self.application.conversations.iter().map(|one| one.echoes).sum();
        self.outcome
    }
}

fn add_site(world: &mut World, number: usize, plan: &SitePlan, same_lan: bool) {
    let low = u8::try_from(number + 1).unwrap();
    let lifetime = Duration::from_secs(plan.lifetime_s.into());
    let nat = Nat::new(plan.nat, [198, 18, 0, low].into(), lifetime);
    let v6 = plan.v6.map(|kind| Nat::new(kind, std::net::Ipv6Addr::UNSPECIFIED.into(), lifetime));
    let far = (1..).zip(plan.far).map(|(region, ms)| (region, Duration::from_millis(ms.into())));
    world.sites.push(Site {
        nat,
        nat_v6: v6,
        access: plan.weather.link(),
        far: far.collect(),
        udp: plan.udp,
        ..World::open_site()
    });
    for host in 1..=plan.hosts {
        let v4: SocketAddr = match plan.nat {
            NatKind::Open | NatKind::Firewall => ([192, 0, low, host], 41641).into(),
            _ => ([10, 0, if same_lan { 0 } else { low }, host], 41641).into(),
        };
        let v6 = plan.v6.map(|_| ([0x2001, 0xdb8, low.into(), 0, 0, 0, 0, host.into()], 41641).into());
        world.add_at(number, v4, v6, (true, true));
    }
}

/// Another public address: of the NAT, or of the hosts themselves, which notice.
fn move_site(world: &mut World, site: usize) {
    let one = &mut world.sites[site];
    one.moves = one.moves.wrapping_add(1);
    let moves = one.moves;
    one.nat.flush();
    one.nat_v6.iter_mut().for_each(Nat::flush);
    if !matches!(one.nat.kind, NatKind::Open | NatKind::Firewall) {
        let low = u8::try_from(site + 1).unwrap();
        one.nat.public = [198, 18, moves, low].into();
        return world.handle_addresses_changed();
    }
    for host in (0..world.hosts.len()).filter(|host| world.hosts[*host].site == site).collect::<Vec<_>>() {
        let [.., low, number] = match world.hosts[host].address {
            SocketAddr::V4(address) => address.ip().octets(),
            SocketAddr::V6(_) => [0; 4],
        };
        let port = world.rng.random_range(1024..=u16::MAX);
        world.hosts[host].address = ([172, 100 + moves % 100, low, number], port).into();
        world.tell_address(host);
        world.pump_host(host);
    }
    world.handle_addresses_changed();
}
