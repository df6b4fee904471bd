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

#[tokio::test]
async fn an_upload_that_never_ends_is_given_up() {
    let (mut client, server) = tokio::io::duplex(1024);
    client.write_all(b"{\"schema\":1,\"direction\":\"upload\",\"duration_ms\":1}\n").await.unwrap();
    let trickle = tokio::spawn(async move {
        while client.write_all(&[0, 0, 0, 1, 0x5a]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let served = timeout(10 * Duration::from_secs(1), serve_within(server, 2 * SHORT)).await;
    assert!(matches!(served, Ok(Err(BenchError::Overdue))), "{served:?}");
    trickle.await.unwrap();
}

#[tokio::test]
async fn a_server_serves_so_many_and_waits_for_them_when_it_stops() {
    let server = Server::default();
    let mut clients = Vec::new();
    for _ in 0..MAX_RUNS {
        let (client, end) = tokio::io::duplex(1024);
        server.handle_stream(end, "silent").unwrap();
        clients.push(client);
    }
    let (_one_more, end) = tokio::io::duplex(1024);
    assert_eq!(server.handle_stream(end, "one more"), Err(Busy));
    // A place that becomes free is given again.
    drop(clients.pop());
    let again = async {
        loop {
            let (client, end) = tokio::io::duplex(1024);
            if server.handle_stream(end, "again").is_ok() {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    clients.push(timeout(Duration::from_secs(5), again).await.expect("the place was given again"));
    timeout(Duration::from_secs(5), server.stop()).await.expect("what goes on is broken off");
    for mut client in clients {
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "the server's end is closed");
    }
    let (_late, end) = tokio::io::duplex(1024);
    assert_eq!(server.handle_stream(end, "late"), Err(Busy));
}
