//! Limits in bytes and tokens, from the request to the end of the answer.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::world::{OPEN, PATIENCE, World, json_of, ok, read_until};
use crate::http::Body;
use crate::upstream::testing::origin;

fn limited(unit: &str, limit: u64) -> String {
    format!(
        "{OPEN}\n[[rule]]\nname = \"budget\"\naction = \"rate_limit\"\nlimit = {limit}\n\
         window = \"day\"\nunit = {unit:?}\n"
    )
}

fn post(port: u16, path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: origin.test:{port}\r\nAccept-Encoding: gzip, br, zstd\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn get(port: u16, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: origin.test:{port}\r\nAccept-Encoding: gzip\r\n\r\n")
}

/// What the database has counted.
fn counted(world: &World, unit: &str) -> u64 {
    let query = "SELECT coalesce(sum(used), 0) FROM charges WHERE unit = ?1";
    let used: i64 = world.counters().query_row(query, [unit], |row| row.get(0)).unwrap();
    u64::try_from(used).unwrap()
}

async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited for: {what}"));
}

fn json(body: &'static str) -> Response<Body> {
    let mut response = ok(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

const USAGE: &str = r#"{"id":"msg_1","usage":{"input_tokens":20,"output_tokens":30}}"#;

#[tokio::test]
async fn tokens_are_counted_and_the_next_request_is_refused() {
    let world = World::new(&limited("tokens", 100));
    let origin = world.origin(|_| json(USAGE)).await;
    for _ in 0..2 {
        let answer =
            world.ask("origin.test", origin.port, &post(origin.port, "/v1/messages", "{}")).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(USAGE), "{answer}");
    }
    let answer = world.ask("origin.test", origin.port, &post(origin.port, "/x", "{}")).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(answer.contains("ratelimit-policy: \"budget\";q=100;w=86400;qu=\"tokens\"\r\n"));
    assert!(answer.contains("ratelimit: \"budget\";r=0;t="), "{answer}");
    let object = json_of(&answer);
    assert_eq!((&object["error"], &object["unit"]), (&"rate_limited".into(), &"tokens".into()));
    assert_eq!(origin.heads().len(), 2);
    assert!(origin.heads().iter().all(|head| head.headers["accept-encoding"] == "identity"));
    let records = world.records(3).await;
    assert_eq!(
        (&records[2]["reason"], &records[2]["rule"]),
        (&"rate_limited".into(), &"budget".into())
    );
    wait_until("all is written", || counted(&world, "tokens") == 100).await;
}

#[tokio::test]
async fn without_a_limit_in_tokens_codings_are_the_agents_business() {
    let world = World::new(OPEN);
    let origin = world.origin(|_| json(USAGE)).await;
    world.ask("origin.test", origin.port, &post(origin.port, "/v1/messages", "{}")).await;
    assert_eq!(origin.heads()[0].headers["accept-encoding"], "gzip, br, zstd");
}

#[tokio::test]
async fn what_costs_nothing_is_not_counted_and_what_cannot_be_read_is_a_token_a_byte() {
    let world = World::new(&limited("tokens", 1_000_000));
    let origin = world
        .origin(|seen| {
            let mut response = json(USAGE);
            match seen.head.uri.path() {
                "/refused" => *response.status_mut() = http::StatusCode::UNAUTHORIZED,
                "/list" => response = json(r#"{"data":[]}"#),
                "/coded" => {
                    let coding = HeaderValue::from_static("gzip");
                    response.headers_mut().insert("content-encoding", coding);
                }
                _messages => {}
            }
            response
        })
        .await;
    let body = "x".repeat(1000);
    let unreadable = 1000 + u64::try_from(USAGE.len()).unwrap();
    let rows = [
        (post(origin.port, "/refused", &body), 0),
        (get(origin.port, "/list"), 0),
        (get(origin.port, "/v1/responses/r"), 50),
        (post(origin.port, "/v1/messages", &body), 50),
        (post(origin.port, "/list", &body), 1011),
        (post(origin.port, "/coded", &body), unreadable),
    ];
    let mut expected = 0;
    for (request, tokens) in rows {
        world.ask("origin.test", origin.port, &request).await;
        expected += tokens;
        let seen = || counted(&world, "tokens");
        timeout(PATIENCE, wait_until("it is written", || seen() >= expected)).await.unwrap();
        assert_eq!(seen(), expected, "{request}");
    }
    // An upstream that cannot be reached writes nothing.
    let closed = 1;
    let answer = world.ask("origin.test", closed, &post(closed, "/v1/messages", &body)).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    world.ask("origin.test", origin.port, &post(origin.port, "/v1/messages", "")).await;
    wait_until("it is written", || counted(&world, "tokens") >= expected + 50).await;
    assert_eq!(counted(&world, "tokens"), expected + 50);
}

#[tokio::test]
async fn an_agent_that_leaves_before_the_answer_pays_for_what_it_asked() {
    let world = World::new(&limited("tokens", 1_000_000));
    let (port, mut requests) = silent_origin().await;
    let (mut sender, _connection) = http2(&world, port).await;
    let asking = tokio::spawn(sender.send_request(prompt(port, &"x".repeat(1000))));
    requests.recv().await.unwrap();
    // It resets the stream.
    asking.abort();
    wait_until("it is written", || counted(&world, "tokens") == 1000).await;
}

/// HTTP/2 without TLS: an agent can leave a stream without leaving the connection.
async fn http2(world: &World, port: u16) -> (SendRequest<Body>, JoinHandle<hyper::Result<()>>) {
    let stream = TokioIo::new(world.connect("origin.test", port));
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn prompt(port: u16, body: &str) -> Request<Body> {
    let uri = format!("http://origin.test:{port}/v1/messages");
    Request::post(uri).body(Body::full(body.to_owned())).unwrap()
}

/// An origin that reads requests and never answers; what it says is that one came.
async fn silent_origin() -> (u16, tokio::sync::mpsc::UnboundedReceiver<()>) {
    let (came, requests) = tokio::sync::mpsc::unbounded_channel();
    let (address, _) = origin(move |mut stream| {
        let came = came.clone();
        async move {
            let mut bytes = [0; 4096];
            let mut seen = 0;
            while seen < 1000 {
                seen += tokio::io::AsyncReadExt::read(&mut stream, &mut bytes).await?;
            }
            came.send(()).map_err(io::Error::other)?;
            std::future::pending().await
        }
    })
    .await;
    (address.port(), requests)
}

#[tokio::test]
async fn an_agent_that_leaves_a_stream_pays_for_what_was_written_until_then() {
    let world = World::new(&limited("tokens", 1_000_000));
    let origin = world
        .plain_http2_origin(|_| {
            let start =
                "data: {\"message\":{\"usage\":{\"input_tokens\":700,\"output_tokens\":1}}}\n\n";
            let text = "data: {\"delta\":{\"text\":\"hello\"}}\n\n";
            let events = [start, text].map(|event| Ok::<_, Infallible>(Frame::data(event.into())));
            let body = stream::iter(events).chain(stream::pending());
            let mut response = Response::new(Body::new(StreamBody::new(body)));
            let kind = HeaderValue::from_static("text/event-stream");
            response.headers_mut().insert("content-type", kind);
            response
        })
        .await;
    let (mut sender, _connection) = http2(&world, origin.port).await;
    let mut body = sender.send_request(prompt(origin.port, "{}")).await.unwrap().into_body();
    let mut seen = Vec::new();
    // Each is on the way to the agent when it is sent, and what is known of its cost in the database.
    while !seen.ends_with(b"\"hello\"}}\n\n") {
        seen.extend_from_slice(&body.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    wait_until("what was reported is written", || counted(&world, "tokens") == 701).await;
    drop(body);
    wait_until("the rest is written", || counted(&world, "tokens") == 705).await;
}

#[tokio::test]
async fn a_download_ends_where_its_limit_ends() {
    let chunks = || {
        let chunk = || Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b'x'; 1000])));
        Response::new(Body::new(StreamBody::new(stream::iter((0..100).map(move |_| chunk())))))
    };
    let control = World::new(OPEN);
    let origin = control.origin(move |_| chunks()).await;
    let answer = control.ask("origin.test", origin.port, &get(origin.port, "/")).await;
    assert_eq!(answer.matches('x').count(), 100_000);

    let world = World::new(&limited("bytes", 10_500));
    let origin = world.origin(move |_| chunks()).await;
    let answer = world.ask("origin.test", origin.port, &get(origin.port, "/")).await;
    let passed = answer.matches('x').count();
    assert!((1_000..=10_000).contains(&passed), "{passed} bytes passed");
    let record = &world.records(1).await[0];
    assert_eq!(
        (&record["decision"], &record["reason"], &record["rule"], &record["status"]),
        (&"block".into(), &"rate_limited".into(), &"budget".into(), &200.into())
    );
    assert_eq!(record["bytes_down"], passed);
    let answer = world.ask("origin.test", origin.port, &get(origin.port, "/")).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(
        answer.contains("ratelimit-policy: \"budget\";q=10500;w=86400;qu=\"content-bytes\"\r\n")
    );
}

#[tokio::test]
async fn an_upload_ends_where_its_limit_ends() {
    let world = World::new(&limited("bytes", 10_000));
    let origin = world.origin(|seen| json(if seen.body.is_empty() { "0" } else { "1" })).await;
    let small = post(origin.port, "/", &"x".repeat(4_000));
    let answer = world.ask("origin.test", origin.port, &small).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let large = post(origin.port, "/", &"x".repeat(9_000));
    let answer = world.ask("origin.test", origin.port, &large).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert_eq!(json_of(&answer)["unit"], "bytes");
    let record = &world.records(2).await[1];
    assert_eq!((&record["decision"], &record["reason"]), (&"block".into(), &"rate_limited".into()));
}

#[tokio::test]
async fn a_head_counts_before_anything_is_sent() {
    let world = World::new(&limited("bytes", 1_000));
    let origin = world.origin(|_| ok("here")).await;
    let request = get(origin.port, &format!("/{}", "x".repeat(2_000)));
    let answer = world.ask("origin.test", origin.port, &request).await;
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(origin.heads().is_empty());
}

#[tokio::test]
async fn a_websocket_ends_where_a_limit_in_bytes_or_tokens_ends() {
    for unit in ["bytes", "tokens"] {
        let world = World::new(&limited(unit, 100_000));
        let (address, _) = origin(|mut stream| async move {
            read_until(&mut stream, "\r\n\r\n").await;
            let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            loop {
                stream.write_all(&[b'x'; 1000]).await?;
            }
        })
        .await;
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: origin.test:{}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n",
            address.port()
        );
        let mut stream = world.connect("origin.test", address.port());
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let reading = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer);
        timeout(PATIENCE, reading).await.expect("it ends").unwrap();
        let passed = answer.iter().filter(|byte| **byte == b'x').count();
        // One buffer of the copying is written before it is counted.
        assert!((10_000..=100_000 + 8 * 1024).contains(&passed), "{unit}: {passed}");
        let record = &world.records(1).await[0];
        assert_eq!(
            (&record["reason"], &record["rule"]),
            (&"rate_limited".into(), &"budget".into())
        );
    }
}

#[tokio::test]
async fn counters_that_fail_refuse_the_next_request_and_cut_what_is_counted_in_bytes() {
    let rules = format!(
        "{}[[rule]]\nname = \"requests\"\naction = \"rate_limit\"\nlimit = 1000000\nwindow = \"day\"\n",
        limited("bytes", 1_000_000_000)
    );
    let world = World::new(&rules);
    let origin = world
        .origin(|_| {
            let chunk = || Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b'x'; 1000])));
            let endless = stream::repeat_with(chunk);
            Response::new(Body::new(StreamBody::new(endless)))
        })
        .await;
    let mut stream = world.connect("origin.test", origin.port);
    stream.write_all(get(origin.port, "/").as_bytes()).await.unwrap();
    read_until(&mut stream, "xxx").await;
    world.counters().execute_batch("ALTER TABLE charges RENAME TO elsewhere").unwrap();
    let mut nowhere = tokio::io::sink();
    let reading = tokio::io::copy(&mut stream, &mut nowhere);
    drop(timeout(PATIENCE, reading).await.expect("it is cut"));
    let answer = world.ask("origin.test", origin.port, &get(origin.port, "/")).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(json_of(&answer)["error"], "state_unavailable");
    let records = world.records(2).await;
    for record in records {
        assert_eq!(
            (&record["decision"], &record["reason"]),
            (&"block".into(), &"state_unavailable".into())
        );
    }
    // Back again: the store mends, and so does the gateway.
    world.counters().execute_batch("ALTER TABLE elsewhere RENAME TO charges").unwrap();
    let mut stream = world.connect("origin.test", origin.port);
    stream.write_all(get(origin.port, "/").as_bytes()).await.unwrap();
    assert!(read_until(&mut stream, "xxx").await.starts_with("HTTP/1.1 200 "));
}
