use std::io::Write;
use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as WireQuestion};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};

use super::decide::SYNTHETIC_TTL_SECONDS;
use super::serve::{QUERY_MAX_BYTES, TCP_IN_FLIGHT_MAX, TCP_MESSAGES_MAX};
use super::*;
use crate::upstream::resolve::testing::TestServer;

/// Permits example.com and everything below it, lan.example below the search domain, and the host's own names.
struct ExampleOnly;

impl NameGate for ExampleOnly {
    fn permits(&self, host: &HostName) -> bool {
        ["example.com", "db.lan.example", "none.lan.example", "host.docker.internal"].iter().any(
            |permitted| {
                host.as_str()
                    .strip_suffix(permitted)
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            },
        )
    }
}

/// Audit lines in memory, and whether it is full.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>, Arc<AtomicBool>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.1.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn records(&self) -> Vec<serde_json::Value> {
        let bytes = self.0.lock().unwrap();
        String::from_utf8(bytes.clone())
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

struct World {
    upstream: TestServer,
    server: Arc<Server>,
    pool: Arc<SyntheticPool>,
    lines: Lines,
}

impl World {
    async fn new(denied: DeniedName) -> Self {
        let upstream = TestServer::start().await;
        let agent = Arc::new(Agent {
            name: AgentName::parse("test").unwrap(),
            workload: "run-1".to_owned(),
            container: None,
            cgroup_id: 1,
            netns_cookie: 1,
            tally: Arc::default(),
        });
        let (pool, lines) = (Arc::new(SyntheticPool::new()), Lines::default());
        let server = Server::with_gate(
            agent,
            Box::new(ExampleOnly),
            denied,
            upstream.resolver(&[]),
            Arc::clone(&pool),
            Sink::to_writer(Box::new(lines.clone())),
        )
        .with_search(&Search::parse("search lan.example", "box"));
        Self { upstream, server: Arc::new(server), pool, lines }
    }

    async fn ask(&self, name: &str, record_type: RecordType) -> Message {
        let query = query(name, record_type);
        let answer = self.server.answer(&query, Transport::Udp).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }
}

fn query_message(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(WireQuestion::query(name, record_type));
    message
}

fn query(name: &str, record_type: RecordType) -> Vec<u8> {
    query_message(name, record_type).to_vec().unwrap()
}

fn query_with_edns(name: &str, record_type: RecordType, payload: u16) -> Vec<u8> {
    let mut message = query_message(name, record_type);
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_dnssec_ok(true);
    message.set_edns(edns);
    message.to_vec().unwrap()
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    message
        .answers
        .iter()
        .map(|record| match &record.data {
            RData::A(a) => IpAddr::V4(a.0),
            RData::AAAA(aaaa) => IpAddr::V6(aaaa.0),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

#[tokio::test]
async fn a_permitted_name_that_exists_gets_a_synthetic_address_of_each_family() {
    let world = World::new(DeniedName::Explain).await;
    for name in ["www.example.com", "v6only.example.com", "alias.example.com"] {
        for record_type in [RecordType::A, RecordType::AAAA] {
            let answer = world.ask(name, record_type).await;
            assert_eq!(code(&answer), ResponseCode::NoError, "{name}");
            let given = addresses(&answer);
            assert_eq!(given.len(), 1, "{name}");
            assert!(SyntheticPool::contains(given[0]), "{name}: {}", given[0]);
            assert_eq!(given[0].is_ipv4(), record_type == RecordType::A);
            assert_eq!(world.pool.name_of(given[0]).unwrap().as_str(), name);
            assert_eq!(answer.answers[0].ttl, SYNTHETIC_TTL_SECONDS);
            assert_eq!(answer.metadata.id, 0x1234);
            assert!(answer.metadata.recursion_available && answer.metadata.recursion_desired);
        }
    }
}

#[tokio::test]
async fn without_ipv6_in_the_workload_no_name_has_addresses_of_that_family() {
    let mut world = World::new(DeniedName::Explain).await;
    let names = ["www.example.com", "denied.example", "localhost"];
    for has_ipv6 in [true, false] {
        let server = Arc::into_inner(world.server).unwrap().with_ipv6(move || has_ipv6);
        world.server = Arc::new(server);
        for name in names {
            for (record_type, expected) in [(RecordType::A, true), (RecordType::AAAA, has_ipv6)] {
                let answer = world.ask(name, record_type).await;
                assert_eq!(code(&answer), ResponseCode::NoError, "{name}");
                assert_eq!(!addresses(&answer).is_empty(), expected, "{name} {record_type}");
            }
        }
    }
    let missing = world.ask("nothing.example.com", RecordType::AAAA).await;
    assert_eq!(code(&missing), ResponseCode::NXDomain);
}

/// Name, type, code, number of records, decision, reason.
type Row = (&'static str, RecordType, ResponseCode, usize, &'static str, &'static str);

const QUESTIONS: &[Row] = {
    use RecordType as T;
    use ResponseCode as C;
    &[
        ("nothing.example.com", T::A, C::NXDomain, 0, "allow", "dns_nxdomain"),
        ("nothing.example.com", T::TXT, C::NXDomain, 0, "allow", "dns_nxdomain"),
        ("mailonly.example.com", T::A, C::NoError, 0, "allow", "dns_answered"),
        ("broken.example.com", T::A, C::ServFail, 0, "block", "upstream_unresolvable"),
        ("broken.example.com", T::TXT, C::ServFail, 0, "block", "upstream_unresolvable"),
        ("www.example.com", T::TXT, C::NoError, 1, "allow", "dns_answered"),
        ("www.example.com", T::MX, C::NoError, 1, "allow", "dns_answered"),
        ("www.example.com", T::SRV, C::NoError, 0, "allow", "dns_answered"),
        ("alias.example.com", T::TXT, C::NoError, 1, "allow", "dns_answered"),
        ("alias.example.com", T::CNAME, C::NoError, 1, "allow", "dns_answered"),
        ("www.example.com", T::HTTPS, C::NoError, 0, "allow", "dns_answered"),
        ("www.example.com", T::SVCB, C::NoError, 0, "allow", "dns_answered"),
        ("www.example.com", T::Unknown(65_400), C::NoError, 0, "allow", "dns_answered"),
        ("www.example.com", T::ANY, C::Refused, 0, "block", "dns_refused"),
        ("www.example.com", T::AXFR, C::Refused, 0, "block", "dns_refused"),
        ("www.example.com", T::OPT, C::Refused, 0, "block", "dns_refused"),
        ("denied.example", T::A, C::NoError, 1, "block", "blocked_by_default_policy"),
        ("denied.example", T::AAAA, C::NoError, 1, "block", "blocked_by_default_policy"),
        ("denied.example", T::TXT, C::NoError, 0, "block", "blocked_by_default_policy"),
        ("denied.example", T::HTTPS, C::NoError, 0, "block", "blocked_by_default_policy"),
        ("denied.example", T::ANY, C::Refused, 0, "block", "dns_refused"),
        ("notexample.com", T::A, C::NoError, 1, "block", "blocked_by_default_policy"),
        ("localhost", T::A, C::NoError, 1, "allow", "dns_answered"),
        ("localhost", T::MX, C::NoError, 0, "allow", "dns_answered"),
        ("postgres", T::A, C::NXDomain, 0, "block", "dns_nxdomain"),
        ("postgres", T::HTTPS, C::NXDomain, 0, "block", "dns_nxdomain"),
        ("api.github.com.lan.example", T::A, C::NXDomain, 0, "block", "dns_nxdomain"),
        ("lan.example", T::A, C::NXDomain, 0, "block", "dns_nxdomain"),
        ("none.lan.example", T::A, C::NXDomain, 0, "allow", "dns_nxdomain"),
        ("db.lan.example", T::A, C::NoError, 1, "allow", "dns_answered"),
        ("notlan.example", T::A, C::NoError, 1, "block", "blocked_by_default_policy"),
        ("host.docker.internal", T::A, C::NoError, 1, "allow", "dns_answered"),
        ("host.containers.internal", T::A, C::NoError, 1, "block", "blocked_by_default_policy"),
        ("7.2.0.192.in-addr.arpa", T::PTR, C::NXDomain, 0, "block", "dns_nxdomain"),
        ("1.0.18.198.in-addr.arpa", T::PTR, C::NXDomain, 0, "block", "dns_nxdomain"),
        ("1.0.18.198.in-addr.arpa", T::A, C::NXDomain, 0, "block", "dns_nxdomain"),
        ("www.example.com", T::PTR, C::NXDomain, 0, "block", "dns_nxdomain"),
        ("127.1", T::A, C::NXDomain, 0, "block", "dns_nxdomain"),
        (".", T::NS, C::NoError, 0, "allow", "dns_answered"),
    ]
};

#[tokio::test]
async fn each_kind_of_question_has_its_answer_and_its_record() {
    let world = World::new(DeniedName::Explain).await;
    for (number, (name, record_type, expected, records, decision, reason)) in
        QUESTIONS.iter().copied().enumerate()
    {
        let answer = world.ask(name, record_type).await;
        let what = format!("{name} {record_type}");
        assert_eq!(code(&answer), expected, "{what}");
        assert_eq!(answer.answers.len(), records, "{what}: {:?}", answer.answers);
        let lines = world.lines.records();
        assert_eq!(lines.len(), number + 1, "{what}");
        let line = &lines[number];
        let said =
            (&line["kind"], &line["scheme"], &line["method"], &line["decision"], &line["reason"]);
        let expected = (
            "dns".into(),
            "udp".into(),
            match record_type {
                RecordType::Unknown(code) => format!("TYPE{code}").into(),
                known => known.to_string().into(),
            },
            decision.into(),
            reason.into(),
        );
        assert_eq!(
            said,
            (&expected.0, &expected.1, &expected.2, &expected.3, &expected.4),
            "{what}"
        );
        assert_eq!(line["host"], name, "{what}");
    }
}

#[tokio::test]
async fn localhost_is_the_agents_own_loopback() {
    let world = World::new(DeniedName::Explain).await;
    for (record_type, expected) in [(RecordType::A, "127.0.0.1"), (RecordType::AAAA, "::1")] {
        for name in ["LocalHost", "app.localhost"] {
            let answer = world.ask(name, record_type).await;
            assert_eq!(addresses(&answer), [expected.parse::<IpAddr>().unwrap()]);
        }
    }
    assert!(SyntheticPool::contains(
        addresses(&world.ask("notlocalhost.example", RecordType::A).await)[0]
    ));
    assert_eq!(world.upstream.packets(), 0);
}

#[tokio::test]
async fn nothing_about_a_denied_name_is_sent_to_anybody() {
    for (denied, name) in [
        (DeniedName::Explain, "denied.example"),
        (DeniedName::Explain, "secret-data.attacker.example"),
        (DeniedName::Explain, "example.com.attacker.example"),
        (DeniedName::Explain, "notexample.com"),
        (DeniedName::Explain, "x.lan.example"),
        (DeniedName::Explain, "single"),
        (DeniedName::Explain, "7.2.0.192.in-addr.arpa"),
        (DeniedName::Refuse, "secret-data.attacker.example"),
        (DeniedName::Refuse, "x.lan.example"),
    ] {
        // A world of its own for each, so that no query is refused for being one too many.
        let world = World::new(denied).await;
        for number in 0..=260 {
            let transport = [Transport::Udp, Transport::Tcp][number % 2];
            let bytes = query(name, RecordType::from(u16::try_from(number).unwrap()));
            assert!(world.server.answer(&bytes, transport).await.is_some());
        }
        let unanswered = [RecordType::HTTPS, RecordType::ANY, RecordType::PTR];
        for record_type in unanswered.into_iter().chain([RecordType::Unknown(65_400)]) {
            world.ask("www.example.com", record_type).await;
        }
        assert_eq!(world.upstream.packets(), 0, "{name}");
        assert!(world.lines.records().iter().all(|line| line["reason"] != "rate_limited"));

        // The control: the same server does send a packet for a permitted name.
        assert_eq!(addresses(&world.ask("www.example.com", RecordType::A).await).len(), 1);
        assert!(world.upstream.packets_for("www.example.com") > 0);
    }
}

#[tokio::test]
async fn denied_names_are_refused_where_the_configuration_says_so() {
    let world = World::new(DeniedName::Refuse).await;
    for record_type in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
        let answer = world.ask("denied.example", record_type).await;
        assert_eq!((code(&answer), answer.answers.len()), (ResponseCode::Refused, 0));
    }
    assert_eq!(code(&world.ask("denied.example", RecordType::HTTPS).await), ResponseCode::NoError);
    assert_eq!(code(&world.ask("x.lan.example", RecordType::A).await), ResponseCode::NXDomain);
    assert_eq!(code(&world.ask("www.example.com", RecordType::A).await), ResponseCode::NoError);
}

#[tokio::test]
async fn the_pointer_of_a_synthetic_address_is_its_name() {
    let world = World::new(DeniedName::Explain).await;
    let name = HostName::parse("www.example.com").unwrap();
    let (v4, v6) = world.pool.addresses_of(&name).unwrap();
    for address in [IpAddr::from(v4), IpAddr::from(v6)] {
        let reverse = Name::from(address).to_ascii();
        let answer = world.ask(&reverse, RecordType::PTR).await;
        assert_eq!(answer.answers.len(), 1, "{reverse}");
        assert_eq!(answer.answers[0].data.to_string(), "www.example.com.");
        assert_eq!(code(&world.ask(&reverse, RecordType::TXT).await), ResponseCode::NoError);
    }
    for almost in [
        "1.18.198.in-addr.arpa",
        "01.0.18.198.in-addr.arpa",
        "0.0.1.0.18.198.in-addr.arpa",
        "1.ip6.arpa",
    ] {
        assert_eq!(
            code(&world.ask(almost, RecordType::PTR).await),
            ResponseCode::NXDomain,
            "{almost}"
        );
    }
    assert_eq!(world.upstream.packets(), 0);
}

#[tokio::test]
async fn the_question_comes_back_as_it_was_spelt() {
    let world = World::new(DeniedName::Explain).await;
    for (name, record_type) in [
        ("wWw.ExAmPlE.cOm", RecordType::A),
        ("wWw.ExAmPlE.cOm", RecordType::TXT),
        ("aLiAs.example.com", RecordType::TXT),
        ("DeNiEd.eXaMpLe", RecordType::A),
        ("NoThInG.example.com", RecordType::A),
    ] {
        let answer = world.ask(name, record_type).await;
        assert_eq!(answer.queries[0].name().to_ascii(), format!("{name}."));
        for record in &answer.answers {
            assert_eq!(record.name.to_ascii(), format!("{name}."));
        }
    }
    let (lower, mixed) = (
        world.ask("www.example.com", RecordType::A).await,
        world.ask("WWW.example.com", RecordType::A).await,
    );
    assert_eq!(addresses(&lower), addresses(&mixed));
}

#[tokio::test]
async fn a_dot_inside_a_label_does_not_make_a_permitted_name() {
    let world = World::new(DeniedName::Explain).await;
    // One label "www.example" before "com": another name than www.example.com.
    let mut bytes = query("www.example.com", RecordType::A);
    assert_eq!(bytes[12], 3);
    bytes[12] = 11;
    bytes[16] = b'.';
    let answer =
        Message::from_vec(&world.server.answer(&bytes, Transport::Udp).await.unwrap()).unwrap();
    assert_eq!(code(&answer), ResponseCode::NXDomain);
    assert_eq!(world.upstream.packets(), 0);
}

#[tokio::test]
async fn what_is_no_plain_query_is_refused_with_its_code() {
    let world = World::new(DeniedName::Explain).await;
    let plain = query("www.example.com", RecordType::A);
    let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = plain.clone();
        edit(&mut bytes);
        bytes
    };
    let edns = query_with_edns("www.example.com", RecordType::A, 1232);
    let opt = &edns[plain.len()..];
    let mut chaos = query_message("www.example.com", RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    // BADVERS and BADSIG share the number 16; the reader of the test calls it BADSIG.
    let rows: Vec<(&str, Vec<u8>, Option<ResponseCode>)> = vec![
        ("a response", edited(&|b| b[2] |= 0x80), None),
        ("eleven bytes", plain[..11].to_vec(), None),
        ("only a header", plain[..12].to_vec(), Some(ResponseCode::FormErr)),
        ("an update", edited(&|b| b[2] = 5 << 3), Some(ResponseCode::NotImp)),
        ("a notification", edited(&|b| b[2] = 4 << 3), Some(ResponseCode::NotImp)),
        ("no question", edited(&|b| b[5] = 0), Some(ResponseCode::FormErr)),
        ("two questions", edited(&|b| b[5] = 2), Some(ResponseCode::FormErr)),
        ("an answer", edited(&|b| b[7] = 1), Some(ResponseCode::FormErr)),
        ("an authority", edited(&|b| b[9] = 1), Some(ResponseCode::FormErr)),
        ("a missing OPT", edited(&|b| b[11] = 1), Some(ResponseCode::FormErr)),
        ("bytes at the end", edited(&|b| b.push(0)), Some(ResponseCode::FormErr)),
        ("a pointer", edited(&|b| b[12] = 0xc0), Some(ResponseCode::FormErr)),
        ("an extended label", edited(&|b| b[12] = 0x41), Some(ResponseCode::FormErr)),
        ("class CH", chaos.to_vec().unwrap(), Some(ResponseCode::Refused)),
        ("two OPTs", [&edited(&|b| b[11] = 2)[..], opt, opt].concat(), Some(ResponseCode::FormErr)),
        (
            "EDNS version 1",
            {
                let mut bytes = edns.clone();
                bytes[plain.len() + 6] = 1;
                bytes
            },
            Some(ResponseCode::BADSIG),
        ),
        ("the control", plain.clone(), Some(ResponseCode::NoError)),
        ("the control with EDNS", edns.clone(), Some(ResponseCode::NoError)),
    ];
    for (what, bytes, expected) in rows {
        let answer = world.server.answer(&bytes, Transport::Udp).await;
        let answer = answer.map(|bytes| Message::from_vec(&bytes).unwrap());
        assert_eq!(answer.as_ref().map(code), expected, "{what}");
        if let Some(answer) = answer {
            assert_eq!(answer.metadata.message_type, MessageType::Response, "{what}");
            assert_eq!(answer.metadata.id, 0x1234, "{what}");
        }
    }
}

#[tokio::test]
async fn edns_is_answered_with_edns_and_never_without_being_asked() {
    let world = World::new(DeniedName::Explain).await;
    assert!(world.ask("denied.example", RecordType::A).await.edns.is_none());
    for payload in [0, 512, 1232, 65_535] {
        let bytes = query_with_edns("denied.example", RecordType::A, payload);
        let answer = world.server.answer(&bytes, Transport::Udp).await.unwrap();
        let edns = Message::from_vec(&answer).unwrap().edns.unwrap();
        assert_eq!((edns.max_payload(), edns.version(), edns.flags().dnssec_ok), (1232, 0, true));
    }
}

#[tokio::test]
async fn an_answer_too_large_for_udp_is_marked_and_comes_whole_over_tcp() {
    let world = World::new(DeniedName::Explain).await;
    for (bytes, limit) in [
        (query("large.example.com", RecordType::TXT), 512),
        (query_with_edns("large.example.com", RecordType::TXT, 65_535), 1232),
    ] {
        let cut = world.server.answer(&bytes, Transport::Udp).await.unwrap();
        assert!(cut.len() <= limit, "{}", cut.len());
        let cut = Message::from_vec(&cut).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty());
        let whole = world.server.answer(&bytes, Transport::Tcp).await.unwrap();
        let whole = Message::from_vec(&whole).unwrap();
        assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 40));
    }
}

#[tokio::test]
async fn queries_over_the_limit_are_refused_and_share_one_record() {
    let world = World::new(DeniedName::Explain).await;
    let bytes = query("denied.example", RecordType::A);
    let mut refused = 0;
    for _ in 0..QUERY_BURST * 4 {
        let answer = world.server.answer(&bytes, Transport::Udp).await.unwrap();
        refused += usize::from(code(&Message::from_vec(&answer).unwrap()) == ResponseCode::Refused);
    }
    let answered = usize::try_from(QUERY_BURST * 4).unwrap() - refused;
    assert!(refused > 0 && answered >= usize::try_from(QUERY_BURST).unwrap());
    let World { lines, server, .. } = world;
    let limited = || {
        let mut records = lines.records();
        records.retain(|line| line["reason"] == "rate_limited");
        records
    };
    assert!((1..10).contains(&limited().len()), "{}", limited().len());
    assert_eq!(lines.records().len(), answered + limited().len());
    // With what is written at the end of the workload each refusal has been counted, once.
    drop(server);
    let count = |line: &serde_json::Value| {
        let detail = line["detail"].as_str().unwrap().split(' ').next().unwrap();
        detail.parse::<usize>().unwrap()
    };
    assert_eq!(limited().iter().map(count).sum::<usize>(), refused);
}

#[tokio::test]
async fn nothing_is_asked_upstream_while_the_audit_log_cannot_be_written() {
    let world = World::new(DeniedName::Explain).await;
    world.lines.1.store(true, Ordering::Relaxed);
    // The record of this one shows that the log fails.
    assert_eq!(addresses(&world.ask("denied.example", RecordType::A).await).len(), 1);
    for record_type in [RecordType::A, RecordType::TXT] {
        let answer = world.ask("www.example.com", record_type).await;
        assert_eq!(code(&answer), ResponseCode::ServFail);
    }
    assert_eq!(world.upstream.packets(), 0);
    // The control: as soon as the log takes a record, everything goes on.
    world.lines.1.store(false, Ordering::Relaxed);
    assert_eq!(code(&world.ask("www.example.com", RecordType::A).await), ResponseCode::ServFail);
    assert_eq!(world.lines.records()[0]["reason"], "state_unavailable");
    assert_eq!(addresses(&world.ask("www.example.com", RecordType::A).await).len(), 1);
}

#[tokio::test]
async fn a_full_pool_refuses_denied_names_and_still_serves_permitted_ones() {
    let world = World::new(DeniedName::Explain).await;
    for number in 0..synthetic::DENIED_NAMES_MAX {
        let name = HostName::parse(&format!("{number}.denied.example")).unwrap();
        assert!(world.pool.addresses_of_denied(&name).is_some());
    }
    assert_eq!(code(&world.ask("new.denied.example", RecordType::A).await), ResponseCode::Refused);
    assert_eq!(
        world.lines.records()[0]["detail"],
        "the workload has used up its synthetic addresses"
    );
    assert_eq!(addresses(&world.ask("7.denied.example", RecordType::A).await).len(), 1);
    assert_eq!(addresses(&world.ask("www.example.com", RecordType::A).await).len(), 1);
    // Permitted names take what is left, until nothing is.
    let permitted = (0..).map(|number| HostName::parse(&format!("{number}.example.com")).unwrap());
    let taken = permitted.take_while(|name| world.pool.addresses_of(name).is_some()).count();
    assert_eq!(taken, synthetic::NAMES_MAX - synthetic::DENIED_NAMES_MAX - 1);
    assert_eq!(code(&world.ask("alias.example.com", RecordType::A).await), ResponseCode::ServFail);
    let lines = world.lines.records();
    let last = lines.last().unwrap();
    assert_eq!((&last["decision"], &last["reason"]), (&"block".into(), &"rate_limited".into()));
    assert_eq!(last["detail"], "the workload has used up its synthetic addresses");
    assert_eq!(addresses(&world.ask("www.example.com", RecordType::A).await).len(), 1);
}

#[tokio::test]
async fn datagrams_are_answered_from_the_address_they_were_sent_to() {
    let world = World::new(DeniedName::Explain).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let serving = tokio::spawn(Arc::clone(&world.server).serve_udp(socket));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(address).await.unwrap();
    let mut buffer = vec![0; 2048];
    // Junk between the queries stops nothing; a slow query holds up no other one.
    client.send(&query("silent.example.com", RecordType::A)).await.unwrap();
    for name in ["www.example.com", "denied.example"] {
        client.send(b"junk").await.unwrap();
        client.send(&query(name, RecordType::A)).await.unwrap();
        let length = client.recv(&mut buffer).await.unwrap();
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(answer.queries[0].name().to_ascii(), format!("{name}."));
        assert_eq!(addresses(&answer).len(), 1);
    }
    serving.abort();
}

#[tokio::test]
async fn more_datagrams_than_can_be_answered_at_once_are_refused_at_once() {
    let world = World::new(DeniedName::Explain).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let serving = tokio::spawn(Arc::clone(&world.server).serve_udp(socket));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(address).await.unwrap();
    let _all =
        world.server.in_flight.acquire_many(IN_FLIGHT_MAX.try_into().unwrap()).await.unwrap();
    client.send(&query("www.example.com", RecordType::A)).await.unwrap();
    let mut buffer = vec![0; 2048];
    let length = client.recv(&mut buffer).await.unwrap();
    assert_eq!(code(&Message::from_vec(&buffer[..length]).unwrap()), ResponseCode::Refused);
    assert_eq!(world.upstream.packets(), 0);
    serving.abort();
}

async fn tcp_client(world: &World) -> tokio::net::TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Arc::clone(&world.server);
    tokio::spawn(async move {
        let (stream, _peer) = listener.accept().await.unwrap();
        server.serve_tcp(stream).await;
    });
    TcpSocket::new_v4().unwrap().connect(address).await.unwrap()
}

async fn exchange(stream: &mut tokio::net::TcpStream, query: &[u8]) -> std::io::Result<Message> {
    stream.write_u16(query.len().try_into().unwrap()).await?;
    // Byte by byte: framing must not rely on segments.
    for byte in query {
        stream.write_all(&[*byte]).await?;
    }
    let mut answer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut answer).await?;
    Ok(Message::from_vec(&answer).unwrap())
}

#[tokio::test]
async fn one_connection_answers_several_queries_and_only_so_many() {
    let world = World::new(DeniedName::Explain).await;
    let mut stream = tcp_client(&world).await;
    for number in 0..TCP_MESSAGES_MAX {
        let name = ["www.example.com", "denied.example"][number % 2];
        let answer = exchange(&mut stream, &query(name, RecordType::A)).await.unwrap();
        assert_eq!(addresses(&answer).len(), 1);
    }
    assert!(exchange(&mut stream, &query("www.example.com", RecordType::A)).await.is_err());
    assert_eq!(world.lines.records().len(), TCP_MESSAGES_MAX);
    assert!(world.lines.records().iter().all(|line| line["scheme"] == "tcp"));
}

#[tokio::test]
async fn queries_in_one_segment_are_answered_side_by_side() {
    let world = World::new(DeniedName::Explain).await;
    let mut stream = tcp_client(&world).await;
    let mut segment = Vec::new();
    // Nobody answers for the first name: what was asked after it does not wait.
    let names = ["silent.example.com", "www.example.com", "denied.example", "nothing.example.com"];
    for name in names {
        let query = query(name, RecordType::A);
        segment.extend(u16::try_from(query.len()).unwrap().to_be_bytes());
        segment.extend(query);
    }
    stream.write_all(&segment).await.unwrap();
    // A client that says that it asks nothing more still gets its answers.
    stream.shutdown().await.unwrap();
    let mut answered = Vec::new();
    for _ in names {
        let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut answer).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        answered.push((answer.queries[0].name().to_ascii(), code(&answer)));
    }
    assert_eq!(answered[3], ("silent.example.com.".to_owned(), ResponseCode::ServFail));
    answered.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let codes: Vec<ResponseCode> = answered.iter().map(|(_, code)| *code).collect();
    let expected = [
        ResponseCode::NoError,
        ResponseCode::NXDomain,
        ResponseCode::ServFail,
        ResponseCode::NoError,
    ];
    assert_eq!(codes, expected, "{answered:?}");
    let mut rest = Vec::new();
    assert_eq!(stream.read_to_end(&mut rest).await.unwrap(), 0);
}

#[tokio::test]
async fn one_connection_has_only_so_many_queries_in_hand() {
    let world = World::new(DeniedName::Explain).await;
    let room = world.server.in_flight.acquire_many(IN_FLIGHT_MAX.try_into().unwrap()).await;
    let (mut client, server) = tokio::io::duplex(1 << 16);
    let query = query("denied.example", RecordType::A);
    for _ in 0..TCP_IN_FLIGHT_MAX + 1 {
        client.write_u16(query.len().try_into().unwrap()).await.unwrap();
        client.write_all(&query).await.unwrap();
    }
    let serving = world.server.serve_stream(server);
    let reading = async {
        // Nothing is answered while the workload has no room; then everything is.
        let mut first = [0; 2];
        let early = tokio::time::timeout(Duration::from_millis(50), client.read_exact(&mut first));
        assert!(early.await.is_err());
        drop(room);
        for number in 0..TCP_IN_FLIGHT_MAX + 1 {
            let length =
                client.read_u16().await.unwrap_or_else(|error| panic!("{number}: {error}"));
            client.read_exact(&mut vec![0; length.into()]).await.unwrap();
        }
        drop(client);
    };
    let (end, ()) = tokio::join!(serving, reading);
    assert_eq!(
        end,
        serve::StreamEnd { queries: TCP_IN_FLIGHT_MAX + 1, reason: Reason::ClientClosed }
    );
}

#[tokio::test]
async fn a_frame_that_no_query_has_ends_the_connection_with_a_record() {
    for length in [0, u16::try_from(QUERY_MAX_BYTES).unwrap() + 1] {
        let world = World::new(DeniedName::Explain).await;
        let mut stream = tcp_client(&world).await;
        stream.write_u16(length).await.unwrap();
        let mut rest = Vec::new();
        assert_eq!(stream.read_to_end(&mut rest).await.unwrap(), 0);
        let lines = world.lines.records();
        assert_eq!(
            (&lines[0]["kind"], &lines[0]["reason"]),
            (&"connection".into(), &"dns_refused".into())
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed() {
    let world = World::new(DeniedName::Explain).await;
    let (client, server) = tokio::io::duplex(64);
    let started = tokio::time::Instant::now();
    let end = world.server.serve_stream(server).await;
    assert_eq!(end, serve::StreamEnd { queries: 0, reason: Reason::FirstBytesTimeout });
    assert_eq!(started.elapsed(), serve::TCP_IDLE_MAX);
    drop(client);
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed() {
    let world = World::new(DeniedName::Explain).await;
    let _all = world
        .server
        .connections
        .acquire_many(TCP_CONNECTIONS_MAX.try_into().unwrap())
        .await
        .unwrap();
    let (_client, server) = tokio::io::duplex(64);
    assert_eq!(world.server.serve_stream(server).await.reason, Reason::RateLimited);
}

#[test]
fn no_beginning_of_a_query_is_taken_for_one() {
    for whole in [
        query("www.example.com", RecordType::A),
        query_with_edns("a.b.example", RecordType::TXT, 4096),
    ] {
        assert!(matches!(message::parse(&whole), Parsed::Query(_)));
        for length in 0..whole.len() {
            let parsed = message::parse(&whole[..length]);
            assert!(!matches!(parsed, Parsed::Query(_)), "{length} of {}", whole.len());
            if let Parsed::Refuse(refusal) = parsed {
                assert!(refusal.envelope.reply(refusal.code, Vec::new(), Transport::Udp).is_some());
            }
        }
    }
}

proptest! {
    /// Whatever comes in: no panic, and what goes out is a response that a strict reader takes.
    #[test]
    fn any_bytes_get_silence_or_a_well_formed_response(
        flags in any::<[u8; 2]>(),
        counts in prop::collection::vec(0_u8..3, 4),
        body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut bytes = vec![0x12, 0x34, flags[0], flags[1]];
        bytes.extend(counts.iter().flat_map(|count| [0, *count]));
        bytes.extend(body);
        check_reply(&bytes);
    }

    #[test]
    fn any_change_of_one_byte_gets_silence_or_a_well_formed_response(at in 0_usize..44, byte in any::<u8>()) {
        let mut bytes = query_with_edns("www.example.com", RecordType::A, 1232);
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        check_reply(&bytes);
    }

    /// Names of any labels come back as they were.
    #[test]
    fn any_name_is_echoed(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6)) {
        let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in &labels {
            bytes.push(label.len().try_into().unwrap());
            bytes.extend(label);
        }
        bytes.extend([0, 0, 1, 0, 1]);
        let Parsed::Query(query) = message::parse(&bytes) else { panic!("{bytes:?}") };
        let answer = query.envelope.reply(ResponseCode::NoError, Vec::new(), Transport::Udp).unwrap();
        prop_assert_eq!(&answer[12..], &bytes[12..]);
        if let Some(host) = query.question.host() {
            prop_assert_eq!(host.as_str().split('.').count(), labels.len());
        }
    }
}

fn check_reply(bytes: &[u8]) {
    let reply = match message::parse(bytes) {
        Parsed::Ignore => return,
        Parsed::Refuse(refusal) => refusal.envelope.reply(refusal.code, Vec::new(), Transport::Udp),
        Parsed::Query(query) => {
            query.envelope.reply(ResponseCode::NXDomain, Vec::new(), Transport::Udp)
        }
    };
    let reply = Message::from_vec(&reply.unwrap()).unwrap();
    assert_eq!(reply.metadata.id.to_be_bytes(), bytes[..2]);
    assert_eq!(reply.metadata.message_type, MessageType::Response);
}

#[test]
fn the_future_of_a_query_stays_small() {
    // Never polled: only its size is of interest, which every datagram in flight takes.
    fn size<F: Future>(_future: impl FnOnce() -> F) -> usize {
        size_of::<F>()
    }
    let server: Option<&Server> = None;
    let bytes = size(|| async move {
        if let Some(server) = server {
            server.answer(&[], Transport::Udp).await;
        }
    });
    assert!(bytes < 8 * 1024, "{bytes}");
}
