use super::world::{OPEN, World, exchange, json_of, ok, read_until};

const RULES: &str = r#"
[[rule]]
name = "reads"
hosts = ["origin.test"]
methods = ["GET", "HEAD", "POST"]
action = "allow"
allow_private = true

[[rule]]
name = "no admin"
hosts = ["origin.test"]
paths = ["/admin/*"]
action = "block"

[[rule]]
name = "few reports"
hosts = ["origin.test"]
paths = ["/report"]
action = "rate_limit"
limit = 1
window = "day"

[[rule]]
name = "public only"
hosts = ["other.test"]
action = "allow"
"#;

#[tokio::test]
async fn a_block_rule_is_explained_with_its_name() {
    let world = World::new(RULES);
    let answer = world
        .ask("origin.test", 80, "GET /x/../admin/users?q=1 HTTP/1.1\r\nHost: origin.test\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
    assert!(answer.contains("x-should-retry: false\r\n"), "{answer}");
    let json = json_of(&answer);
    assert_eq!(json["error"], "blocked_by_policy");
    assert_eq!(json["rule_name"], "no admin");
    assert_eq!(json["method"], "GET");
    assert_eq!(json["path"], "/admin/users");
    assert!(json["message"].is_string());
    let record = world.record().await;
    assert_eq!(record["kind"], "request");
    assert_eq!(record["decision"], "block");
    assert_eq!(record["reason"], "blocked_by_policy");
    assert_eq!(record["rule"], "no admin");
    assert_eq!(record["status"], 403);
    assert_eq!(record["host"], "origin.test");
    assert_eq!(record["path"], "/admin/users");
    assert_eq!(record["process"]["comm"], "curl");
}

#[tokio::test]
async fn what_no_rule_allows_is_denied_and_named() {
    let world = World::new(RULES);
    let answer = world.ask("origin.test", 80, "PUT /a HTTP/1.1\r\nHost: origin.test\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let json = json_of(&answer);
    assert_eq!(json["error"], "blocked_by_default_policy");
    assert_eq!(json["method"], "PUT");
    assert_eq!(json["host"], "origin.test");
    assert_eq!(json["path"], "/a");
}

#[tokio::test]
async fn nothing_is_forwarded_while_the_audit_log_cannot_be_written() {
    let world = World::new(RULES);
    let origin = world.origin(|_| ok("hello")).await;
    let allowed = format!("GET /a HTTP/1.1\r\nHost: origin.test:{}\r\n\r\n", origin.port);
    let refused = format!("PUT /a HTTP/1.1\r\nHost: origin.test:{}\r\n\r\n", origin.port);
    world.fill_disk(true);
    let first = world.ask("origin.test", origin.port, &refused).await;
    assert!(first.starts_with("HTTP/1.1 403 "), "{first}");
    let second = world.ask("origin.test", origin.port, &allowed).await;
    assert!(second.starts_with("HTTP/1.1 503 "), "{second}");
    assert_eq!(json_of(&second)["error"], "state_unavailable");
    assert_eq!(origin.heads().len(), 0);
    world.fill_disk(false);
    // The record of this refusal is the first that can be written again.
    let third = world.ask("origin.test", origin.port, &allowed).await;
    assert!(third.starts_with("HTTP/1.1 503 "), "{third}");
    let fourth = world.ask("origin.test", origin.port, &allowed).await;
    assert!(fourth.starts_with("HTTP/1.1 200 OK"), "{fourth}");
    assert_eq!(origin.heads().len(), 1);
}

#[tokio::test]
async fn a_used_up_limit_says_when_to_come_back() {
    let world = World::new(RULES);
    let origin = world.origin(|_| ok("report")).await;
    let request = format!("GET /report HTTP/1.1\r\nHost: origin.test:{}\r\n\r\n", origin.port);
    let first = world.ask("origin.test", origin.port, &request).await;
    assert!(first.starts_with("HTTP/1.1 200 OK\r\n"), "{first}");
    let second = world.ask("origin.test", origin.port, &request).await;
    assert!(second.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{second}");
    assert!(second.contains("retry-after: "), "{second}");
    assert!(!second.contains("x-should-retry"), "{second}");
    let json = json_of(&second);
    assert_eq!(json["error"], "rate_limited");
    assert_eq!(json["limit"], 1);
    assert_eq!(json["window"], "day");
    assert_eq!(origin.heads().len(), 1);
}

#[tokio::test]
async fn a_private_upstream_without_a_rule_for_it_is_refused() {
    let world = World::new(RULES);
    let origin = world.origin(|_| panic!("nothing may come here")).await;
    let request = format!("GET / HTTP/1.1\r\nHost: other.test:{}\r\n\r\n", origin.port);
    let answer = world.ask("other.test", origin.port, &request).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    let json = json_of(&answer);
    assert_eq!(json["error"], "blocked_address");
    assert_eq!(json["host"], "other.test");
    let record = world.record().await;
    assert_eq!(record["reason"], "blocked_address");
    assert_eq!(record["decision"], "block");
}

#[tokio::test]
async fn an_upstream_that_cannot_be_reached_or_trusted_is_a_bad_gateway() {
    let world = World::new(OPEN);
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let request = format!("GET / HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n");
    let answer = world.ask("origin.test", port, &request).await;
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    assert_eq!(json_of(&answer)["error"], "upstream_unreachable");
    assert_eq!(json_of(&answer)["host"], "origin.test");
    // Its certificate is for origin.test.
    let origin = world.tls_origin(false, |_| ok("never")).await;
    let stream = world.connect("other.test", origin.port);
    let stream = world.tls(stream, "other.test", &[]).await;
    let request = format!("GET / HTTP/1.1\r\nHost: other.test:{}\r\n\r\n", origin.port);
    let answer = exchange(stream, &request).await;
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    assert_eq!(json_of(&answer)["error"], "upstream_untrusted");
    assert!(origin.heads().is_empty());
}

#[tokio::test]
async fn a_mismatch_over_tls_is_misdirected() {
    let world = World::new(OPEN);
    let stream = world.tls(world.connect("origin.test", 443), "other.test", &[]).await;
    let answer = exchange(stream, "GET / HTTP/1.1\r\nHost: other.test\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 421 Misdirected Request\r\n"), "{answer}");
    assert!(answer.contains("x-should-retry: false\r\n"), "{answer}");
    let json = json_of(&answer);
    assert_eq!(json["error"], "destination_mismatch");
    assert_eq!(json["sni"], "other.test");
    assert_eq!(json["host"], "other.test");
    assert_eq!(world.record().await["reason"], "destination_mismatch");
}

#[tokio::test]
async fn a_refusal_to_head_has_no_body() {
    let world = World::new(RULES);
    let answer =
        world.ask("origin.test", 80, "HEAD /admin HTTP/1.1\r\nHost: origin.test\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_denied_request_is_refused_before_its_body_is_asked_for() {
    let world = World::new(RULES);
    let mut stream = world.connect("origin.test", 80);
    let head = "POST /admin/x HTTP/1.1\r\nHost: origin.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
    let answer = read_until(&mut stream, "}").await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(!answer.contains("100 Continue"), "{answer}");
}

#[tokio::test]
async fn the_body_of_a_refused_request_is_never_read_as_the_next_one() {
    let world = World::new(RULES);
    let origin = world.origin(|seen| ok(if seen.body.is_empty() { "next" } else { "body" })).await;
    let smuggled = format!("GET /admin/s HTTP/1.1\r\nHost: origin.test:{}\r\n\r\n", origin.port);
    let requests = format!(
        "POST /admin/x HTTP/1.1\r\nHost: origin.test:{0}\r\nContent-Length: {1}\r\n\r\n{smuggled}\
         GET /next HTTP/1.1\r\nHost: origin.test:{0}\r\n\r\n",
        origin.port,
        smuggled.len()
    );
    let answers = world.ask("origin.test", origin.port, &requests).await;
    assert_eq!(answers.matches("HTTP/1.1 403 ").count(), 1, "{answers}");
    assert!(answers.ends_with("\r\n\r\nnext"), "{answers}");
    assert_eq!(world.records(2).await.len(), 2);
}

#[tokio::test]
async fn a_credential_goes_to_its_host_only_and_replaces_what_the_agent_sent() {
    // The port is known only when the origin listens, so that the policy is written afterwards.
    let helper = World::new(OPEN);
    let origin = helper.origin(|_| ok("hi")).await;
    let world = World::new(&format!(
        "{OPEN}\n[[credential]]\nname = \"token\"\nsource = {{ env = \"TOKEN\" }}\nhosts = [\"origin.test\"]\n\
         paths = [\"/api/*\"]\nports = [{}]\nallow_plaintext = true\nagents = [\"worker\"]\n\
         inject = {{ header = \"Authorization\", format = \"Bearer {{value}}\" }}\n",
        origin.port
    ));
    for (host, path) in [("origin.test", "/api/a"), ("origin.test", "/b"), ("other.test", "/api/a")]
    {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}:{}\r\nAuthorization: mine\r\nauthorization: too\r\n\
             Connection: authorization\r\n\r\n",
            origin.port
        );
        let answer = world.ask(host, origin.port, &request).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    let sent: Vec<Vec<String>> = origin
        .heads()
        .iter()
        .map(|head| {
            let values = head.headers.get_all("authorization").iter();
            values.map(|value| value.to_str().unwrap().to_owned()).collect()
        })
        .collect();
    assert_eq!(sent[0], ["Bearer secret-of-TOKEN"]);
    assert!(sent[1].is_empty() && sent[2].is_empty(), "nominated by Connection: {sent:?}");
    let records = world.records(3).await;
    assert_eq!(records[0]["credential"], "token");
    assert!(records[1].get("credential").is_none() && records[2].get("credential").is_none());
    assert!(!format!("{records:?}").contains("secret-of"), "{records:?}");
}
