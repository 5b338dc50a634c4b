//! What is answered to one question.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::svcb::{IpHint, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, CNAME, HTTPS, MX, SRV, SVCB, TXT};
use hickory_proto::rr::{Name, RData, RecordType};

use crate::lab::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// A TXT record set of about `bytes` bytes.
fn texts(bytes: usize) -> Vec<RData> {
    let text = |number: usize| RData::TXT(TXT::new(vec![format!("{number:0>200}")]));
    (0..bytes / 200).map(text).collect()
}

#[test]
fn edns_is_answered_with_edns_and_its_options_are_tolerated() {
    let Some(lab) = Lab::new(RULES) else { return };
    let bare = query_with_edns("v4.test", RecordType::A, 1232);
    // Code and length: NSID, client subnet, cookie, keep-alive, padding, one that nobody knows.
    let options: [&[u8]; 6] = [
        b"\x00\x03\x00\x00",
        b"\x00\x08\x00\x07\x00\x01\x18\x00\xcb\x00\x71",
        b"\x00\x0a\x00\x08cookie!!",
        b"\x00\x0b\x00\x00",
        b"\x00\x0c\x00\x04\0\0\0\0",
        b"\xfd\xe9\x00\x03any",
    ];
    let with = |options: &[u8]| {
        let length = u16::try_from(options.len()).unwrap().to_be_bytes();
        [&bare[..bare.len() - 2], &length, options].concat()
    };
    let mut steps: Vec<String> = options.iter().map(|option| udp(&[&with(option)])).collect();
    steps.push(udp(&[&with(&options.concat())]));
    steps.push(tcp(&[&with(&options.concat())]));
    for answer in lab.ask(&steps).into_iter().flatten() {
        assert_eq!((code(&answer), answer.answers.len()), (ResponseCode::NoError, 1), "{answer:?}");
        let edns = answer.edns.expect("an OPT record");
        assert_eq!((edns.version(), edns.max_payload()), (0, 1232));
        assert!(edns.options().as_ref().is_empty());
    }
    // Another version of EDNS, and none.
    let mut version = bare.clone();
    let at = version.len() - 5;
    version[at] = 1;
    let answers = lab.ask(&[udp(&[&version]), udp(&[&query("v4.test", RecordType::A)])]).concat();
    let badvers = u16::from(ResponseCode::BADVERS);
    assert_eq!((u16::from(code(&answers[0])), answers[0].answers.len()), (badvers, 0));
    assert_eq!(answers[0].edns.as_ref().map(|edns| edns.version()), Some(0));
    assert_eq!((code(&answers[1]), answers[1].edns.is_none()), (ResponseCode::NoError, true));
}

#[test]
fn what_does_not_fit_a_datagram_is_marked_and_comes_whole_over_tcp() {
    let Some(lab) = Lab::new(RULES) else { return };
    lab.zone.set("mail.test", texts(800));
    lab.zone.set("gone.test", texts(9000));
    let plain = |name| query(name, RecordType::TXT);
    let edns = |name, payload| query_with_edns(name, RecordType::TXT, payload);
    // Query, whether it is cut, how many records come.
    let rows = [
        (udp(&[&plain("mail.test")]), true, 0),
        (udp(&[&edns("mail.test", 600)]), true, 0),
        (udp(&[&edns("mail.test", 1232)]), false, 4),
        (udp(&[&edns("gone.test", 65_535)]), true, 0),
        (tcp(&[&plain("mail.test")]), false, 4),
        (tcp(&[&edns("gone.test", 512)]), false, 45),
    ];
    let steps: Vec<String> = rows.iter().map(|row| row.0.clone()).collect();
    let answers = lab.ask(&steps).concat();
    for ((step, cut, records), answer) in rows.iter().zip(&answers) {
        let seen = (answer.metadata.truncation, answer.answers.len(), code(answer));
        assert_eq!(seen, (*cut, *records, ResponseCode::NoError), "{step}");
    }
    // The control: without Tollgate the internet's server answers in the same way.
    let direct =
        [step("udp", ZONE, &[&plain("gone.test")]), step("tcp", ZONE, &[&plain("gone.test")])];
    let answers = lab.ask_ungoverned(&direct).concat();
    assert_eq!((answers[0].metadata.truncation, answers[1].answers.len()), (true, 45));
}

#[test]
fn a_permitted_name_is_there_as_far_as_it_exists() {
    let Some(lab) = Lab::new(RULES) else { return };
    lab.zone.silence("slow.test");
    let missing = [("gone.test", ResponseCode::NXDomain), ("empty.test", ResponseCode::NoError)];
    for (name, expected) in missing {
        for record_type in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
            let answer = lab.ask_one(name, record_type);
            assert_eq!(
                (code(&answer), answer.answers.len()),
                (expected, 0),
                "{name} {record_type}"
            );
        }
    }
    // A name of one family has a synthetic address of each: which one is dialled is the gateway's business.
    for name in ["v4.test", "v6.test"] {
        for record_type in [RecordType::A, RecordType::AAAA] {
            let answer = lab.ask_one(name, record_type);
            let given = addresses(&answer);
            assert_eq!(given.len(), 1, "{answer:?}");
            assert!(is_synthetic(given[0]) && given[0].is_ipv4() == (record_type == RecordType::A));
        }
    }
    assert_eq!(code(&lab.ask_one("slow.test", RecordType::A)), ResponseCode::ServFail);
    assert_eq!(lab.records_of("dns_nxdomain").len(), 3);
    assert_eq!(lab.records_of("upstream_unresolvable").len(), 1);
}

#[test]
fn a_denied_name_is_explained_or_refused_as_configured() {
    let Some(lab) = Lab::new(RULES) else { return };
    let types = [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::HTTPS];
    for (denied, code_of_a, addresses_of_a) in
        [("explain", ResponseCode::NoError, 1), ("refuse", ResponseCode::Refused, 0)]
    {
        lab.configure(&format!("[dns]\ndenied = \"{denied}\"\n{RULES}"));
        let steps = types.map(|record_type| udp(&[&query("evil.test", record_type)]));
        let answers = lab.ask(&steps).concat();
        for answer in &answers[..2] {
            assert_eq!(
                (code(answer), answer.answers.len()),
                (code_of_a, addresses_of_a),
                "{denied}"
            );
            assert!(addresses(answer).into_iter().all(is_synthetic));
        }
        assert_eq!((code(&answers[2]), answers[2].answers.len()), (code_of_a, 0), "{denied}");
        assert_eq!((code(&answers[3]), answers[3].answers.len()), (ResponseCode::NoError, 0));
        // The control: the same switch changes nothing for a permitted name.
        assert_eq!(addresses(&lab.ask_one("v4.test", RecordType::A)).len(), 1, "{denied}");
    }
    assert_eq!(lab.records_of("blocked_by_default_policy").len(), 8);
    assert_eq!(lab.zone.names(), ["v4.test."]);
}

#[test]
fn keys_and_addresses_beside_the_synthetic_ones_are_withheld() {
    let Some(lab) = Lab::new(RULES) else { return };
    let hints = vec![
        (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![A::new(203, 0, 113, 10)]))),
        (
            SvcParamKey::EchConfigList,
            SvcParamValue::Unknown(hickory_proto::rr::rdata::svcb::Unknown(b"ech".to_vec())),
        ),
    ];
    let binding = SVCB::new(1, name("."), hints);
    lab.zone.set(
        "mail.test",
        vec![RData::HTTPS(HTTPS(binding.clone())), RData::SVCB(binding), v4("203.0.113.10")],
    );
    let unknown = RecordType::Unknown(65_400);
    for record_type in [RecordType::HTTPS, RecordType::SVCB, unknown] {
        let answer = lab.ask_one("mail.test", record_type);
        assert_eq!(
            (code(&answer), answer.answers.len()),
            (ResponseCode::NoError, 0),
            "{record_type}"
        );
    }
    assert!(lab.zone.names().is_empty(), "nobody was asked");
    for refused in [RecordType::ANY, RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(code(&lab.ask_one("mail.test", refused)), ResponseCode::Refused, "{refused}");
    }
    // The control: they are there, and come without Tollgate.
    let direct = step("udp", ZONE, &[&query("mail.test", RecordType::HTTPS)]);
    assert_eq!(lab.ask_ungoverned(&[direct]).concat()[0].answers.len(), 1);
}

#[test]
fn other_records_come_from_upstream_for_permitted_names_only_and_never_an_address_with_them() {
    let Some(lab) = Lab::new(RULES) else { return };
    let records = || {
        vec![
            RData::TXT(TXT::new(vec!["v=spf1 -all".to_owned()])),
            RData::MX(MX::new(10, name("mx.mail.test."))),
            RData::SRV(SRV::new(1, 1, 443, name("mx.mail.test."))),
            v4("203.0.113.10"),
            v6("2001:db8::10"),
        ]
    };
    lab.zone.set("mail.test", records());
    lab.zone.set("evil.test", records());
    lab.zone.set("twin.test", vec![RData::CNAME(CNAME(name("mail.test.")))]);
    let types = [RecordType::TXT, RecordType::MX, RecordType::SRV];
    // The resolver follows no alias to SRV records.
    for (name, types) in [("mail.test", &types[..]), ("twin.test", &types[..2])] {
        for record_type in types.iter().copied() {
            let answer = lab.ask_one(name, record_type);
            assert_eq!(answer.answers.len(), 1, "{name} {record_type} {answer:?}");
            assert_eq!(answer.answers[0].record_type(), record_type);
            assert_eq!(answer.answers[0].name.to_ascii(), format!("{name}."));
            assert!(answer.additionals.is_empty() && answer.authorities.is_empty(), "{answer:?}");
        }
        for record_type in [RecordType::A, RecordType::AAAA] {
            let given = addresses(&lab.ask_one(name, record_type));
            assert!(given.len() == 1 && is_synthetic(given[0]), "{name} {given:?}");
        }
    }
    for record_type in types {
        let answer = lab.ask_one("evil.test", record_type);
        assert_eq!(
            (code(&answer), answer.answers.len()),
            (ResponseCode::NoError, 0),
            "{record_type}"
        );
    }
    // The control: the denied name has them.
    assert_eq!(lab.zone.names(), ["mail.test.", "twin.test."]);
    let direct = step("udp", ZONE, &[&query("evil.test", RecordType::TXT)]);
    assert_eq!(lab.ask_ungoverned(&[direct]).concat()[0].answers.len(), 1);
}

#[test]
fn synthetic_addresses_have_names_and_whose_other_addresses_are_is_asked_of_nobody() {
    let Some(lab) = Lab::new(RULES) else { return };
    let reverse = |address| Name::from(address).to_ascii();
    let asked = ["v4.test", "evil.test"];
    let questions: Vec<Vec<u8>> = asked
        .iter()
        .flat_map(|name| [query(name, RecordType::A), query(name, RecordType::AAAA)])
        .collect();
    let forward: Vec<String> = questions.iter().map(|question| udp(&[question])).collect();
    let given: Vec<_> = lab.ask(&forward).concat().iter().flat_map(addresses).collect();
    assert_eq!(given.len(), 4);
    // The addresses of a name are the same in every run, so that the second one may ask for what the first one got.
    let back = given.iter().map(|address| udp(&[&query(&reverse(*address), RecordType::PTR)]));
    let steps: Vec<String> = forward.iter().cloned().chain(back).collect();
    let answers = lab.ask(&steps).concat();
    for (number, answer) in answers[4..].iter().enumerate() {
        assert_eq!(answer.answers.len(), 1, "{answer:?}");
        assert_eq!(answer.answers[0].data.to_string(), format!("{}.", asked[number / 2]));
    }
    let before = lab.zone.heard().len();
    for address in ["203.0.113.10", "2001:db8::10", "198.18.77.77", "127.0.0.1", "10.0.0.7"] {
        let answer = lab.ask_one(&reverse(address.parse().unwrap()), RecordType::PTR);
        assert_eq!((code(&answer), answer.answers.len()), (ResponseCode::NXDomain, 0), "{address}");
    }
    assert_eq!(lab.zone.heard().len(), before);
    // The control: without Tollgate the same question is heard.
    let direct = step("udp", ZONE, &[&query("10.113.0.203.in-addr.arpa", RecordType::PTR)]);
    lab.ask_ungoverned(&[direct]);
    assert_eq!(lab.zone.heard().len(), before + 1);
}
