use super::*;

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn coordinators_reach_builders_and_nothing_else() {
    let (coordinator, builder) = (vec![COORDINATOR_TAG.to_owned()], vec![BUILDER_TAG.to_owned()]);
    let (first, second, third) = (nets(&["100.64.0.1/32"]), nets(&["100.64.0.2/32"]), nets(&["100.64.0.3/32"]));
    let coordinator = Subject { tags: &coordinator, addresses: &first };
    let builder_one = Subject { tags: &builder, addresses: &second };
    let builder_two = Subject { tags: &builder, addresses: &third };
    let stranger = Subject { tags: &[], addresses: &third };
    let policy = Policy::nix_ci();

    assert!(policy.joins(coordinator, builder_one) && policy.joins(builder_one, coordinator));
    assert!(!policy.joins(builder_one, builder_two) && !policy.joins(stranger, coordinator));
    assert!(policy.filter(coordinator, &[builder_one, builder_two, stranger]).is_empty());
    assert!(policy.ssh_policy(coordinator, &[builder_one]).rules.is_empty());

    let filter = policy.filter(builder_one, &[coordinator, builder_two]);
    assert_eq!(filter.len(), 2);
    assert!(filter.iter().all(|rule| rule.src_ips == ["100.64.0.1"]));
    assert_eq!(filter[0].ip_proto, [6]);
    assert_eq!(filter[0].dst_ports[0].ports, PortRange { first: 22, last: 22 });
    assert_eq!(filter[1].ip_proto, [1, 58]);

    let ssh = policy.ssh_policy(builder_one, &[coordinator, builder_two]);
    let rule = ssh.rules[0].as_ref().unwrap();
    assert_eq!(rule.principals.len(), 1);
    assert_eq!(rule.ssh_users["*"], "=");
    assert_eq!(rule.ssh_users["root"], "root");
}

#[test]
fn nonroot_keeps_root_out() {
    let users = ssh_users(&[AUTOGROUP_NONROOT.to_owned()]);
    assert_eq!((users["*"].as_str(), users["root"].as_str()), ("=", ""));
    assert_eq!(ssh_users(&["root".to_owned(), AUTOGROUP_NONROOT.to_owned()])["root"], "root");
}

/// The policy that the Action which this replaces asks for, as its README has it.
const ORIGINAL: &str = include_str!("../../policies/original.hujson");

/// The policy of our own README.
const LEAST_PRIVILEGE: &str = include_str!("../../../../docs/policy.json");

/// A coordinator, two builders and a node of the owner.
struct Net {
    tags: [Vec<String>; 4],
    addresses: [Vec<IpNet>; 4],
}

const COORDINATOR: usize = 0;
const BUILDER: usize = 1;
const OTHER_BUILDER: usize = 2;
const OWNED: usize = 3;

impl Net {
    fn new() -> Self {
        let (coordinator, builder) = (vec![COORDINATOR_TAG.to_owned()], vec![BUILDER_TAG.to_owned()]);
        let address = |n| nets(&[&format!("100.64.0.{n}/32"), &format!("fd7a:115c:a1e0::{n}/128")]);
        Self {
            tags: [coordinator, builder.clone(), builder, vec![]],
            addresses: [address(1), address(2), address(3), address(4)],
        }
    }

    fn subject(&self, n: usize) -> Subject<'_> {
        Subject { tags: &self.tags[n], addresses: &self.addresses[n] }
    }

    fn others(&self, n: usize) -> Vec<Subject<'_>> {
        (0..4).filter(|other| *other != n).map(|other| self.subject(other)).collect()
    }

    fn filter(&self, policy: &Policy, n: usize) -> Vec<FilterRule> {
        policy.filter(self.subject(n), &self.others(n))
    }

    fn ssh(&self, policy: &Policy, n: usize) -> Vec<nixtail_proto::tailcfg::SshRule> {
        policy.ssh_policy(self.subject(n), &self.others(n)).rules.into_iter().flatten().collect()
    }

    /// Whether node `from` may open `port` at node `to`.
    fn passes(&self, policy: &Policy, from: usize, to: usize, protocol: i64, port: u16) -> bool {
        let source = self.addresses[from][0].addr();
        let destination = self.addresses[to][0].addr().to_string();
        self.filter(policy, to).iter().any(|rule| {
            let from_there =
                rule.src_ips.iter().any(|ip| selectors::network(ip).is_some_and(|net| net.contains(&source)));
            let to_here = rule
                .dst_ports
                .iter()
                .any(|dst| dst.ip == destination && (dst.ports.first..=dst.ports.last).contains(&port));
            from_there && to_here && (rule.ip_proto.is_empty() || rule.ip_proto.contains(&protocol))
        })
    }
}

#[test]
fn the_policy_of_the_original_action_becomes_filters_and_ssh_policies() {
    let (net, policy) = (Net::new(), Policy::parse(ORIGINAL).unwrap());
    for (from, to) in [(COORDINATOR, BUILDER), (BUILDER, COORDINATOR), (BUILDER, OTHER_BUILDER)] {
        assert!(net.passes(&policy, from, to, 6, 4711) && net.passes(&policy, from, to, 17, 4711), "{from} to {to}");
    }
    assert!(!net.passes(&policy, OWNED, BUILDER, 6, 22) && !net.passes(&policy, BUILDER, OWNED, 6, 22));
    assert!(!policy.joins(net.subject(OWNED), net.subject(BUILDER)));
    assert!(net.ssh(&policy, COORDINATOR).is_empty() && net.ssh(&policy, OWNED).is_empty());
    let [rule] = &net.ssh(&policy, BUILDER)[..] else { panic!("one rule") };
    let from: Vec<&str> = rule.principals.iter().flatten().map(|from| from.node_ip.as_str()).collect();
    assert_eq!(from, ["100.64.0.1", "fd7a:115c:a1e0::1"]);
    assert_eq!((rule.ssh_users["*"].as_str(), rule.ssh_users["root"].as_str()), ("=", "root"));
    assert!(rule.action.as_ref().unwrap().accept);
    let owners = policy.tag_owners.unwrap();
    assert_eq!(owners[BUILDER_TAG], ["autogroup:admin", BUILDER_TAG]);
}

#[test]
fn the_policy_of_the_readme_opens_port_22_of_builders_to_coordinators() {
    let (net, policy) = (Net::new(), Policy::parse(LEAST_PRIVILEGE).unwrap());
    for from in 0..4 {
        for to in 0..4 {
            let meant = from == COORDINATOR && (to == BUILDER || to == OTHER_BUILDER);
            assert_eq!(net.passes(&policy, from, to, 6, 22), meant, "{from} to {to}");
            assert!(!net.passes(&policy, from, to, 6, 23), "{from} to {to}");
        }
        assert_eq!(net.ssh(&policy, from).len(), usize::from(from == BUILDER || from == OTHER_BUILDER));
    }
    assert!(!policy.joins(net.subject(BUILDER), net.subject(OTHER_BUILDER)));
}

#[test]
fn hujson_with_every_kind_of_word() {
    let policy = r#"{
        // Comments, and commas at the ends.
        "groups": { "group:us": ["owner@tail.devnet", "else@example.com"], },
        "hosts": { "first-builder": "100.64.0.2", "v6": "fd7a:115c:a1e0::/64" },
        "tagOwners": { "tag:nix-ci-builder": ["group:us"], "tag:nix-ci-coordinator": ["autogroup:admin"] },
        /* Each opens one thing. */
        "grants": [
            { "src": ["group:us"], "dst": ["first-builder"], "ip": ["tcp:80", "udp:53-60"] },
            { "src": ["autogroup:tagged"], "dst": ["autogroup:self", "v6"], "ip": ["icmp:*"] },
            { "src": ["else@example.com"], "dst": ["*"], "ip": ["*"] },
            { "src": ["*"], "dst": ["tag:nix-ci-coordinator"], "app": { "example.com/cap/x": [{ "a": 1 }] } },
        ],
        "acls": [
            { "action": "accept", "proto": "tcp", "src": ["tag:nix-ci-builder"],
              "dst": ["tag:nix-ci-coordinator:22,8000-8001", "[fd7a:115c:a1e0::4]:1"] },
        ],
        "ssh": [
            { "action": "check", "checkPeriod": "12h", "src": ["autogroup:member"], "dst": ["autogroup:self"],
              "users": ["root"], "acceptEnv": ["NIX_*"] },
        ],
    }"#;
    let (net, policy) = (Net::new(), Policy::parse(policy).unwrap());
    assert!(net.passes(&policy, OWNED, BUILDER, 6, 80) && !net.passes(&policy, OWNED, OTHER_BUILDER, 6, 80));
    assert!(net.passes(&policy, OWNED, BUILDER, 17, 60) && !net.passes(&policy, OWNED, BUILDER, 17, 61));
    assert!(!net.passes(&policy, OWNED, BUILDER, 17, 80), "only what its protocol opens");
    assert!(net.passes(&policy, BUILDER, COORDINATOR, 6, 8001) && !net.passes(&policy, BUILDER, COORDINATOR, 6, 23));
    assert!(!net.passes(&policy, BUILDER, OWNED, 1, 0), "tagged nodes are nobody's own");
    // Of a host or a network only its own addresses are meant.
    let first = &net.filter(&policy, BUILDER)[0];
    assert_eq!(first.dst_ports.iter().map(|dst| dst.ip.as_str()).collect::<Vec<_>>(), ["100.64.0.2"]);
    assert_eq!(net.filter(&policy, OWNED).last().unwrap().dst_ports[0].ip, "fd7a:115c:a1e0::4");
    let capability = net.filter(&policy, COORDINATOR).into_iter().find(|rule| !rule.cap_grant.is_empty()).unwrap();
    assert!(capability.dst_ports.is_empty() && capability.src_ips == EVERYONE);
    assert_eq!(capability.cap_grant[0].cap_map["example.com/cap/x"], Some(vec![serde_json::json!({ "a": 1 })]));
    // There is one node of the owner, so nobody can come to it as himself.
    assert!(net.ssh(&policy, OWNED).is_empty() && policy.ssh[0].check && policy.ssh[0].accept_env == ["NIX_*"]);
}

#[test]
fn without_grants_and_acls_everybody_reaches_everybody_and_with_none_nobody() {
    let net = Net::new();
    assert!(net.passes(&Policy::parse("{}").unwrap(), OWNED, BUILDER, 6, 1));
    assert!(!net.passes(&Policy::parse(r#"{"acls": []}"#).unwrap(), OWNED, BUILDER, 6, 1));
}

#[test]
fn what_is_wrong_has_its_place() {
    let cases = [
        ("", "line 1, column 1: the file is empty"),
        ("{\n  \"grants\": [\n    { \"src\": [], \"dts\": [] }\n  ]\n}", "line 3, column 18: unknown field \"dts\""),
        ("{\"nodeAttrs\": []}", "line 1, column 2: unknown field \"nodeAttrs\""),
        ("{\"acls\": [], \"acls\": []}", "column 14: \"acls\" stands here twice"),
        ("{'acls': []}", "line 1, column 2: "),
        ("{\"acls\": [{\"action\": \"deny\", \"src\": [], \"dst\": []}]}", "column 22: \"deny\" is no action"),
        ("{\"acls\": [{\"action\": \"accept\", \"src\": [], \"dst\": [\"*\"]}]}", "NODE:PORTS"),
        ("{\"acls\": [{\"action\": \"accept\", \"src\": [\"*\"], \"dst\": [\"*:9-1\"]}]}", "\"9-1\" is neither"),
        (
            "{\"tagOwners\": {}, \"grants\": [{\"src\": [\"tag:a\"], \"dst\": [], \"ip\": []}]}",
            "tag not found: \"tag:a\"",
        ),
        ("{\"tagOwners\": {\"tag:a\": [\"tag:b\"]}}", "tag not found: \"tag:b\""),
        ("{\"tagOwners\": {\"a\": []}}", "\"a\" should begin with tag:"),
        ("{\"grants\": [{\"src\": [\"group:x\"], \"dst\": [], \"ip\": []}]}", "group not found"),
        ("{\"grants\": [{\"src\": [\"host\"], \"dst\": [], \"ip\": []}]}", "\"host\" is neither"),
        (
            "{\"grants\": [{\"src\": [], \"dst\": [\"autogroup:internet\"], \"ip\": []}]}",
            "has no \"autogroup:internet\"",
        ),
        ("{\"grants\": [{\"src\": [], \"dst\": []}]}", "needs \"ip\" or \"app\""),
        ("{\"grants\": [{\"src\": [], \"dst\": [], \"ip\": [\"xyz:1\"]}]}", "\"xyz\" is no protocol"),
        ("{\"grants\": {}}", "grants should be a list"),
        (
            "{\"ssh\": [{\"action\": \"accept\", \"src\": [], \"dst\": [], \"users\": [\"localpart:*@x\"]}]}",
            "knows no user",
        ),
        ("{\"ssh\": [{\"action\": \"accept\", \"src\": [], \"dst\": []}]}", "needs \"users\""),
    ];
    for (text, words) in cases {
        let error = Policy::parse(text).expect_err(text).to_string();
        assert!(error.contains(words), "{text}: {error}");
    }
}
