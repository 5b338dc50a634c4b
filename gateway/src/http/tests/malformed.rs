use tokio::io::AsyncWriteExt as _;

use super::world::{OPEN, World, exchange, json_of, ok, read_until};

#[tokio::test]
async fn heads_that_cannot_be_parsed_are_answered_like_every_refusal() {
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: origin.test\r\n\r\n", "a".repeat(70_000));
    let many_fields = format!(
        "GET / HTTP/1.1\r\nHost: origin.test\r\n{}\r\n",
        "X-Padding: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(5_000)
    );
    let rows = [
        ("GET / HTTP/1.1\r\nHost: origin.test\r\nBad Field: x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost origin.test\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: origin.test\r\nContent-Length: x\r\n\r\n", 400),
        (
            "POST / HTTP/1.1\r\nHost: origin.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na",
            400,
        ),
        ("POST / HTTP/1.1\r\nHost: origin.test\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (long_target.as_str(), 414),
        (many_fields.as_str(), 431),
    ];
    for (request, status) in rows {
        let world = World::new(OPEN);
        let mut stream = world.connect("origin.test", 80);
        let shown = &request[..request.len().min(60)];
        // The gateway may stop reading in the middle of a head that is too large.
        drop(stream.write_all(request.as_bytes()).await);
        let answer = read_until(&mut stream, "}").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{shown}: {answer}");
        assert_eq!(json_of(&answer)["error"], "bad_request", "{shown}");
        let record = world.record().await;
        assert_eq!(record["kind"], "request", "{shown}");
        assert_eq!(record["reason"], "bad_request", "{shown}");
        assert_eq!(record["status"], status, "{shown}");
    }
}

#[tokio::test]
async fn a_malformed_head_after_a_good_request_is_explained_too() {
    let world = World::new(OPEN);
    let origin = world.origin(|_| ok("hi")).await;
    let mut stream = world.connect("origin.test", origin.port);
    let good = format!("GET / HTTP/1.1\r\nHost: origin.test:{}\r\n\r\n", origin.port);
    stream.write_all(good.as_bytes()).await.unwrap();
    read_until(&mut stream, "\r\n\r\nhi").await;
    let answer = exchange(stream, "GET / HTTP/1.1\r\n broken\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(json_of(&answer)["error"], "bad_request");
    assert_eq!(world.records(2).await.len(), 2);
}

#[tokio::test]
async fn a_fragment_in_the_target_is_refused() {
    let world = World::new(OPEN);
    for target in ["/a#b", "/#", "/a?q#b"] {
        let request = format!("GET {target} HTTP/1.1\r\nHost: origin.test\r\n\r\n");
        let answer = world.ask("origin.test", 80, &request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{target}: {answer}");
        assert_eq!(json_of(&answer)["error"], "bad_request", "{target}");
    }
}

#[tokio::test]
async fn refused_heads_have_their_status() {
    let world = World::new(OPEN);
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: origin.test\r\n\r\n", "a".repeat(8 * 1024));
    let rows = [
        (long_path.as_str(), 414),
        ("TRACE / HTTP/1.1\r\nHost: origin.test\r\n\r\n", 405),
        ("get / HTTP/1.1\r\nHost: origin.test\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: origin.test\r\nHost: origin.test\r\n\r\n", 400),
        ("GET /%2F HTTP/1.1\r\nHost: origin.test\r\n\r\n", 400),
        ("OPTIONS * HTTP/1.1\r\nHost: origin.test\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: origin.test\r\nExpect: magic\r\n\r\n", 417),
    ];
    for (request, status) in rows {
        let answer = world.ask("origin.test", 80, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        assert!(answer.contains("x-should-retry: false\r\n"), "{request}: {answer}");
        assert_eq!(json_of(&answer)["error"], "bad_request", "{request}");
    }
    assert!(world.records(rows.len()).await.iter().all(|r| r["reason"] == "bad_request"));
}

#[tokio::test]
async fn a_connection_without_a_request_has_one_record_of_its_own() {
    let world = World::new(OPEN);
    let answer = exchange(world.connect("origin.test", 80), "").await;
    assert_eq!(answer, "");
    let record = world.record().await;
    assert_eq!(record["kind"], "connection");
    assert_eq!(record["decision"], "block");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_end_is_given_up_and_an_idle_connection_is_kept_longer() {
    let world = World::new(OPEN);
    let mut slow = world.connect("origin.test", 80);
    slow.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
    let started = tokio::time::Instant::now();
    let mut rest = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut slow, &mut rest).await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 20);
    let mut idle = world.connect("origin.test", 80);
    idle.write_all(b"GET /%2F HTTP/1.1\r\nHost: origin.test\r\n\r\n").await.unwrap();
    read_until(&mut idle, "}").await;
    let started = tokio::time::Instant::now();
    tokio::io::AsyncReadExt::read_to_end(&mut idle, &mut rest).await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 120);
}

#[tokio::test]
async fn a_malformed_chunk_is_the_agents_fault() {
    let world = World::new(OPEN);
    let origin = world.origin(|_| ok("never")).await;
    let request = format!(
        "POST / HTTP/1.1\r\nHost: origin.test:{}\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n",
        origin.port
    );
    let answer = world.ask("origin.test", origin.port, &request).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(json_of(&answer)["error"], "bad_request");
    assert_eq!(world.record().await["reason"], "bad_request");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_ends_early_is_the_agents_end() {
    let world = World::new(OPEN);
    let origin = world.origin(|_| ok("never")).await;
    let request = format!(
        "POST / HTTP/1.1\r\nHost: origin.test:{}\r\nContent-Length: 9\r\n\r\nhalf",
        origin.port
    );
    let answer = world.ask("origin.test", origin.port, &request).await;
    assert!(!answer.contains(" 200 "), "{answer}");
    let record = world.record().await;
    assert_eq!(
        (&record["reason"], &record["decision"]),
        (&"client_closed".into(), &"block".into())
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_agent_is_gone_is_given_up() {
    let world = World::new(OPEN);
    let (address, _) = crate::upstream::testing::origin(|mut stream| async move {
        let mut seen = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut seen).await.map(drop)
    })
    .await;
    let request = format!("GET / HTTP/1.1\r\nHost: origin.test:{}\r\n\r\n", address.port());
    let mut stream = world.connect("origin.test", address.port());
    let started = tokio::time::Instant::now();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await.unwrap();
    assert!(answer.is_empty());
    assert_eq!(started.elapsed().as_secs(), 30);
    assert_eq!(world.record().await["reason"], "client_closed");
}
