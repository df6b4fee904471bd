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
use crate::{AuthKeyOptions, Config, Devnet, Policy};

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
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(format!("GET /key?v={VERSION} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let keys: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        let control: MachinePublic = keys["publicKey"].as_str().unwrap().parse().unwrap();

        let mut rng = crate::random::rng().unwrap();
        let machine = MachinePrivate::generate(&mut rng);
        let (initiator, initiation) = Initiator::new(VERSION, &machine, &control, &mut rng).unwrap();
        let mut stream = TcpStream::connect(&address).await.unwrap();
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
        let mut stream = NoiseStream::new(stream, records.sealer, records.opener, vec![]);

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
        let request = Request::post(format!("https://control{path}")).body(()).unwrap();
        let (answer, mut send) = self.calls.send_request(request, false).unwrap();
        send.send_data(serde_json::to_vec(body).unwrap().into(), true).unwrap();
        let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
        (answer.status(), answer.into_body())
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
