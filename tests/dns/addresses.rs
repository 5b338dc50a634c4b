//! One address, one name.

use std::net::IpAddr;

use hickory_proto::rr::RecordType;

use crate::lab::*;

#[test]
fn a_connection_to_a_synthetic_address_reaches_exactly_the_name_it_stands_for() {
    let Some(lab) = Lab::new(RULES) else { return };
    let (mail, twin) = (lab.origin("mail.test"), lab.origin("twin.test"));
    let script = fixture("dns_reach.py").display().to_string();
    let command = [python(), &script, "mail.test", "twin.test", "twin.test", "mail.test"];
    let ended = lab.world.run(AGENT, &command);
    let lines: Vec<Vec<&str>> = ended.ok().lines().map(|line| line.split(' ').collect()).collect();
    // One address of each family for each name.
    assert_eq!(lines.len(), 4, "{ended:#?}");
    for line in &lines {
        assert!(is_synthetic(line[1].parse().unwrap()), "{line:?}");
        assert_eq!(line[2..], ["200", "421", line[0]], "{line:?}");
    }
    for (origin, name) in [(&mail, "mail.test"), (&twin, "twin.test")] {
        let hosts: Vec<String> = origin.seen().into_iter().map(|seen| seen.host).collect();
        assert_eq!(hosts, [name, name], "the other name reaches nobody");
    }
    // The control: without Tollgate the addresses are the internet's, and either name is served at them.
    let variables = lab.world.path("roots.pem").display().to_string();
    let free = lab.world.start_ungoverned(&[("SSL_CERT_FILE", &variables)], &command).wait();
    let first: Vec<&str> = free.ok().lines().next().unwrap().split(' ').collect();
    assert_eq!(first[..4], ["mail.test", &mail.v6.to_string(), "200", "200"], "{free:#?}");
}

#[test]
fn a_name_keeps_its_address_whatever_becomes_of_the_real_one() {
    let Some(lab) = Lab::new(RULES) else { return };
    let question = |record_type| query("v4.test", record_type);
    let (a, aaaa) = (question(RecordType::A), question(RecordType::AAAA));
    let steps = [udp(&[&a]), tcp(&[&a]), udp(&[&aaaa]), tcp(&[&aaaa]), udp(&[&a])];
    let given = || -> Vec<IpAddr> { lab.ask(&steps).concat().iter().flat_map(addresses).collect() };
    let before = given();
    assert_eq!((before[0], before[2]), (before[1], before[3]));
    assert_eq!(before[0], before[4]);
    lab.zone.set("v4.test", vec![v4("203.0.113.42"), v6("2001:db8::42")]);
    // Another run of the gateway, and another real address: what an agent remembers stays true.
    assert_eq!(given(), before);
    // The control: another name has another address.
    assert_ne!(addresses(&lab.ask_one("v6.test", RecordType::A)), before[..1]);
}
