use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::{OPEN, PATIENCE, World, exchange, ok, read_until};
use crate::http::Body;

#[tokio::test]
async fn a_permitted_request_arrives_normalised_and_without_the_agents_hop() {
    let world = World::new(OPEN);
    let origin = world
        .origin(|seen| {
            let mut response = Response::new(Body::full(seen.body));
            let fields = response.headers_mut();
            fields.insert("connection", HeaderValue::from_static("x-hop"));
            fields.insert("x-hop", HeaderValue::from_static("1"));
            fields.insert("x-end", HeaderValue::from_static("1"));
            response
        })
        .await;
    let request = format!(
        "POST /a/../%62?q=%2f HTTP/1.1\r\nHost: ORIGIN.test.:{}\r\nConnection: X-Mine, close\r\nX-Mine: 1\r\n\
         Proxy-Authorization: Basic eA==\r\nKeep-Alive: 5\r\nX-Kept: yes\r\nContent-Length: 4\r\n\r\nbody",
        origin.port
    );
    let answer = world.ask("origin.test", origin.port, &request).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nbody"), "{answer}");
    assert!(answer.contains("x-end: 1\r\n") && !answer.contains("x-hop"), "{answer}");
    let heads = origin.heads();
    assert_eq!(heads.len(), 1);
    assert_eq!(heads[0].uri, "/b?q=%2f");
    let mut names: Vec<&str> = heads[0].headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "host", "x-kept"]);
    assert_eq!(heads[0].headers["host"], format!("origin.test:{}", origin.port).as_str());
    let record = world.record().await;
    assert_eq!(record["decision"], "allow");
    assert_eq!(record["reason"], "allowed_by_rule");
    assert_eq!(record["rule"], "open");
    assert_eq!(record["status"], 200);
    assert_eq!(record["path"], "/b");
    assert_eq!(record["upstream"], format!("127.0.0.1:{}", origin.port));
    assert_eq!((&record["bytes_up"], &record["bytes_down"]), (&4.into(), &4.into()));
}

#[tokio::test]
async fn header_names_keep_their_spelling() {
    let world = World::new(OPEN);
    let (address, _) = crate::upstream::testing::origin(|mut stream| async move {
        let seen = read_until(&mut stream, "\r\n\r\n").await;
        let answer = format!(
            "HTTP/1.1 200 OK\r\nX-FooBar: 1\r\nContent-Length: {}\r\n\r\n{seen}",
            seen.len()
        );
        stream.write_all(answer.as_bytes()).await
    })
    .await;
    let request =
        format!("GET / HTTP/1.1\r\nHOST: origin.test:{}\r\nX-mIxEd: 1\r\n\r\n", address.port());
    let answer = world.ask("origin.test", address.port(), &request).await;
    assert!(answer.contains("X-FooBar: 1\r\n"), "{answer}");
    assert!(answer.contains("X-mIxEd: 1\r\n"), "{answer}");
}

#[tokio::test]
async fn a_request_split_at_every_byte_is_one_request() {
    let world = World::new(OPEN);
    let origin = world.origin(|seen| Response::new(Body::full(seen.body))).await;
    let mut stream = world.connect("origin.test", origin.port);
    let request = format!(
        "POST / HTTP/1.1\r\nHost: origin.test:{}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        origin.port
    );
    for byte in request.as_bytes() {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let answer = read_until(&mut stream, "abc").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(origin.heads().len(), 1);
}

#[tokio::test]
async fn get_with_a_chunked_body_keeps_it() {
    let world = World::new(OPEN);
    let origin = world.origin(|seen| Response::new(Body::full(seen.body))).await;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: origin.test:{}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nquery\r\n0\r\n\r\n",
        origin.port
    );
    let answer = world.ask("origin.test", origin.port, &request).await;
    assert!(answer.ends_with("\r\n\r\nquery"), "{answer}");
}

#[tokio::test]
async fn a_body_is_asked_for_with_100_continue_when_it_is_permitted() {
    let world = World::new(OPEN);
    let origin = world.origin(|seen| Response::new(Body::full(seen.body))).await;
    let mut stream = world.connect("origin.test", origin.port);
    let head = format!(
        "POST / HTTP/1.1\r\nHost: origin.test:{}\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n",
        origin.port
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"ab").await.unwrap();
    read_until(&mut stream, "\r\n\r\nab").await;
}

#[tokio::test]
async fn an_answer_to_head_keeps_its_length_and_has_no_body() {
    let world = World::new(OPEN);
    let origin = world
        .origin(|_| {
            let mut response = Response::new(Body::empty());
            response.headers_mut().insert("content-length", HeaderValue::from_static("1234"));
            response
        })
        .await;
    let request = format!("HEAD / HTTP/1.1\r\nHost: origin.test:{}\r\n\r\n", origin.port);
    let answer = world.ask("origin.test", origin.port, &request).await;
    assert!(answer.contains("content-length: 1234\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(world.record().await.get("detail").is_none());
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_each_is_decided() {
    let world = World::new(
        "[[rule]]\nname = \"some\"\nhosts = [\"origin.test\"]\npaths = [\"/a\", \"/c\"]\naction = \"allow\"\n\
         allow_private = true\n",
    );
    let origin = world.origin(|_| ok("hi")).await;
    let requests: String = ["/a", "/b", "/c"]
        .iter()
        .map(|path| format!("GET {path} HTTP/1.1\r\nHost: origin.test:{}\r\n\r\n", origin.port))
        .collect();
    let answers = world.ask("origin.test", origin.port, &requests).await;
    let statuses: Vec<&str> =
        answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "403", "200"], "{answers}");
    let paths: Vec<String> = origin.heads().iter().map(|head| head.uri.to_string()).collect();
    assert_eq!(paths, ["/a", "/c"]);
    assert_eq!(world.records(3).await.len(), 3);
}

fn with_trailers() -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", HeaderValue::from_static("7"));
    let frames =
        vec![Ok::<_, Infallible>(Frame::data(Bytes::from("data"))), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(Body::new(StreamBody::new(stream::iter(frames))));
    response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
    response
}

#[tokio::test]
async fn trailers_travel_both_ways() {
    let world = World::new(OPEN);
    let origin = world
        .origin(|seen| {
            let sum = seen.trailers.and_then(|trailers| trailers.get("x-up").cloned());
            assert_eq!(sum.unwrap(), "9");
            assert_eq!(seen.head.headers["te"], "trailers");
            with_trailers()
        })
        .await;
    let request = format!(
        "POST / HTTP/1.1\r\nHost: origin.test:{}\r\nTE: trailers\r\nConnection: TE\r\nTrailer: x-up\r\n\
         Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nx-up: 9\r\n\r\n",
        origin.port
    );
    let answer = world.ask("origin.test", origin.port, &request).await;
    assert!(answer.ends_with("4\r\ndata\r\n0\r\nx-sum: 7\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn http2_is_spoken_on_both_sides_with_trailers_and_each_stream_is_decided() {
    let world = World::new(
        "[[rule]]\nname = \"some\"\nhosts = [\"origin.test\"]\nmethods = [\"POST\"]\naction = \"allow\"\n\
         allow_private = true\n",
    );
    let origin = world
        .tls_origin(true, |seen| {
            assert_eq!(seen.head.version, http::Version::HTTP_2);
            assert_eq!(seen.body, b"ping");
            with_trailers()
        })
        .await;
    let stream =
        world.tls(world.connect("origin.test", origin.port), "origin.test", &[b"h2"]).await;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = |method: &str| {
        Request::builder()
            .method(method)
            .uri(format!("https://origin.test:{}/svc/Method", origin.port))
            .header("te", "trailers")
            .body(Body::full("ping"))
            .unwrap()
    };
    let response = sender.send_request(request("POST")).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-sum"], "7");
    assert_eq!(body.to_bytes(), "data");
    let denied = sender.send_request(request("DELETE")).await.unwrap();
    assert_eq!(denied.status(), 403);
    let json: serde_json::Value =
        serde_json::from_slice(&denied.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(json["error"], "blocked_by_default_policy");
    let records = world.records(2).await;
    assert_eq!(records[0]["scheme"], "https");
    assert_eq!((&records[0]["bytes_up"], &records[0]["bytes_down"]), (&4.into(), &4.into()));
    assert_eq!(origin.heads().len(), 1);
}

#[tokio::test]
async fn an_endless_answer_streams_and_stops_when_the_agent_does_not_read() {
    let world = World::new(OPEN);
    let produced = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&produced);
    let origin = world
        .origin(move |_| {
            let counter = std::sync::Arc::clone(&counter);
            Response::new(Body::new(StreamBody::new(stream::repeat_with(move || {
                counter.fetch_add(16 * 1024, std::sync::atomic::Ordering::SeqCst);
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(&[b'x'; 16 * 1024])))
            }))))
        })
        .await;
    let mut stream = world.connect("origin.test", origin.port);
    let request = format!("GET / HTTP/1.1\r\nHost: origin.test:{}\r\n\r\n", origin.port);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 4096];
    stream.read_exact(&mut first).await.unwrap();
    // Without back-pressure it would grow for ever; with it, it comes to rest at what the sockets hold.
    let at_rest = tokio::time::timeout(PATIENCE, async {
        loop {
            let before = produced.load(std::sync::atomic::Ordering::SeqCst);
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            if produced.load(std::sync::atomic::Ordering::SeqCst) == before {
                return before;
            }
        }
    })
    .await
    .expect("the origin should have come to rest");
    assert!(at_rest < 32 * 1024 * 1024, "{at_rest} bytes");
    drop(stream);
    let record = world.record().await;
    assert_eq!(record["detail"], "the agent closed before the end of the answer");
}

#[tokio::test]
async fn a_large_upload_arrives_whole() {
    let world = World::new(OPEN);
    let origin = world.origin(|seen| Response::new(Body::full(seen.body.len().to_string()))).await;
    let mut stream = world.connect("origin.test", origin.port);
    let size = 5 * 1024 * 1024;
    let head = format!(
        "PUT / HTTP/1.1\r\nHost: origin.test:{}\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n",
        origin.port
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b'u'; size]).await.unwrap();
    read_until(&mut stream, &format!("\r\n\r\n{size}")).await;
    assert_eq!(world.record().await["bytes_up"], size);
}

#[tokio::test]
async fn an_answer_that_ends_early_is_cut_for_the_agent_too() {
    let world = World::new(OPEN);
    let (address, _) = crate::upstream::testing::origin(|mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await
    })
    .await;
    let request = format!("GET / HTTP/1.1\r\nHost: origin.test:{}\r\n\r\n", address.port());
    let answer = exchange(world.connect("origin.test", address.port()), &request).await;
    assert!(answer.contains("content-length: 9\r\n") && answer.ends_with("half"), "{answer}");
    assert_eq!(world.record().await["reason"], "upstream_invalid");
}

#[tokio::test]
async fn a_malformed_answer_is_a_bad_gateway() {
    let world = World::new(OPEN);
    let (address, _) = crate::upstream::testing::origin(|mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTQ/1.1 200 OK\r\n\r\n").await
    })
    .await;
    let request = format!("GET / HTTP/1.1\r\nHost: origin.test:{}\r\n\r\n", address.port());
    let answer = world.ask("origin.test", address.port(), &request).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert_eq!(super::world::json_of(&answer)["error"], "upstream_invalid");
}

#[tokio::test]
async fn each_side_speaks_its_own_http() {
    let world = World::new(OPEN);
    let origin = world.tls_origin(true, |seen| Response::new(Body::full(seen.body))).await;
    let stream =
        world.tls(world.connect("origin.test", origin.port), "origin.test", &[b"http/1.1"]).await;
    let request = format!(
        "POST /x HTTP/1.1\r\nHost: origin.test:{}\r\nContent-Length: 2\r\n\r\nab",
        origin.port
    );
    let answer = exchange(stream, &request).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ab"), "{answer}");
    let heads = origin.heads();
    assert_eq!(heads[0].uri, format!("https://origin.test:{}/x", origin.port).as_str());
    assert!(!heads[0].headers.contains_key("host"));
}

#[tokio::test]
async fn http2_without_tls_is_spoken_on_both_sides() {
    let world = World::new(OPEN);
    let origin = world.plain_http2_origin(|_| ok("h2c")).await;
    let stream = world.connect("origin.test", origin.port);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let uri = format!("http://origin.test:{}/", origin.port);
    let request =
        |method: &str| Request::builder().method(method).uri(&uri).body(Body::empty()).unwrap();
    let response = sender.send_request(request("GET")).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "h2c");
    let refused = sender.send_request(request("TRACE")).await.unwrap();
    assert_eq!(refused.status(), 405);
}

#[tokio::test]
async fn a_connection_costs_no_more_than_a_page_before_it_has_a_request() {
    let world = World::new(OPEN);
    let size = world.connection_future_bytes();
    assert!(size <= 8 * 1024, "{size} bytes");
}
