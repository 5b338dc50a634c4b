use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::{OPEN, World, json_of, ok, read_until};
use crate::upstream::testing::origin;

const UPGRADE: &str =
    "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n";

#[tokio::test]
async fn a_websocket_is_bridged_and_counted() {
    let world = World::new(OPEN);
    let (address, _) = origin(|mut stream| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await.to_lowercase();
        assert!(
            head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n")
        );
        stream
            .write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Accept: y\r\n\r\nhello",
            )
            .await?;
        let said = read_until(&mut stream, "!").await;
        stream.write_all(said.to_uppercase().as_bytes()).await
    })
    .await;
    let mut stream = world.connect("origin.test", address.port());
    let request =
        format!("GET /ws HTTP/1.1\r\nHost: origin.test:{}\r\n{UPGRADE}\r\n", address.port());
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = read_until(&mut stream, "hello").await;
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
    assert!(answer.to_lowercase().contains("sec-websocket-accept: y\r\n"), "{answer}");
    stream.write_all(b"bye!").await.unwrap();
    let mut rest = String::new();
    stream.shutdown().await.unwrap();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "BYE!");
    let record = world.record().await;
    assert_eq!(record["status"], 101);
    assert_eq!((&record["bytes_up"], &record["bytes_down"]), (&4.into(), &9.into()));
}

#[tokio::test]
async fn an_upgrade_that_is_declined_is_an_ordinary_answer() {
    let world = World::new(OPEN);
    let origin = world.origin(|_| ok("no")).await;
    let request = format!("GET /ws HTTP/1.1\r\nHost: origin.test:{}\r\n{UPGRADE}\r\n", origin.port);
    let answer = world.ask("origin.test", origin.port, &request).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("no"), "{answer}");
}

#[tokio::test]
async fn other_upgrades_are_not_passed_on_and_unasked_ones_are_refused() {
    let world = World::new(OPEN);
    let (address, _) = origin(|mut stream| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await.to_lowercase();
        assert!(!head.contains("upgrade"), "{head}");
        stream
            .write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
            )
            .await
    })
    .await;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: origin.test:{}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABk\r\n\r\n",
        address.port()
    );
    let answer = world.ask("origin.test", address.port(), &request).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(json_of(&answer)["error"], "upstream_invalid");
}
