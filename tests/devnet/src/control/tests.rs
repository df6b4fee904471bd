use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::{Request, StatusCode};
use nixtail_proto::key::{MachinePublic, NodePrivate, NodePublic};
use nixtail_proto::noise::{HandshakeProgress, Initiator};
use nixtail_proto::secret::Secret;
use nixtail_proto::tailcfg::{
    Hostinfo, MapRequest, MapResponse, RegisterAuth, RegisterRequest, RegisterResponse, Timestamp,
};
use serde::Serialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::ts2021::NoiseStream;
use super::*;
use crate::{Answer, AuthKeyOptions, Config, Crowd, Devnet, LoginPolicy, Policy};

const VERSION: u16 = 113;
const PATIENCE: Duration = Duration::from_secs(10);

/// A node's end of control, and no more of a node.
struct Client {
    calls: SendRequest<Bytes>,
    key: NodePublic,
}

impl Client {
    async fn connect(devnet: &Devnet) -> Self {
        let address = devnet.url().trim_start_matches("http://").to_owned();
        let key = control_key(devnet).await;
        let (mut stream, mut rng) = noise(&address, &key).await;
        let mut early = [0; 9];
        stream.read_exact(&mut early).await.unwrap();
        assert_eq!(early[..5], *b"\xff\xff\xffTS");
        let mut challenge = vec![0; usize::try_from(u32::from_be_bytes(early[5..].try_into().unwrap())).unwrap()];
        stream.read_exact(&mut challenge).await.unwrap();
        let challenge: serde_json::Value = serde_json::from_slice(&challenge).unwrap();
        assert!(challenge["nodeKeyChallenge"].as_str().unwrap().starts_with("chalpub:"));

        let (calls, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self { calls, key: NodePrivate::generate(&mut rng).public() }
    }

    async fn call(&mut self, path: &str, body: &impl Serialize) -> (StatusCode, h2::RecvStream) {
        self.try_call(path, body).await.unwrap()
    }

    async fn try_call(&mut self, path: &str, body: &impl Serialize) -> Result<(StatusCode, h2::RecvStream), h2::Error> {
        let request = Request::post(format!("https://control{path}")).body(()).unwrap();
        let (answer, mut send) = self.calls.send_request(request, false).unwrap();
        send.send_data(serde_json::to_vec(body).unwrap().into(), true).unwrap();
        let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap()?;
        Ok((answer.status(), answer.into_body()))
    }

    async fn register(&mut self, request: RegisterRequest) -> RegisterResponse {
        let request = RegisterRequest { version: VERSION, node_key: self.key, ..request };
        let (status, mut body) = self.call("/machine/register", &request).await;
        assert_eq!(status, StatusCode::OK);
        let mut json = BytesMut::new();
        while let Some(piece) = body.data().await {
            json.extend_from_slice(&piece.unwrap());
        }
        serde_json::from_slice(&json).unwrap()
    }

    fn map_request(&self) -> MapRequest {
        MapRequest { version: VERSION, node_key: self.key, stream: true, keep_alive: true, ..Default::default() }
    }

    async fn stream(&mut self) -> Stream {
        let request = self.map_request();
        let (status, body) = self.call("/machine/map", &request).await;
        assert_eq!(status, StatusCode::OK);
        Stream { body, unread: BytesMut::new() }
    }
}

async fn control_key(devnet: &Devnet) -> MachinePublic {
    let address = devnet.url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(format!("GET /key?v={VERSION} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let keys: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    keys["publicKey"].as_str().unwrap().parse().unwrap()
}

/// A ts2021 connection after its handshake, as a machine of its own.
async fn noise(address: &str, control: &MachinePublic) -> (NoiseStream, rand::rngs::StdRng) {
    let mut rng = crate::random::rng().unwrap();
    let machine = MachinePrivate::generate(&mut rng);
    let (initiator, initiation) = Initiator::new(VERSION, &machine, control, &mut rng).unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let upgrade = format!(
        "POST /ts2021 HTTP/1.1\r\nHost: {address}\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\
         X-Tailscale-Handshake: {}\r\n\r\n",
        BASE64_STANDARD.encode(initiation)
    );
    stream.write_all(upgrade.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    let mut response = [0; nixtail_proto::noise::RESPONSE_LEN];
    stream.read_exact(&mut response).await.unwrap();
    let HandshakeProgress::Done(records) = initiator.handle_bytes(&response).unwrap() else { panic!() };
    (NoiseStream::new(stream, records.sealer, records.opener, vec![]), rng)
}

struct Stream {
    body: h2::RecvStream,
    unread: BytesMut,
}

impl Stream {
    /// The next message; `None` when the stream has ended.
    async fn next(&mut self) -> Option<MapResponse> {
        loop {
            if let Some(length) = self.unread.first_chunk() {
                let length = usize::try_from(u32::from_le_bytes(*length)).unwrap();
                if self.unread.len() >= 4 + length {
                    let message = self.unread.split_to(4 + length);
                    return Some(serde_json::from_slice(&message[4..]).unwrap());
                }
            }
            let piece = tokio::time::timeout(PATIENCE, self.body.data()).await.expect("a message")?.ok()?;
            self.body.flow_control().release_capacity(piece.len()).unwrap();
            self.unread.extend_from_slice(&piece);
        }
    }

    /// The next message that `wanted` takes something from.
    async fn find<T>(&mut self, wanted: impl Fn(MapResponse) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(self.next().await.expect("the stream goes on")) {
                return found;
            }
        }
    }
}

fn with(key: &Secret, hostname: &str) -> RegisterRequest {
    RegisterRequest {
        auth: Some(RegisterAuth { auth_key: key.clone() }),
        hostinfo: Hostinfo { hostname: hostname.to_owned(), ..Default::default() },
        ..Default::default()
    }
}

async fn devnet() -> (Devnet, Secret) {
    let devnet = Devnet::start(Config { policy: Policy::allow_all(), ..Config::default() }).await.unwrap();
    let options = AuthKeyOptions { reusable: true, ephemeral: true, ..AuthKeyOptions::default() };
    let key = devnet.add_auth_key(options).unwrap();
    (devnet, key)
}

#[tokio::test]
async fn a_stream_tells_all_and_then_what_changes() {
    let (devnet, key) = devnet().await;
    let mut one = Client::connect(&devnet).await;
    assert!(one.register(with(&key, "one")).await.machine_authorized);
    let mut stream = one.stream().await;
    let first = stream.next().await.unwrap();
    assert_eq!(first.node.unwrap().name, "one.tail.devnet.");
    assert!(first.peers.is_empty() && first.packet_filter.is_some() && first.ssh_policy.is_some());
    assert!(first.derp_map.unwrap().regions.unwrap()[&crate::RELAY_REGION].is_some());

    let mut two = Client::connect(&devnet).await;
    two.register(with(&key, "two")).await;
    let peer = stream.find(|message| message.peers_changed.into_iter().next()).await;
    assert_eq!((peer.name.as_str(), peer.online), ("two.tail.devnet.", Some(false)));
    let other = two.stream().await;
    assert!(stream.find(|message| message.online_change.get(&peer.id).copied()).await);

    let mut update = MapRequest { stream: false, omit_peers: true, ..two.map_request() };
    update.endpoints = vec!["127.0.0.1:7".parse().unwrap()];
    update.hostinfo.hostname = "two".to_owned();
    update.hostinfo.ssh_host_keys = vec!["ssh-ed25519 AAAA".to_owned()];
    assert_eq!(two.call("/machine/map", &update).await.0, StatusCode::OK);
    let changed = stream.find(|message| message.peers_changed.into_iter().next()).await;
    assert_eq!(changed.hostinfo.ssh_host_keys, ["ssh-ed25519 AAAA"]);
    update.endpoints = vec!["127.0.0.1:8".parse().unwrap()];
    assert_eq!(two.call("/machine/map", &update).await.0, StatusCode::OK);
    let patch = stream.find(|message| message.peers_changed_patch.into_iter().next().flatten()).await;
    assert_eq!(patch.endpoints.as_deref(), Some(&update.endpoints[..]));

    devnet.set_policy(Policy::default());
    let alone = stream.next().await.unwrap();
    assert_eq!((alone.peers_removed, alone.packet_filter), (vec![peer.id], Some(vec![])));
    assert!(alone.ssh_policy.unwrap().rules.is_empty());
    devnet.set_policy(Policy::allow_all());
    stream.find(|message| message.peers_changed.into_iter().next()).await;

    // What is logged out is gone, and its own stream ends.
    let past = RegisterRequest { expiry: Some(Timestamp::from_unix(123)), ..Default::default() };
    assert!(two.register(past).await.node_key_expired);
    assert_eq!(stream.find(|message| message.peers_removed.first().copied()).await, peer.id);
    let mut other = other;
    while other.next().await.is_some() {}
    let request = two.map_request();
    assert_eq!(two.call("/machine/map", &request).await.0, StatusCode::NOT_FOUND);

    // A second stream ends the first.
    let mut newer = one.stream().await;
    assert!(newer.next().await.unwrap().node.is_some());
    while stream.next().await.is_some() {}
    assert_eq!(devnet.nodes().len(), 1);
    devnet.shutdown().await;
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let (devnet, _) = devnet().await;
    let mut client = Client::connect(&devnet).await;
    let refused = client.register(with(&Secret::new("tskey-auth-x".to_owned()), "one")).await;
    assert!(refused.error.starts_with("invalid auth key"), "{}", refused.error);
    let request = MapRequest { version: 7, ..client.map_request() };
    assert_eq!(client.call("/machine/map", &request).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(client.call("/machine/map", &"nonsense").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(client.call("/machine/elsewhere", &"x").await.0, StatusCode::NOT_FOUND);
    devnet.shutdown().await;
}

#[tokio::test]
async fn calls_meet_what_was_ordered() {
    let (devnet, key) = devnet().await;
    let mut client = Client::connect(&devnet).await;
    let busy = Answer::text(429, "slow down").header("retry-after", "7");
    devnet.misbehave(Call::Register, Misbehaviour::Answer(busy), 1);
    let request = RegisterRequest { version: VERSION, node_key: client.key, ..with(&key, "one") };
    assert_eq!(client.call("/machine/register", &request).await.0, StatusCode::TOO_MANY_REQUESTS);
    devnet.misbehave(Call::Register, Misbehaviour::Delay(Duration::from_millis(50)), 1);
    let before = std::time::Instant::now();
    assert!(client.register(with(&key, "one")).await.machine_authorized);
    assert!(before.elapsed() >= Duration::from_millis(50));
    let calls = devnet.calls(Call::Register);
    assert_eq!((calls.len(), calls[1].version), (2, VERSION));
    assert_eq!(calls[1].body["Hostinfo"]["Hostname"], "one");

    // Cut after it was done: the node is there, its answer isn't.
    let mut two = Client::connect(&devnet).await;
    devnet.misbehave(Call::Register, Misbehaviour::LoseAnswer, 1);
    let request = RegisterRequest { version: VERSION, node_key: two.key, ..with(&key, "two") };
    two.try_call("/machine/register", &request).await.unwrap_err();
    assert!(devnet.node("two").is_some());
    let update = MapRequest { stream: false, omit_peers: true, ..client.map_request() };
    devnet.misbehave(Call::Update, Misbehaviour::Cut, 1);
    client.try_call("/machine/map", &update).await.unwrap_err();

    devnet.misbehave(Call::Key, Misbehaviour::Answer(Answer::text(503, "later")), 1);
    let address = devnet.url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(b"GET /key?v=113 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\nlater"), "{answer}");
    devnet.shutdown().await;
}

#[tokio::test]
async fn a_held_login_is_answered_when_a_person_has_opened_its_url() {
    let (devnet, _) = devnet().await;
    devnet.set_login_policy(LoginPolicy::Held);
    let mut client = Client::connect(&devnet).await;
    let url = client.register(with(&Secret::default(), "one")).await.auth_url;
    assert_eq!(devnet.wait_for_login(PATIENCE).await.unwrap(), url);
    let follow = RegisterRequest { followup: url.clone(), ..with(&Secret::default(), "one") };
    let opened = async {
        // The follow-up is on its way, or waits.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let (address, path) = url.trim_start_matches("http://").split_once('/').unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    };
    let (response, ()) = tokio::join!(client.register(follow), opened);
    assert!(response.machine_authorized && devnet.node("one").is_some());
    devnet.shutdown().await;
}

#[tokio::test]
async fn streams_say_what_they_are_told_to() {
    let (devnet, key) = devnet().await;
    devnet.require_approval(true);
    devnet.set_lock(Some("head"));
    devnet.edit_first_maps(|_, first| first["PacketFilter"] = serde_json::Value::Null);
    let mut one = Client::connect(&devnet).await;
    assert!(!one.register(with(&key, "one")).await.machine_authorized);
    let id = devnet.node("one").unwrap().id;
    let crowd = devnet.add_crowd(&Crowd { count: 3, ..Crowd::default() }).unwrap();
    assert!(matches!(devnet.send_message(id, serde_json::json!({})), Err(crate::DevnetError::NoStream(_))));
    let mut stream = one.stream().await;
    let first = stream.next().await.unwrap();
    assert!(first.packet_filter.is_none() && first.tka_info.is_some_and(|lock| lock.head == "head"));
    assert!(!first.node.unwrap().machine_authorized && first.peers.is_empty());

    devnet.approve(id).unwrap();
    let approved = stream.find(|message| message.node.is_some().then_some(message)).await;
    assert!(approved.node.unwrap().machine_authorized && approved.peers_changed.len() == 3);
    devnet.change_made_up(crowd[1], |node| node.online = Some(false)).unwrap();
    assert_eq!(stream.next().await.unwrap().online_change, [(crowd[1], false)].into());

    devnet.hold_changes(true);
    devnet.remove_made_up(crowd[0]).unwrap();
    devnet.send_message(id, serde_json::json!({ "PeerSeenChange": { "77": true } })).unwrap();
    assert_eq!(stream.next().await.unwrap().peer_seen_change, [(77, true)].into());
    devnet.hold_changes(false);
    assert_eq!(stream.next().await.unwrap().peers_removed, [crowd[0]]);

    devnet.expire_key(id).unwrap();
    assert!(stream.find(|message| message.node).await.expired);
    devnet.drop_stream(id).unwrap();
    assert!(stream.next().await.is_none());
    let mut stream = one.stream().await;
    stream.next().await.unwrap();

    let ping = devnet.ping(id, nixtail_proto::tailcfg::PingRequest::default(), PATIENCE);
    let answered = async {
        let url = stream.find(|message| message.ping_request).await.url;
        assert_eq!(one.call(url.strip_prefix("https://unused").unwrap(), &"pong").await.0, StatusCode::OK);
    };
    let (answer, ()) = tokio::join!(ping, answered);
    assert_eq!(answer.unwrap().body, b"\"pong\"");

    devnet.silence_streams(true);
    devnet.delete_node(id).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(100), stream.body.data()).await.is_err(), "not a word");
    let request = one.map_request();
    assert_eq!(one.call("/machine/map", &request).await.0, StatusCode::NOT_FOUND);
    devnet.silence_streams(false);
    assert!(stream.next().await.is_none());
    devnet.shutdown().await;
}

#[tokio::test]
async fn another_key_and_no_early_payload() {
    let (devnet, _) = devnet().await;
    let before = control_key(&devnet).await;
    devnet.rotate_control_key().unwrap();
    assert_ne!(control_key(&devnet).await, before);
    Client::connect(&devnet).await;
    devnet.send_early_payload(false);
    let (address, key) = (devnet.url().trim_start_matches("http://").to_owned(), control_key(&devnet).await);
    let (mut stream, _) = noise(&address, &key).await;
    // What comes first is HTTP/2: a SETTINGS frame on stream 0.
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!((head[3], &head[5..]), (4, &[0; 4][..]));
    devnet.shutdown().await;
}
