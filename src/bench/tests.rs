use super::*;

const SHORT: Duration = Duration::from_millis(50);

async fn both(direction: Direction) -> (Outcome, Outcome) {
    let (client, server) = tokio::io::duplex(256 * 1024);
    let server = tokio::spawn(serve(server));
    let client = run(client, direction, SHORT).await.unwrap();
    (client, server.await.unwrap().unwrap())
}

#[tokio::test]
async fn both_sides_count_the_same_bytes() {
    for direction in [Direction::Upload, Direction::Download] {
        let (client, server) = both(direction).await;
        assert!(client.bytes > 0 && client.elapsed >= SHORT);
        assert_eq!(client.bytes, server.bytes);
        assert_eq!(client.remote, server.local);
        assert!(client.local.cpu_s > 0.0 && client.local.rss_bytes > 0);
    }
}

#[tokio::test]
async fn what_is_not_of_the_protocol_is_an_error() {
    for input in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"", b"{\"schema\":9,\"direction\":\"upload\",\"duration_ms\":1}\n"] {
        let (mut client, server) = tokio::io::duplex(1024);
        client.write_all(input).await.unwrap();
        client.shutdown().await.unwrap();
        assert!(matches!(serve(server).await, Err(BenchError::Protocol(_))), "{input:?}");
    }
    let (mut client, server) = tokio::io::duplex(1 << 20);
    client.write_all(b"{\"schema\":1,\"direction\":\"upload\",\"duration_ms\":1}\n\xff\xff\xff\xff").await.unwrap();
    assert!(matches!(serve(server).await, Err(BenchError::Protocol(_))));
}

#[tokio::test]
async fn nobody_keeps_a_server_busy_for_ever() {
    let (mut client, server) = tokio::io::duplex(1024);
    client.write_all(b"{\"schema\":1,\"direction\":\"download\",\"duration_ms\":99999999}\n").await.unwrap();
    assert!(matches!(serve(server).await, Err(BenchError::TooLong)));
}
