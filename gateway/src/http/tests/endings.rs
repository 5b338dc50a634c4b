//! Whatever way a request ends, it leaves exactly one record.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use super::world::{OPEN, World, json_of, read_until};
use crate::gateway::What;
use crate::http::Body;

async fn http2(world: &World, port: u16) -> (SendRequest<Body>, JoinHandle<hyper::Result<()>>) {
    let stream = world.tls(world.connect("origin.test", port), "origin.test", &[b"h2"]).await;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    (sender, tokio::spawn(connection))
}

fn get(port: u16) -> Request<Body> {
    let uri = format!("https://origin.test:{port}/");
    Request::builder().uri(uri).body(Body::empty()).unwrap()
}

/// An answer that begins and never ends.
fn endless() -> Response<Body> {
    let first = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"first")))]);
    Response::new(Body::new(StreamBody::new(first.chain(stream::pending()))))
}

#[tokio::test]
async fn a_stream_that_is_reset_while_its_answer_runs_has_one_record() {
    let world = World::new(OPEN);
    let origin = world.tls_origin(true, |_| endless()).await;
    let (mut sender, _connection) = http2(&world, origin.port).await;
    let response = sender.send_request(get(origin.port)).await.unwrap();
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    drop(body);
    let record = world.record().await;
    assert_eq!(record["detail"], "the agent closed before the end of the answer");
    assert_eq!((&record["status"], &record["bytes_down"]), (&200.into(), &5.into()));
}

#[tokio::test]
async fn streams_that_are_cut_with_their_connection_have_one_record_each() {
    let world = World::new(OPEN);
    let origin = world.tls_origin(true, |_| endless()).await;
    let (mut sender, connection) = http2(&world, origin.port).await;
    let mut bodies = Vec::new();
    for _ in 0..3 {
        bodies.push(sender.send_request(get(origin.port)).await.unwrap().into_body());
    }
    connection.abort();
    drop(bodies);
    let records = world.records(3).await;
    assert!(records.iter().all(|record| record["kind"] == "request"), "{records:?}");
}

#[tokio::test]
async fn a_stream_that_is_reset_before_its_answer_has_one_record() {
    let world = World::new(OPEN);
    let (arrived, mut arrivals) = tokio::sync::mpsc::channel(1);
    let (address, _) = crate::upstream::testing::origin(move |mut stream| {
        let arrived = arrived.clone();
        async move {
            stream.read_u8().await?;
            arrived.send(()).await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.map(drop)
        }
    })
    .await;
    let port = address.port();
    let stream = world.connect("origin.test", port);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let _connection = tokio::spawn(connection);
    let uri = format!("http://origin.test:{port}/");
    let request = Request::builder().uri(uri).body(Body::empty()).unwrap();
    let asking = tokio::spawn(sender.send_request(request));
    arrivals.recv().await.unwrap();
    asking.abort();
    let record = world.record().await;
    assert_eq!(
        (&record["reason"], &record["decision"]),
        (&"client_closed".into(), &"block".into())
    );
}

#[tokio::test]
async fn a_malformed_head_behind_a_refused_body_is_explained_and_recorded() {
    let world = World::new("");
    let mut stream = world.connect("origin.test", 80);
    let head = "POST / HTTP/1.1\r\nHost: origin.test\r\nContent-Length: 5\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(json_of(&read_until(&mut stream, "}").await)["error"], "blocked_by_default_policy");
    stream.write_all(b"helloGET / HTTP/1.1\r\n broken\r\n\r\n").await.unwrap();
    let answer = read_until(&mut stream, "}").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(json_of(&answer)["error"], "bad_request");
    let records = world.records(2).await;
    assert_eq!(records[0]["reason"], "blocked_by_default_policy");
    assert_eq!(records[1]["reason"], "bad_request");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_when_the_gateway_stops_is_told_to_come_back() {
    let world = World::new(OPEN);
    let mut stream = world.connect("origin.test", 80);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
    // Time moves only when everybody waits: the head's beginning is read by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.stages.lifecycle.draining.cancel();
    tokio::time::sleep(Duration::from_secs(1)).await;
    stream.write_all(b"origin.test\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    assert!(answer.contains("retry-after: 5\r\n"), "{answer}");
    assert!(!answer.contains("x-should-retry"), "{answer}");
    assert_eq!(json_of(&answer)["error"], "gateway_restarting");
    assert!(json_of(&answer)["message"].is_string());
    let record = world.record().await;
    assert_eq!((&record["reason"], &record["status"]), (&"gateway_restarting".into(), &503.into()));
}

/// The hosts of these agents speak HTTP/1.1, where a wrong length would make the next request part of this one.
#[tokio::test]
async fn a_length_that_is_not_the_bodys_never_reaches_an_upstream() {
    for (method, length, body) in [
        ("GET", "5", ""),
        ("HEAD", "5", ""),
        ("POST", "5", ""),
        ("POST", "+0", ""),
        ("POST", "3", "abcdef"),
    ] {
        let world = World::new(OPEN);
        let origin = world.tls_origin(false, |_| Response::new(Body::empty())).await;
        let (mut sender, _connection) = http2(&world, origin.port).await;
        let uri = format!("https://origin.test:{}/", origin.port);
        let request = |length: &str, body: &'static str| {
            let body = if body.is_empty() { Body::empty() } else { Body::full(body) };
            let request = Request::builder().method(method).uri(&uri);
            request.header("content-length", length).body(body).unwrap()
        };
        let answer = sender.send_request(request(length, body)).await;
        assert!(answer.is_err(), "{method} {length} {body:?}: {answer:?}");
        // The next request on the same connections is whole.
        let answer = sender.send_request(request("0", "")).await.unwrap();
        assert_eq!(answer.status(), 200, "{method} {length} {body:?}");
        assert_eq!(origin.heads().len(), 1, "{method} {length} {body:?}");
    }
}

#[tokio::test]
async fn a_request_beyond_the_workloads_share_is_refused_at_once_and_the_next_one_after_it_is_served()
 {
    let world = World::new(OPEN);
    let _others = world.stages.quota.leave(What::Requests, 1);
    let origin = world.tls_origin(true, |_| endless()).await;
    let (mut sender, _connection) = http2(&world, origin.port).await;
    let first = sender.send_request(get(origin.port)).await.unwrap();
    let second = sender.send_request(get(origin.port)).await.unwrap();
    assert_eq!(
        (second.status().as_u16(), second.headers()["retry-after"].as_bytes()),
        (429, &b"1"[..])
    );
    let told = second.into_body().collect().await.unwrap().to_bytes();
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    assert_eq!((&told["error"], &told["quota"]), (&"quota_exceeded".into(), &"requests".into()));
    let record = world.record().await;
    assert_eq!((&record["reason"], &record["status"]), (&"quota_exceeded".into(), &429.into()));
    // What is malformed takes no share.
    let uri = format!("https://origin.test:{}/%2F", origin.port);
    let malformed = Request::builder().uri(uri).body(Body::empty()).unwrap();
    assert_eq!(sender.send_request(malformed).await.unwrap().status(), 400);
    assert_eq!(origin.heads().len(), 1);
    drop(first);
    while sender.send_request(get(origin.port)).await.unwrap().status() == 429 {}
    assert_eq!(origin.heads().len(), 2);
}

/// Where log lines go.
#[derive(Clone, Default)]
struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_level_of_the_log_shows_a_secret() {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    for is_http2 in [true, false] {
        // The port is known only when the origin listens, so that the policy is written afterwards.
        let helper = World::new(OPEN);
        let origin = helper.origin(|_| Response::new(Body::empty())).await;
        let plain_http2 = helper.plain_http2_origin(|_| Response::new(Body::empty())).await;
        let port = if is_http2 { plain_http2.port } else { origin.port };
        let world = World::new(&format!(
            "{OPEN}\n[[credential]]\nname = \"token\"\nsource = {{ env = \"TOKEN\" }}\nhosts = [\"origin.test\"]\n\
             ports = [{port}]\nallow_plaintext = true\nagents = [\"worker\"]\n\
             inject = {{ header = \"Authorization\", format = \"Bearer {{value}}\" }}\n",
        ));
        if is_http2 {
            let (mut sender, connection) = hyper::client::conn::http2::handshake(
                TokioExecutor::new(),
                TokioIo::new(world.connect("origin.test", port)),
            )
            .await
            .unwrap();
            let _connection = tokio::spawn(connection);
            let uri = format!("http://origin.test:{port}/");
            let request = Request::builder().uri(uri).body(Body::empty()).unwrap();
            assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
            assert_eq!(plain_http2.heads()[0].headers["authorization"], "Bearer secret-of-TOKEN");
        } else {
            let request = format!("GET / HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n");
            let answer = world.ask("origin.test", port, &request).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert_eq!(origin.heads()[0].headers["authorization"], "Bearer secret-of-TOKEN");
        }
    }
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("TRACE"), "the log was on");
    assert!(!text.contains("secret-of"), "{text}");
}
