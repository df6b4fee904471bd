use nixtail_proto::key::DiscoPublic;
use nixtail_proto::secret::Secret;
use nixtail_proto::tailcfg::{Hostinfo, NetInfo, RegisterAuth, RegisterRequest, RegisterResponse};

use super::*;
use crate::auth_key::{AuthKeyOptions, AuthKeys};

const GRACE: Duration = Duration::from_secs(30);
const TIME: Timestamp = Timestamp::from_unix(1_700_000_000);

struct Setup {
    registry: Registry,
    keys: AuthKeys,
    now: Instant,
}

impl Setup {
    fn new() -> Self {
        let registry = Registry::new(GRACE, "http://control".to_owned());
        Self { registry, keys: AuthKeys::default(), now: Instant::now() }
    }

    fn key(&mut self, n: u8, options: AuthKeyOptions) -> Secret {
        self.keys.add(self.now, [n; 16], options).unwrap()
    }

    fn register(&mut self, machine: u8, request: &RegisterRequest) -> Answered {
        let registered = self.ask(machine, request);
        Answered { response: registered.response.expect("an answer at once"), changed: registered.changed }
    }

    fn ask(&mut self, machine: u8, request: &RegisterRequest) -> admission::Registered {
        self.registry.register(self.now, TIME, machine_key(machine), request, &mut self.keys)
    }

    fn only(&self) -> Node {
        let nodes: Vec<_> = self.registry.nodes().collect();
        assert_eq!(nodes.len(), 1);
        nodes[0].0.clone()
    }
}

struct Answered {
    response: RegisterResponse,
    changed: bool,
}

fn machine_key(n: u8) -> MachinePublic {
    MachinePublic::from_bytes([n; 32])
}

fn node_key(n: u8) -> NodePublic {
    NodePublic::from_bytes([n; 32])
}

fn request(node: u8, auth: Option<&Secret>, hostname: &str) -> RegisterRequest {
    RegisterRequest {
        version: 113,
        node_key: node_key(node),
        auth: auth.map(|key| RegisterAuth { auth_key: key.clone() }),
        hostinfo: Hostinfo { hostname: hostname.to_owned(), ..Default::default() },
        ..Default::default()
    }
}

fn reusable() -> AuthKeyOptions {
    AuthKeyOptions { reusable: true, ..Default::default() }
}

#[test]
fn names_collide_and_addresses_do_not() {
    let mut setup = Setup::new();
    let key = setup.key(1, reusable());
    for n in 1..=3 {
        assert!(setup.register(n, &request(n, Some(&key), "My_Host.example.com")).response.machine_authorized);
    }
    let nodes: Vec<Node> = setup.registry.nodes().map(|(node, _)| node).collect();
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["my-host.tail.devnet.", "my-host-1.tail.devnet.", "my-host-2.tail.devnet."]);
    assert_eq!(nodes[2].addresses[0].to_string(), "100.64.0.3/32");
    assert_eq!(nodes[2].addresses[1].to_string(), "fd7a:115c:a1e0::3/128");
}

#[test]
fn refusals_are_texts_in_the_answer() {
    let mut setup = Setup::new();
    let once = setup.key(1, AuthKeyOptions::default());
    assert!(setup.register(1, &request(1, Some(&once), "a")).response.error.is_empty());
    assert!(setup.register(2, &request(2, Some(&once), "a")).response.error.contains("already used"));
    assert!(setup.register(2, &request(1, Some(&once), "a")).response.error.contains("different machine key"));
    assert!(setup.register(2, &request(2, None, "a")).response.error.contains("auth key is needed"));
    assert!(setup.register(2, &request(0, None, "a")).response.error.contains("no node key"));
    // The same node again, its answer lost: the used-up key isn't looked at.
    let again = setup.register(1, &request(1, Some(&once), "a"));
    assert!(again.response.machine_authorized && !again.changed);
}

#[test]
fn a_node_keeps_its_place_under_another_key() {
    let mut setup = Setup::new();
    let once = setup.key(1, AuthKeyOptions { tags: vec!["tag:a".to_owned()], ..Default::default() });
    setup.register(1, &request(1, Some(&once), "a"));
    let before = setup.only();
    let rotation = RegisterRequest { old_node_key: node_key(1), ..request(2, None, "a") };
    assert!(!setup.register(9, &rotation).response.error.is_empty(), "another machine's");
    assert!(setup.register(1, &rotation).changed);
    let after = setup.only();
    assert_eq!((after.id, after.key, &after.tags), (before.id, node_key(2), &before.tags));
}

#[test]
fn logout_removes_ephemeral_nodes_and_expires_others() {
    let mut setup = Setup::new();
    let (ephemeral, lasting) =
        (setup.key(1, AuthKeyOptions { ephemeral: true, ..reusable() }), setup.key(2, reusable()));
    let logout = |n| RegisterRequest { expiry: Some(Timestamp::from_unix(123)), ..request(n, None, "a") };

    setup.register(1, &request(1, Some(&ephemeral), "a"));
    assert!(setup.register(1, &logout(1)).changed);
    assert_eq!(setup.registry.nodes().count(), 0);
    assert!(!setup.register(1, &logout(1)).changed);

    setup.register(2, &request(2, Some(&lasting), "a"));
    let id = setup.only().id;
    setup.registry.handle_stream_opened(id);
    assert_eq!(setup.only().online, Some(true));
    assert!(setup.register(2, &logout(2)).changed);
    assert_eq!((setup.only().online, setup.only().expired), (Some(false), true));
    assert!(setup.register(2, &request(2, None, "a")).response.node_key_expired);
    // It comes back with another key, to the same place.
    assert!(setup.register(2, &request(3, Some(&lasting), "a")).response.machine_authorized);
    assert_eq!((setup.only().id, setup.only().key, setup.only().expired), (id, node_key(3), false));
}

#[test]
fn ephemeral_nodes_vanish_when_their_stream_has_been_gone_too_long() {
    let mut setup = Setup::new();
    let key = setup.key(1, AuthKeyOptions { ephemeral: true, ..reusable() });
    setup.register(1, &request(1, Some(&key), "a"));
    let (id, start) = (setup.only().id, setup.now);
    assert_eq!(setup.registry.poll_timeout(), Some(start + GRACE));
    let (old, new) = (setup.registry.handle_stream_opened(id), setup.registry.handle_stream_opened(id));
    assert!(setup.registry.is_newest_stream(id, new) && !setup.registry.is_newest_stream(id, old));
    assert!(!setup.registry.handle_timeout(start + GRACE));
    assert!(!setup.registry.handle_stream_closed(start + GRACE, TIME, id, old), "replaced by the new one");
    assert_eq!(setup.only().online, Some(true));
    assert!(setup.registry.handle_stream_closed(start + GRACE, TIME, id, new));
    assert_eq!(setup.registry.poll_timeout(), Some(start + GRACE + GRACE));
    assert!(setup.registry.handle_timeout(start + GRACE + GRACE));
    assert_eq!(setup.registry.nodes().count(), 0);
}

#[test]
fn updates_change_what_peers_see() {
    let mut setup = Setup::new();
    let key = setup.key(1, reusable());
    setup.register(1, &request(1, Some(&key), "a"));
    let id = setup.only().id;
    let mut update = MapRequest {
        version: 113,
        node_key: node_key(1),
        disco_key: DiscoPublic::from_bytes([7; 32]),
        endpoints: vec!["127.0.0.1:7".parse().unwrap()],
        ..Default::default()
    };
    update.hostinfo.hostname = "b".to_owned();
    update.hostinfo.net_info = Some(NetInfo { preferred_derp: 900, ..Default::default() });
    assert!(setup.registry.update(id, &update));
    assert!(!setup.registry.update(id, &update), "nothing new");
    // Without NetInfo the home region stays.
    update.hostinfo.net_info = None;
    setup.registry.update(id, &update);
    let node = setup.only();
    assert_eq!((node.name.as_str(), node.home_region()), ("b.tail.devnet.", Some(900)));
    assert_eq!(setup.registry.find(machine_key(1), node_key(1)), Some(id));
    assert_eq!(setup.registry.find(machine_key(2), node_key(1)), None);
}

#[test]
fn an_expired_key_is_not_let_in_again_and_costs_no_auth_key() {
    let mut setup = Setup::new();
    let once = setup.key(1, AuthKeyOptions::default());
    setup.register(1, &request(1, Some(&once), "a"));
    let id = setup.only().id;
    let fresh = setup.key(2, AuthKeyOptions::default());
    assert!(setup.registry.set_key_expiry(TIME, id, Timestamp::from_unix(TIME.unix() + 1)).is_some());
    assert!(!setup.only().expired && setup.register(1, &request(1, None, "a")).response.machine_authorized);
    setup.registry.set_key_expiry(TIME, id, TIME);
    assert!(setup.only().expired && setup.register(1, &request(1, Some(&fresh), "a")).response.node_key_expired);
    let rotation = RegisterRequest { old_node_key: node_key(1), ..request(2, Some(&fresh), "a") };
    assert!(setup.register(1, &rotation).response.machine_authorized);
    assert_eq!((setup.only().id, setup.only().expired), (id, false));
}

#[test]
fn machines_wait_for_approval_and_are_alone_until_then() {
    let mut setup = Setup::new();
    let (plain, trusted) =
        (setup.key(1, reusable()), setup.key(2, AuthKeyOptions { preauthorized: true, ..reusable() }));
    setup.registry.require_approval(true);
    assert!(!setup.register(1, &request(1, Some(&plain), "a")).response.machine_authorized);
    let id = setup.only().id;
    assert!(setup.registry.subject(id).is_none() && setup.registry.subjects().count() == 0);
    assert!(setup.register(2, &request(2, Some(&trusted), "b")).response.machine_authorized);
    assert_eq!(setup.registry.subjects().count(), 1);
    assert!(setup.registry.approve(id).is_some() && setup.registry.approve(7).is_none());
    assert_eq!(setup.registry.subjects().count(), 2);
    assert!(setup.register(1, &request(1, None, "a")).response.machine_authorized);
}

#[test]
fn a_person_logs_in_at_a_url() {
    let mut setup = Setup::new();
    setup.registry.set_login_policy(LoginPolicy::Held);
    let url = setup.register(1, &request(1, None, "a")).response.auth_url;
    assert!(url.starts_with("http://control/login/"), "{url}");
    assert_eq!(setup.register(1, &request(1, None, "a")).response.auth_url, url, "the same login");
    let follow = |url: &str| RegisterRequest { followup: url.to_owned(), ..request(1, None, "a") };
    assert!(setup.ask(1, &follow(&url)).response.is_none(), "it waits");
    setup.registry.set_login_policy(LoginPolicy::Polled);
    assert_eq!(setup.register(1, &follow(&url)).response.auth_url, url);

    let other = setup.registry.replace_login(&url).unwrap();
    assert_eq!(setup.register(1, &follow(&url)).response.auth_url, other);
    assert!(!setup.registry.finish_login(&url, None) && setup.registry.waiting_logins() == [other.clone()]);
    assert!(setup.registry.finish_login(&other, Some("not you")));
    assert!(setup.register(1, &follow(&other)).response.error.ends_with("not you"));

    let again = setup.register(1, &request(1, None, "a")).response.auth_url;
    assert!(setup.registry.finish_login(&again, None));
    assert!(setup.register(1, &follow(&again)).response.machine_authorized);
    assert_eq!(setup.only().key, node_key(1));
    assert!(setup.registry.waiting_logins().is_empty());
    // Its answer may have been lost.
    assert!(setup.register(1, &follow(&again)).response.machine_authorized);
}

#[test]
fn a_crowd_fills_netmaps_and_nothing_else() {
    let mut setup = Setup::new();
    let crowd = Crowd { count: 10_000, home_region: 900, ..Crowd::default() };
    let ids = setup.registry.add_crowd(TIME, &crowd).unwrap();
    assert_eq!((ids.len(), setup.registry.subjects().count(), setup.registry.nodes().count()), (10_000, 10_000, 0));
    let last = setup.registry.node(ids[9_999]).unwrap();
    assert_eq!((last.name.as_str(), last.home_region()), ("crowd-10000.tail.devnet.", Some(900)));
    setup.registry.change_made_up(ids[0], |node| node.online = Some(false)).unwrap();
    assert_eq!(setup.registry.node(ids[0]).unwrap().online, Some(false));
    assert!(setup.registry.remove_made_up(ids[0]).is_some() && setup.registry.node(ids[0]).is_none());
    assert!(setup.registry.add_crowd(TIME, &Crowd { count: 60_000, ..Crowd::default() }).is_none());
}
