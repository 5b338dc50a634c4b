//! The resolvers that programs really have: each finds what exists and is permitted, and nothing else.

use std::net::IpAddr;
use std::process::Command;

use crate::common::has_program;
use crate::lab::*;

/// What a program found for each name: addresses, or one word for the failure.
fn found(text: &str) -> Vec<(String, Vec<String>)> {
    let words =
        |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
    text.lines().map(words).map(|words| (words[0].clone(), words[1..].to_vec())).collect()
}

fn are_synthetic(addresses: &[String]) -> bool {
    let is = |address: &String| address.parse::<IpAddr>().is_ok_and(is_synthetic);
    !addresses.is_empty() && addresses.iter().all(is)
}

/// Runs a program that looks up names, governed in both ways and not at all.
fn prove(lab: &Lab, program: &[&str]) {
    let mail = lab.origin("mail.test");
    lab.zone.set("www.wild.test", vec![v4("203.0.113.43")]);
    let names = ["mail.test", "v4.test", "www.wild.test", "gone.test", "evil.test", "localhost"];
    let command: Vec<&str> = program.iter().copied().chain(names).collect();
    for denied in ["explain", "refuse"] {
        lab.configure(&format!("[dns]\ndenied = \"{denied}\"\n{RULES}"));
        let ended = lab.world.run(AGENT, &command);
        let found = found(ended.ok());
        assert_eq!(found.len(), names.len(), "{ended:#?}");
        assert!(found[..3].iter().all(|(_, found)| are_synthetic(found)), "{denied}: {ended:#?}");
        assert_eq!(found[3].1, ["missing"], "{denied}: {ended:#?}");
        assert_eq!(are_synthetic(&found[4].1), denied == "explain", "{ended:#?}");
        if denied == "refuse" {
            assert!(["missing", "again"].contains(&found[4].1[0].as_str()), "{ended:#?}");
        }
        assert!(["127.0.0.1", "::1"].contains(&found[5].1[0].as_str()), "{ended:#?}");
    }
    let heard = lab.zone.names();
    let permitted = ["gone.test.", "mail.test.", "v4.test.", "www.wild.test."];
    assert_eq!(heard, permitted, "what the agent may not reach is heard by nobody");
    // The control: without Tollgate it finds the real addresses, and asks for everything.
    let free = lab.world.start_ungoverned(&[], &command).wait();
    let found = found(free.ok());
    assert!(found[0].1.contains(&mail.v4.to_string()), "{free:#?}");
    assert_eq!(found[4].1, ["missing"], "{free:#?}");
    assert!(lab.zone.names().contains(&"evil.test.".to_owned()), "{:?}", lab.zone.names());
}

/// Builds a program into the world's folder and returns its path.
fn build(lab: &Lab, compiler: &mut Command, source: &str) -> String {
    let program = lab.world.path("lookup").display().to_string();
    let built = compiler.args(["-o", &program]).arg(fixture(source)).status().unwrap();
    assert!(built.success(), "{source} is not built");
    program
}

#[test]
fn the_gnu_c_library_finds_what_it_may() {
    let Some(lab) = Lab::new(RULES).filter(|_| has_program("cc")) else { return };
    let program = build(&lab, &mut Command::new("cc"), "dns_lookup.c");
    prove(&lab, &[&program]);
}

#[test]
fn a_static_program_with_musl_finds_what_it_may() {
    let Some(lab) = Lab::new(RULES).filter(|_| has_program("musl-gcc")) else { return };
    let program = build(&lab, Command::new("musl-gcc").arg("-static"), "dns_lookup.c");
    prove(&lab, &[&program]);
}

#[test]
fn a_static_program_in_go_finds_what_it_may() {
    let Some(lab) = Lab::new(RULES).filter(|_| has_program("go")) else { return };
    let mut go = Command::new("go");
    go.arg("build").env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=mod").env("GOPROXY", "off");
    go.env("GOCACHE", lab.world.path("go-cache")).env("GOPATH", lab.world.path("go"));
    let program = build(&lab, &mut go, "dns_lookup.go");
    prove(&lab, &["env", "GODEBUG=netdns=go", &program]);
}

#[test]
fn node_finds_what_it_may_by_either_of_its_resolvers() {
    for how in ["resolve", "lookup"] {
        let Some(lab) = Lab::new(RULES).filter(|_| has_program("node")) else { return };
        let script = fixture("dns_lookup.mjs").display().to_string();
        // c-ares asks no file: localhost is answered by Tollgate, and not by the internet of the control.
        lab.zone.set("localhost", vec![v4("127.0.0.1")]);
        prove(&lab, &["node", &script, how]);
    }
}

#[test]
fn programs_that_ask_for_usable_addresses_of_one_family_find_them() {
    let Some(lab) = Lab::new(RULES) else { return };
    lab.origin("mail.test");
    for (database, family) in
        [("ahosts", None), ("ahostsv4", Some(true)), ("ahostsv6", Some(false))]
    {
        let ended = lab.world.run(AGENT, &["getent", database, "mail.test"]);
        let addresses: Vec<IpAddr> = ended
            .ok()
            .lines()
            .map(|line| line.split(' ').next().unwrap().parse().unwrap())
            .collect();
        let fits = |address: &IpAddr| family.is_none_or(|v4| address.is_ipv4() == v4);
        assert!(!addresses.is_empty() && addresses.iter().all(fits), "{ended:#?}");
        assert!(addresses.into_iter().all(is_synthetic), "{ended:#?}");
    }
}
