//! What is measured on one link: the nodes of all peers, started once, and the pairs that they make.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::error::Error;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::end::End;
use super::load::words::{Destination, Order};
use super::plan::{Node, Peer};
use super::{ssh_tunnel, wireguard};
use crate::stage::network::{LEFT, RIGHT};
use crate::stage::place::Place;
use crate::stage::process::{Running, wait_until};
use crate::stage::tailscaled::{Networking, Settings, Tailscaled};
use crate::start::control::Control;

/// How long two nodes may take to find the way that they are to take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The port that ends of a tailnet serve at: iperf3's.
const PORT: &str = "5201";

/// What every node is started with.
#[derive(Clone, Copy)]
pub(super) struct Setting<'a> {
    /// The folder with the programs.
    pub(super) programs: &'a Path,
    /// The left place, which dials, and the right one.
    pub(super) places: [Place<'a>; 2],
    pub(super) control: &'a Control,
    /// Whether nodes meet through relays alone.
    pub(super) relayed: bool,
    /// More for the environment of our own nodes.
    pub(super) environment: &'a [(String, String)],
}

/// One end of a pair, with all that runs for it.
#[derive(Debug, Clone)]
pub(super) struct Side<'a> {
    pub(super) end: Rc<End>,
    /// Whose processor time, and that of what they have started, is the side's.
    pub(super) processes: Vec<u32>,
    /// Whose memory is: what moves packets, without a load end beside it.
    pub(super) movers: Vec<u32>,
    /// Where others reach it.
    pub(super) address: String,
    /// How it dials where that isn't straight.
    detour: Option<Detour>,
    asks: Asks<'a>,
}

#[derive(Debug, Clone)]
enum Detour {
    /// Through this SOCKS5 proxy.
    Proxy(String),
    /// This address instead, which something forwards.
    Forwarded(String),
}

/// Who knows the way to a peer.
#[derive(Debug, Clone)]
enum Asks<'a> {
    /// Nobody: there is but one.
    Nobody,
    /// The end is the node itself.
    End,
    Daemon(Rc<Tailscaled<'a>>),
}

/// Two sides that have found each other.
#[derive(Debug, Clone)]
pub(super) struct Pair<'a> {
    pub(super) peer: Peer,
    pub(super) left: Side<'a>,
    pub(super) right: Side<'a>,
    pub(super) to: Destination,
}

/// All nodes of a link. Dropping it, and the pairs made from it, ends them.
pub(super) struct Site<'a> {
    setting: Setting<'a>,
    sides: RefCell<BTreeMap<(Node, usize), Side<'a>>>,
    running: RefCell<Vec<Running>>,
}

impl<'a> Site<'a> {
    /// Nothing runs yet.
    pub(super) fn new(setting: Setting<'a>) -> Self {
        Self { setting, sides: RefCell::default(), running: RefCell::default() }
    }

    /// Two sides that have found each other, by the way that they are to take.
    pub(super) fn pair(&self, peer: Peer) -> Result<Pair<'a>, Box<dyn Error>> {
        let [left, right] = peer.nodes();
        let (left, right) = (self.side(left, 0)?, self.side(right, 1)?);
        let to = match &left.detour {
            None => Destination { to: right.address.clone(), through: None },
            Some(Detour::Proxy(proxy)) => Destination { to: right.address.clone(), through: Some(proxy.clone()) },
            Some(Detour::Forwarded(to)) => Destination { to: to.clone(), through: None },
        };
        let pair = Pair { peer, left, right, to };
        if peer != Peer::BareDerp {
            pair.find_each_other(self.setting.relayed)?;
        }
        Ok(pair)
    }

    fn side(&self, node: Node, at: usize) -> Result<Side<'a>, Box<dyn Error>> {
        if let Some(side) = self.sides.borrow().get(&(node, at)) {
            return Ok(side.clone());
        }
        let started = match node {
            Node::Kernel => vec![(at, self.kernel(at)?)],
            Node::Nixtail | Node::Tsnet => vec![(at, self.library(node, at)?)],
            Node::Tun | Node::Userspace => vec![(at, self.tailscaled(node, at)?)],
            Node::BareDerp => vec![(at, self.bare(at)?)],
            // These come in pairs.
            Node::Wireguard => self.wireguard()?.into_iter().enumerate().collect(),
            Node::OpenSsh => self.ssh()?.into_iter().enumerate().collect(),
        };
        let mut sides = self.sides.borrow_mut();
        sides.extend(started.into_iter().map(|(at, side)| ((node, at), side)));
        sides.get(&(node, at)).cloned().ok_or_else(|| "a side that wasn't started".into())
    }

    /// An end that is a process of its own, or a node, too.
    fn end(&self, at: usize, name: &str, program: &str, line: &[&str]) -> Result<Side<'a>, Box<dyn Error>> {
        let place = self.place(at)?;
        let name = format!("{name}-{}", if at == 0 { "left" } else { "right" });
        let program = self.setting.programs.join(program).display().to_string();
        let mut command = place.command(&program, line);
        command.envs([("TS_NO_LOGS_NO_SUPPORT", "true"), ("TS_DISABLE_PORTMAPPER", "1")]);
        command.env("TS_AUTHKEY", &self.setting.control.key);
        if self.setting.relayed {
            command.env("TS_DEBUG_ALWAYS_USE_DERP", "1");
        }
        if program.ends_with("nixtail-bench") {
            command.envs(self.setting.environment.iter().map(|(name, value)| (name, value)));
        }
        let end = End::start(&name, command, place.path(&format!("{name}.log")))?;
        let id = end.id();
        let address = end.ready.addresses.first().cloned().unwrap_or_default();
        let asks = Asks::Nobody;
        Ok(Side { end: Rc::new(end), processes: vec![id], movers: vec![id], address, detour: None, asks })
    }

    fn kernel(&self, at: usize) -> Result<Side<'a>, Box<dyn Error>> {
        let (listen, address) = match self.place(at)? {
            Place::Machine(_) => ("0.0.0.0", [LEFT, RIGHT][at.min(1)]),
            Place::Here(_) => ("127.0.0.1", "127.0.0.1"),
        };
        let mut side = self.end(at, "kernel", "nixtail-bench", &["compare-end", "kernel", listen])?;
        side.address = format!("{address}:{}", side.end.ready.port);
        Ok(side)
    }

    fn library(&self, node: Node, at: usize) -> Result<Side<'a>, Box<dyn Error>> {
        let name = format!("{}-{at}", if node == Node::Nixtail { "nixtail" } else { "tsnet" });
        let url = self.setting.control.url.as_str();
        let mut side = if node == Node::Nixtail {
            let mut line = vec!["compare-end", "nixtail", url, &name, PORT];
            line.extend(self.setting.relayed.then_some("--relayed"));
            self.end(at, "nixtail", "nixtail-bench", &line)?
        } else {
            self.end(at, "tsnet", "tsnet-peer", &["bench", url, &name, PORT])?
        };
        side.address = format!("{}:{PORT}", side.address);
        side.asks = Asks::End;
        Ok(side)
    }

    fn bare(&self, at: usize) -> Result<Side<'a>, Box<dyn Error>> {
        let region = self.setting.control.region.as_ref().ok_or("control's relay isn't Tailscale's")?;
        self.end(at, "derp", "tsnet-peer", &["derp", &region.to_string()])
    }

    /// The daemon, and the kernel's end beside it.
    fn tailscaled(&self, node: Node, at: usize) -> Result<Side<'a>, Box<dyn Error>> {
        let kernel = self.side(Node::Kernel, at)?;
        let name = format!("tailscaled-{}-{at}", if node == Node::Tun { "tun" } else { "userspace" });
        let socks = format!("127.0.0.1:{}", free_port()?);
        let (networking, detour) = match node {
            Node::Tun => (Networking::Tun, None),
            _ => (Networking::Userspace { socks: &socks }, Some(Detour::Proxy(socks.clone()))),
        };
        let Setting { control, relayed, programs, .. } = self.setting;
        let settings = Settings { name: &name, control: &control.url, key: &control.key, networking, relayed };
        let daemon = Tailscaled::start(programs, self.place(at)?, &settings)?;
        let address = format!("{}:{}", daemon.address, kernel.end.ready.port);
        let processes = [daemon.id()].into_iter().chain(kernel.processes).collect();
        let movers = vec![daemon.id()];
        Ok(Side { end: kernel.end, processes, movers, address, detour, asks: Asks::Daemon(Rc::new(daemon)) })
    }

    fn wireguard(&self) -> Result<[Side<'a>; 2], Box<dyn Error>> {
        let sides = [self.side(Node::Kernel, 0)?, self.side(Node::Kernel, 1)?];
        let daemons = wireguard::start(self.setting.places)?;
        let ids = [daemons[0].id(), daemons[1].id()];
        self.running.borrow_mut().extend(daemons);
        let [left, right] = sides;
        let with = |side: Side<'a>, id: u32, address: &str| Side {
            address: format!("{address}:{}", side.end.ready.port),
            processes: [id].into_iter().chain(side.processes).collect(),
            movers: vec![id],
            ..side
        };
        Ok([with(left, ids[0], wireguard::LEFT), with(right, ids[1], wireguard::RIGHT)])
    }

    fn ssh(&self) -> Result<[Side<'a>; 2], Box<dyn Error>> {
        let [Place::Machine(left), Place::Machine(right)] = self.setting.places else {
            return Err("sshd wants a machine of its own".into());
        };
        let sides = [self.side(Node::Kernel, 0)?, self.side(Node::Kernel, 1)?];
        let here = free_port()?;
        let [ssh, sshd] = ssh_tunnel::start([left, right], here, sides[1].end.ready.port)?;
        let ids = [ssh.id(), sshd.id()];
        self.running.borrow_mut().extend([ssh, sshd]);
        let [mut left, mut right] = sides;
        for (side, id) in [&mut left, &mut right].into_iter().zip(ids) {
            side.processes.push(id);
            side.movers = vec![id];
        }
        left.detour = Some(Detour::Forwarded(format!("127.0.0.1:{here}")));
        Ok([left, right])
    }

    fn place(&self, at: usize) -> Result<Place<'a>, Box<dyn Error>> {
        self.setting.places.get(at).copied().ok_or_else(|| "there are two places".into())
    }
}

impl Pair<'_> {
    /// Waits until both reach each other as they are to, and one has dialled the other.
    fn find_each_other(&self, relayed: bool) -> Result<(), Box<dyn Error>> {
        for (side, peer) in [(&self.left, &self.right), (&self.right, &self.left)] {
            let way = if relayed { "the way through the relay" } else { "a direct way" };
            let is_it = || side.is_direct(peer).ok()?.is_none_or(|direct| direct != relayed).then_some(());
            wait_until(way, PATIENCE, is_it).map_err(|error| format!("{}: {error}", self.peer.title()))?;
        }
        let dial = Order::Connect { to: self.to.clone(), times: 1 };
        let mut last = None;
        let dialled = || self.left.end.obey(&dial, PATIENCE).map_err(|error| last = Some(error)).ok();
        wait_until("a connection", PATIENCE, dialled)
            .map(drop)
            .map_err(|error| format!("{}: {error}; at last: {last:?}", self.peer.title()).into())
    }
}

impl Side<'_> {
    /// Whether it reaches a peer directly; by a way that nobody has to be asked for, it does as it is to.
    fn is_direct(&self, peer: &Self) -> Result<Option<bool>, Box<dyn Error>> {
        let address = peer.address.parse::<SocketAddr>().map(|address| address.ip());
        match &self.asks {
            Asks::Nobody => Ok(None),
            Asks::End => {
                let answer = self.end.obey(&Order::Path { to: address? }, Duration::ZERO)?;
                Ok(Some(answer.direct))
            }
            Asks::Daemon(daemon) => daemon.is_direct(&IpAddr::to_string(&address?)).map(Some),
        }
    }
}

/// A port that nobody has here now. In a machine of its own nobody has it either.
fn free_port() -> Result<u16, Box<dyn Error>> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
