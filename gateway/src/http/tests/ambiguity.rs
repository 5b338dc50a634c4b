//! Requests that two servers may read in two ways.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::world::{OPEN, PATIENCE, World, exchange, json_of, ok, read_until};

const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: origin.test\r\n\r\n";

#[tokio::test]
async fn a_body_that_is_framed_in_two_ways_is_refused_and_ends_the_connection() {
    let chunked = format!("0\r\n\r\n{HIDDEN}");
    let rows = [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "content-length:5\r\nX: y\r\ntransfer-encoding:chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
    ];
    for fields in rows {
        let world = World::new(OPEN);
        let origin = world.origin(|_| panic!("nothing may come here")).await;
        let mut stream = world.connect("origin.test", origin.port);
        let request = format!(
            "POST / HTTP/1.1\r\nHost: origin.test:{}\r\n{fields}\r\n{chunked}",
            origin.port
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        // The agent's side stays open: it is the gateway that closes.
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an end").unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{fields}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{fields}: {answer}");
        assert_eq!(json_of(&answer)["error"], "bad_request", "{fields}");
        assert_eq!(world.record().await["reason"], "bad_request", "{fields}");
    }
}

#[tokio::test]
async fn a_body_that_is_framed_in_one_way_arrives() {
    let world = World::new(OPEN);
    let origin = world.origin(|seen| ok(if seen.body == b"hello" { "yes" } else { "no" })).await;
    for (fields, body) in [
        ("Content-Length: 5\r\n", "hello"),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("transfer-encoding:Chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nHost: origin.test:{}\r\n{fields}\r\n{body}", origin.port);
        let answer = world.ask("origin.test", origin.port, &request).await;
        assert!(answer.ends_with("\r\n\r\nyes"), "{fields}: {answer}");
    }
}

#[tokio::test]
async fn a_pipelined_head_that_is_framed_in_two_ways_is_sent_on_in_one() {
    let world = World::new(OPEN);
    let (address, _) = crate::upstream::testing::origin(|mut stream| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
        let seen = read_until(&mut stream, "0\r\n\r\n").await.to_lowercase();
        assert!(seen.contains("transfer-encoding: chunked") && !seen.contains("content-length"));
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await
    })
    .await;
    let requests = format!(
        "GET / HTTP/1.1\r\nHost: origin.test:{0}\r\n\r\nPOST / HTTP/1.1\r\nHost: origin.test:{0}\r\n\
         Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        address.port()
    );
    let answers = world.ask("origin.test", address.port(), &requests).await;
    assert!(answers.ends_with("hi"), "{answers}");
}

#[tokio::test]
async fn fields_that_name_another_method_or_path_are_refused() {
    let rules = "[[rule]]\nname = \"send\"\nhosts = [\"origin.test\"]\nmethods = [\"POST\"]\naction = \"allow\"\n\
                 allow_private = true\n";
    let world = World::new(rules);
    let origin = world.origin(|_| ok("done")).await;
    for (field, status) in [
        ("X-HTTP-Method-Override: DELETE", 400),
        ("x-http-method: delete", 400),
        ("X-Method-Override: PATCH", 400),
        ("X-HTTP-Method-Override: POST\r\nX-HTTP-Method-Override: DELETE", 400),
        ("X-Original-URL: /admin", 400),
        ("X-Rewrite-Url: /admin", 400),
        // They change nothing.
        ("X-HTTP-Method-Override: post", 200),
        ("X-Other: DELETE", 200),
    ] {
        let request = format!(
            "POST /m HTTP/1.1\r\nHost: origin.test:{}\r\n{field}\r\nContent-Length: 0\r\n\r\n",
            origin.port
        );
        let answer = exchange(world.connect("origin.test", origin.port), &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{field}: {answer}");
    }
    assert_eq!(origin.heads().len(), 2);
}
