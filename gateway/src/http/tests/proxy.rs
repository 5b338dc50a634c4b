use tokio::io::AsyncWriteExt as _;

use super::world::{OPEN, World, exchange, json_of, ok, read_until};

#[tokio::test]
async fn an_absolute_target_is_the_destination() {
    let world = World::new(OPEN);
    let origin = world.origin(|_| ok("hi")).await;
    let port = origin.port;
    let request = format!(
        "GET http://origin.test:{port}/p?q HTTP/1.1\r\nHost: origin.test:{port}\r\nProxy-Connection: close\r\n\r\n"
    );
    let answer = world.ask("192.0.2.7", 3128, &request).await;
    assert!(answer.ends_with("\r\n\r\nhi"), "{answer}");
    let heads = origin.heads();
    assert_eq!(heads[0].uri, "/p?q");
    assert!(!heads[0].headers.contains_key("proxy-connection"));
    assert_eq!(world.record().await["host"], "origin.test");
    let differing =
        format!("GET http://origin.test:{port}/ HTTP/1.1\r\nHost: other.test:{port}\r\n\r\n");
    let answer = world.ask("192.0.2.7", 3128, &differing).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn an_absolute_https_target_goes_out_over_verified_tls() {
    let world = World::new(OPEN);
    let origin = world.tls_origin(false, |_| ok("tls")).await;
    let port = origin.port;
    let request =
        format!("GET https://origin.test:{port}/ HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n");
    let answer = world.ask("192.0.2.7", 3128, &request).await;
    assert!(answer.ends_with("\r\n\r\ntls"), "{answer}");
    assert_eq!(world.record().await["scheme"], "https");
}

async fn tunnel(world: &World, authority: &str) -> tokio::io::DuplexStream {
    let mut stream = world.connect("192.0.2.7", 3128);
    let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = read_until(&mut stream, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    stream
}

#[tokio::test]
async fn requests_in_a_tunnel_are_governed_like_all_others() {
    let world = World::new(OPEN);
    let origin = world.tls_origin(false, |_| ok("inside")).await;
    let authority = format!("origin.test:{}", origin.port);
    let stream = world.tls(tunnel(&world, &authority).await, "origin.test", &[]).await;
    let answer = exchange(stream, &format!("GET /x HTTP/1.1\r\nHost: {authority}\r\n\r\n")).await;
    assert!(answer.ends_with("\r\n\r\ninside"), "{answer}");
    let record = world.record().await;
    assert_eq!(
        (&record["host"], &record["reason"]),
        (&"origin.test".into(), &"allowed_by_rule".into())
    );
}

#[tokio::test]
async fn a_denied_host_in_a_tunnel_is_explained_inside_it() {
    let world = World::new("");
    let stream = world.tls(tunnel(&world, "origin.test:443").await, "origin.test", &[]).await;
    let answer = exchange(stream, "GET / HTTP/1.1\r\nHost: origin.test\r\n\r\n").await;
    assert_eq!(json_of(&answer)["error"], "blocked_by_default_policy");
}

#[tokio::test]
async fn another_server_name_than_the_tunnels_host_is_misdirected() {
    let world = World::new(OPEN);
    let stream = world.tls(tunnel(&world, "origin.test:443").await, "other.test", &[]).await;
    let answer = exchange(stream, "GET / HTTP/1.1\r\nHost: other.test\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 421 "), "{answer}");
    assert_eq!(json_of(&answer)["sni"], "other.test");
}

#[tokio::test]
async fn a_tunnel_in_a_tunnel_is_refused() {
    let world = World::new(OPEN);
    let stream = world.tls(tunnel(&world, "origin.test:443").await, "origin.test", &[]).await;
    let answer =
        exchange(stream, "CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    let plain = tunnel(&world, "origin.test:80").await;
    let answer =
        exchange(plain, "CONNECT other.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
}

#[tokio::test]
async fn a_tunnel_without_a_request_leaves_one_connection_record() {
    let world = World::new(OPEN);
    let answer = exchange(tunnel(&world, "origin.test:22").await, "SSH-2.0-x\r\n").await;
    assert_eq!(answer, "");
    let record = world.record().await;
    assert_eq!(
        (&record["kind"], &record["reason"]),
        (&"connection".into(), &"unknown_protocol".into())
    );
}

#[tokio::test]
async fn a_tunnel_behind_a_request_has_a_record_of_its_own() {
    let world = World::new("");
    let mut stream = world.connect("192.0.2.7", 3128);
    stream
        .write_all(b"GET http://origin.test/ HTTP/1.1\r\nHost: origin.test\r\n\r\n")
        .await
        .unwrap();
    assert!(read_until(&mut stream, "}").await.starts_with("HTTP/1.1 403 "));
    stream
        .write_all(b"CONNECT origin.test:22 HTTP/1.1\r\nHost: origin.test:22\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut stream, "\r\n\r\n").await;
    assert_eq!(exchange(stream, "SSH-2.0-x\r\n").await, "");
    let records = world.records(2).await;
    assert_eq!(records[0]["kind"], "request");
    assert_eq!(
        (&records[1]["kind"], &records[1]["reason"], &records[1]["port"]),
        (&"connection".into(), &"unknown_protocol".into(), &22.into())
    );
    assert_eq!(records[1]["process"]["comm"], "curl");
}
