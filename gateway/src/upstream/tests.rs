//! Against origins in this process, on loopback addresses.

use std::io;
use std::sync::atomic::Ordering;

use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::testing::{TestCa, origin};
use super::*;
use crate::agent::AgentName;
use crate::audit::Reason;
use crate::gateway::What;
use crate::gateway::lane::Lane;
use crate::net::{Host, HostName};

/// Reads heads and answers each with `answer`.
async fn answer_heads(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    answer: &'static [u8],
) -> io::Result<()> {
    let mut seen = Vec::new();
    loop {
        if stream.read_buf(&mut seen).await? == 0 {
            return Ok(());
        }
        if seen.ends_with(b"\r\n\r\n") {
            seen.clear();
            stream.write_all(answer).await?;
        }
    }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

fn pool(hosts: &[(&str, &str)], ca_files: Vec<std::path::PathBuf>) -> Pool {
    let hosts = hosts
        .iter()
        .map(|(name, ip)| (HostName::parse(name).unwrap(), vec![ip.parse().unwrap()]))
        .collect();
    let config = config::Upstream { ca_files, hosts, resolvers: vec![] };
    let tls = trust::Tls::load(&config.ca_files).unwrap();
    Pool::new(Dialer::new(Resolver::new(&config).unwrap(), tls), quota())
}

fn quota() -> Arc<Quota> {
    Arc::new(Quota::new(Lane::new(1), 1_000_000))
}

fn trust_of(agent: &str, allow_private: bool) -> Trust {
    Trust { agent: AgentName::parse(agent).unwrap(), allow_private, dialect: Dialect::Negotiated }
}

async fn fetch(pool: &Pool, trust: &Trust, uri: &str) -> Result<(String, UpstreamAddr), Reason> {
    let request = Request::builder().uri(uri).body(Body::empty()).unwrap();
    let host = Host::parse(request.uri().host().unwrap()).unwrap();
    let sent = relay::relay(&pool.client(trust), &host, request).await;
    let (response, address) = sent.map_err(|error| error.reason())?;
    let body = response.into_body().collect().await.map_err(|_error| Reason::UpstreamInvalid)?;
    Ok((String::from_utf8(body.to_bytes().to_vec()).unwrap(), address))
}

#[tokio::test]
async fn a_private_address_is_dialled_only_where_a_rule_says_so() {
    let (address, connections) = origin(|stream| answer_heads(stream, OK)).await;
    let pool = pool(&[("a.test", "127.0.0.1")], vec![]);
    for host in ["a.test", "127.0.0.1", "[::ffff:127.0.0.1]"] {
        let uri = format!("http://{host}:{}/", address.port());
        let refused = fetch(&pool, &trust_of("a", false), &uri).await;
        assert_eq!(refused, Err(Reason::BlockedAddress), "{host}");
        assert_eq!(connections.load(Ordering::SeqCst), 0, "{host}: nothing may be dialled");
    }
    let uri = format!("http://a.test:{}/", address.port());
    let answered = fetch(&pool, &trust_of("a", true), &uri).await;
    assert_eq!(answered, Ok(("hi".to_owned(), UpstreamAddr(address))));
}

#[tokio::test]
async fn a_connection_is_used_again_by_the_same_agent_and_by_nobody_else() {
    let (address, connections) = origin(|stream| answer_heads(stream, OK)).await;
    let pool = pool(&[], vec![]);
    let uri = format!("http://{address}/");
    for _ in 0..3 {
        fetch(&pool, &trust_of("a", true), &uri).await.unwrap();
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    fetch(&pool, &trust_of("b", true), &uri).await.unwrap();
    assert_eq!(connections.load(Ordering::SeqCst), 2);
    let refused = fetch(&pool, &trust_of("a", false), &uri).await;
    assert_eq!(refused, Err(Reason::BlockedAddress), "the open connection is another rule's");
}

#[tokio::test]
async fn idle_connections_give_way_before_the_last_share_is_taken() {
    let (first, connections) = origin(|stream| answer_heads(stream, OK)).await;
    let (second, _) = origin(|stream| answer_heads(stream, OK)).await;
    let pool = pool(&[], vec![]);
    let quarter = 1024 / 4;
    let _others = pool.quota().leave(What::UpstreamConnections, quarter + 1);
    let trust = trust_of("a", true);
    for (address, connected) in [(first, 1), (first, 1), (second, 1), (first, 2)] {
        let answered = fetch(&pool, &trust, &format!("http://{address}/")).await;
        assert_eq!(answered, Ok(("hi".to_owned(), UpstreamAddr(address))));
        assert_eq!(connections.load(Ordering::SeqCst), connected, "{address}");
    }
    while pool.quota().upstream_is_scarce() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_connection_too_many_is_refused_and_one_that_has_ended_makes_room() {
    let (quick, _) = origin(|stream| answer_heads(stream, OK)).await;
    let (silent, asked) = origin(|mut stream| async move {
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).await.map(drop)
    })
    .await;
    let pool = pool(&[], vec![]);
    let _others = pool.quota().leave(What::UpstreamConnections, 1);
    let trust = trust_of("a", true);
    let (quick, silent) = (format!("http://{quick}/"), format!("http://{silent}/"));
    let mut waiting = Box::pin(fetch(&pool, &trust, &silent));
    let refused = async {
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        fetch(&pool, &trust, &quick).await
    };
    let refused = tokio::select! {
        answered = &mut waiting => panic!("{answered:?}"),
        refused = refused => refused,
    };
    assert_eq!(refused, Err(Reason::QuotaExceeded));
    drop(waiting);
    assert!(fetch(&pool, &trust, &quick).await.is_ok());
}

#[tokio::test]
async fn only_a_certificate_of_a_root_for_the_name_is_trusted() {
    let ca = TestCa::new();
    let directory = tempfile::tempdir().unwrap();
    let acceptor = ca.acceptor(&["a.test", "127.0.0.1"], &[b"http/1.1"]);
    let (address, _) = origin(move |stream| {
        let acceptor = acceptor.clone();
        async move { answer_heads(acceptor.accept(stream).await?, OK).await }
    })
    .await;
    let hosts = [("a.test", "127.0.0.1"), ("b.test", "127.0.0.1")];
    let trusting = pool(&hosts, vec![ca.write(directory.path())]);
    let distrusting = pool(&hosts, vec![]);
    let trust = trust_of("a", true);
    let at = |host: &str| format!("https://{host}:{}/", address.port());
    assert_eq!(fetch(&trusting, &trust, &at("a.test")).await.map(|f| f.0), Ok("hi".to_owned()));
    assert_eq!(fetch(&trusting, &trust, &at("127.0.0.1")).await.map(|f| f.0), Ok("hi".to_owned()));
    assert_eq!(fetch(&trusting, &trust, &at("b.test")).await, Err(Reason::UpstreamUntrusted));
    assert_eq!(fetch(&distrusting, &trust, &at("a.test")).await, Err(Reason::UpstreamUntrusted));
}

#[tokio::test]
async fn failures_have_the_word_for_their_cause() {
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let (garbage, _) = origin(|stream| answer_heads(stream, b"SMTP ready\r\n\r\n")).await;
    let (silent, _) = origin(|mut stream| async move {
        let mut seen = [0; 64];
        stream.read(&mut seen).await.map(drop)
    })
    .await;
    let (short, _) = origin(|mut stream| async move {
        let mut seen = [0; 64];
        assert_ne!(stream.read(&mut seen).await?, 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi").await
    })
    .await;
    let pool = pool(&[("a.test", "127.0.0.1")], vec![]);
    let rows = [
        (format!("http://{closed}/"), Reason::UpstreamUnreachable),
        (format!("http://{garbage}/"), Reason::UpstreamInvalid),
        (format!("http://{silent}/"), Reason::UpstreamInvalid),
        (format!("http://{short}/"), Reason::UpstreamInvalid),
        (format!("https://{short}/"), Reason::UpstreamUnreachable),
    ];
    for (uri, reason) in rows {
        assert_eq!(fetch(&pool, &trust_of("a", true), &uri).await, Err(reason), "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_without_an_address_is_unresolvable() {
    let config = config::Upstream {
        ca_files: vec![],
        hosts: vec![],
        // Nobody listens there; the packet does not leave the machine.
        resolvers: vec!["127.0.0.1:9".parse().unwrap()],
    };
    let tls = trust::Tls::load(&[]).unwrap();
    let pool = Pool::new(Dialer::new(Resolver::new(&config).unwrap(), tls), quota());
    let failed = fetch(&pool, &trust_of("a", true), "http://nowhere.test/").await;
    assert_eq!(failed, Err(Reason::UpstreamUnresolvable));
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_does_not_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let silent = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).await.map(|_| seen)
    });
    let pool = pool(&[], vec![]);
    let failed = fetch(&pool, &trust_of("a", true), &format!("http://{address}/slow")).await;
    assert_eq!(failed, Err(Reason::UpstreamTimeout));
    let seen = silent.await.unwrap().unwrap();
    assert!(seen.starts_with(b"GET /slow HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&seen));
}

#[test]
fn root_files_that_cannot_be_used_are_errors_at_start() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.pem");
    assert!(matches!(trust::Tls::load(&[missing]), Err(RootsError::Unreadable { .. })));
    let empty = directory.path().join("empty.pem");
    std::fs::write(&empty, "nothing").unwrap();
    assert!(matches!(trust::Tls::load(&[empty]), Err(RootsError::Empty { .. })));
}
