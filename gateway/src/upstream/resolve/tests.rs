use super::testing::TestServer;
use super::*;

fn host(text: &str) -> HostName {
    HostName::parse(text).unwrap()
}

/// `ok`, or the word for the error.
fn word<T>(result: &Result<T, ResolveError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(ResolveError::NotFound) => "not found",
        Err(ResolveError::NoData) => "no data",
        Err(ResolveError::Failed { .. }) => "failed",
        Err(ResolveError::Setup { .. }) => "setup",
    }
}

#[tokio::test]
async fn addresses_come_from_both_families() {
    let server = TestServer::start().await;
    let resolver = server.resolver(&[]);
    for (name, expected) in [
        ("www.example.com", &["192.0.2.7", "2001:db8::7"][..]),
        ("alias.example.com", &["192.0.2.7", "2001:db8::7"]),
        ("v6only.example.com", &["2001:db8::7"]),
        // One family failing does not take the other one away.
        ("half.example.com", &["192.0.2.7"]),
    ] {
        let expected: Vec<IpAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(resolver.lookup(&host(name)).await.unwrap(), expected, "{name}");
    }
}

#[tokio::test]
async fn absence_and_failure_are_told_apart() {
    let server = TestServer::start().await;
    let resolver = server.resolver(&[]);
    for (name, expected) in [
        ("nothing.example.com", "not found"),
        ("mailonly.example.com", "no data"),
        ("broken.example.com", "failed"),
        ("refusing.example.com", "failed"),
        ("half-none.example.com", "failed"),
    ] {
        assert_eq!(word(&resolver.lookup(&host(name)).await), expected, "{name}");
    }
}

#[tokio::test]
async fn a_silent_server_is_a_failure_within_the_deadline() {
    let server = TestServer::start().await;
    let resolver = server.resolver(&[]);
    let started = std::time::Instant::now();
    assert_eq!(word(&resolver.lookup(&host("silent.example.com")).await), "failed");
    assert!(
        started.elapsed() < LOOKUP_DEADLINE + Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    assert!(server.packets_for("silent.example.com") >= 2);
}

#[tokio::test]
async fn fixed_names_are_never_asked_of_a_server() {
    let server = TestServer::start().await;
    let resolver = server.resolver(&[("www.example.com", &["10.0.0.7", "fd00::7"])]);
    let expected: Vec<IpAddr> = vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
    assert_eq!(resolver.lookup(&host("www.example.com")).await.unwrap(), expected);
    assert_eq!(
        word(&resolver.lookup_records(&host("www.example.com"), RecordType::TXT).await),
        "no data"
    );
    for name in HOST_LOOPBACK_NAMES {
        assert_eq!(resolver.lookup(&host(name)).await.unwrap(), [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    }
    assert_eq!(server.packets(), 0);
    // The control: names below a fixed one are not fixed.
    assert_eq!(word(&resolver.lookup(&host("a.www.example.com")).await), "not found");
    assert!(server.packets() > 0);
}

#[tokio::test]
async fn the_configuration_wins_over_the_names_of_the_host() {
    let server = TestServer::start().await;
    let resolver = server.resolver(&[("host.docker.internal", &["10.0.0.7"])]);
    let found = resolver.lookup(&host("host.docker.internal")).await.unwrap();
    assert_eq!(found, ["10.0.0.7".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn fixed_names_answer_when_no_server_does() {
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = config::Upstream {
        ca_files: Vec::new(),
        hosts: vec![(host("db.example.com"), vec!["10.0.0.7".parse().unwrap()])],
        resolvers: vec![nobody],
    };
    let resolver = Resolver::new(&config).unwrap();
    assert_eq!(word(&resolver.lookup(&host("db.example.com")).await), "ok");
    assert_eq!(word(&resolver.lookup(&host("www.example.com")).await), "failed");
}

#[tokio::test]
async fn answers_are_kept_for_their_time_to_live() {
    let server = TestServer::start().await;
    let resolver = server.resolver(&[]);
    for name in ["www.example.com", "nothing.example.com"] {
        let first = word(&resolver.lookup(&host(name)).await);
        let asked = server.packets_for(name);
        assert!(asked > 0, "{name}");
        assert_eq!(word(&resolver.lookup(&host(name)).await), first);
        assert_eq!(server.packets_for(name), asked, "{name}");
    }
}

#[tokio::test]
async fn names_are_absolute_whatever_the_host_searches() {
    let server = TestServer::start().await;
    let resolver = server.resolver(&[]);
    assert_eq!(word(&resolver.lookup(&host("single")).await), "not found");
    assert_eq!(server.packets(), server.packets_for("single"));
}

#[tokio::test]
async fn an_answer_that_does_not_fit_a_datagram_comes_over_tcp() {
    let server = TestServer::start().await;
    let resolver = server.resolver(&[]);
    let found = resolver.lookup_records(&host("large.example.com"), RecordType::TXT).await.unwrap();
    assert_eq!(found.len(), 40);
}

#[tokio::test]
async fn records_come_as_the_server_gave_them() {
    let server = TestServer::start().await;
    let resolver = server.resolver(&[]);
    let www = host("www.example.com");
    for (record_type, expected) in
        [(RecordType::TXT, "ok"), (RecordType::MX, "ok"), (RecordType::SRV, "no data")]
    {
        assert_eq!(
            word(&resolver.lookup_records(&www, record_type).await),
            expected,
            "{record_type}"
        );
    }
    let absent = resolver.lookup_records(&host("nothing.example.com"), RecordType::TXT).await;
    assert_eq!(word(&absent), "not found");
}

#[tokio::test]
async fn many_names_at_once_are_all_found_beside_names_that_never_answer() {
    let server = TestServer::start().await;
    let resolver = server.resolver(&[]);
    let slow: Vec<_> = (0..50)
        .map(|_| {
            let resolver = resolver.clone();
            tokio::spawn(async move { resolver.lookup(&host("silent.example.com")).await })
        })
        .collect();
    let quick: Vec<_> = (0..200)
        .map(|number| {
            let resolver = resolver.clone();
            let name = host(&format!("{number}.many.example.com"));
            tokio::spawn(async move { resolver.lookup(&name).await })
        })
        .collect();
    for lookup in quick {
        assert_eq!(lookup.await.unwrap().unwrap(), ["192.0.2.8".parse::<IpAddr>().unwrap()]);
    }
    for lookup in slow {
        lookup.abort();
    }
}
