//! Search domains: short names mean what they mean on the machine, and nothing below the domains is invented.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use crate::lab::*;

const HOST: &str = "search corp.test office.test\noptions edns0 ndots:2\nnameserver 203.0.113.49\n";

#[test]
fn the_workload_searches_as_its_machine_does() {
    let Some(lab) = Lab::new(RULES) else { return };
    lab.host_resolver(HOST);
    lab.zone.set("db.corp.test", vec![v4("203.0.113.44")]);
    let file = lab.world.run(AGENT, &["cat", "/etc/resolv.conf"]);
    let lines: Vec<&str> = file.ok().lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines, ["search corp.test office.test", "options ndots:2", "nameserver 127.0.0.1"]);
    // The C library makes db.corp.test of it, which is permitted and there.
    let found = lab.world.run(AGENT, &["getent", "ahostsv4", "db"]);
    let address = found.ok().split_whitespace().next().unwrap().parse().unwrap();
    assert!(is_synthetic(address), "{found:#?}");
    assert_eq!(lab.zone.names(), ["db.corp.test."]);
    // What is nowhere is nowhere: short, permitted, permitted below a search domain.
    for name in ["nosuch", "gone.test", "nothere"] {
        let missing = lab.world.run(AGENT, &["getent", "ahosts", name]);
        assert_eq!((missing.code, missing.stdout.as_str()), (Some(2), ""), "{name}");
    }
    assert_eq!(lab.zone.names(), ["db.corp.test.", "gone.test.", "nothere.corp.test."]);
    // The control: without Tollgate the search is heard from end to end.
    let free = lab.world.start_ungoverned(&[], &["getent", "ahosts", "gone.test"]).wait();
    assert_eq!(free.code, Some(2), "{free:#?}");
    let heard = lab.zone.names();
    assert!(heard.contains(&"gone.test.corp.test.".to_owned()), "{heard:?}");
    assert!(heard.contains(&"gone.test.office.test.".to_owned()), "{heard:?}");
}

#[test]
fn a_name_below_a_search_domain_is_not_invented() {
    let Some(lab) = Lab::new(RULES) else { return };
    let below = ["api.evil.test.corp.test", "corp.test", "x.corp.test"];
    let ask = |name| {
        let answer = lab.ask_one(name, RecordType::A);
        (code(&answer), answer.answers.len())
    };
    // The control: they are explained as any denied name where nobody searches there.
    for name in below {
        assert_eq!(ask(name), (ResponseCode::NoError, 1), "{name}");
    }
    lab.host_resolver(HOST);
    for name in below {
        assert_eq!(ask(name), (ResponseCode::NXDomain, 0), "{name}");
    }
    assert_eq!(ask("notcorp.test"), (ResponseCode::NoError, 1));
    assert!(lab.zone.names().is_empty(), "{:?}", lab.zone.names());
    lab.configure(&format!("[dns]\ndenied = \"refuse\"\n{RULES}"));
    assert_eq!(ask("x.corp.test"), (ResponseCode::NXDomain, 0), "a search goes on after it");
}

#[test]
fn a_machine_s_name_makes_a_search_domain_as_the_c_library_has_it() {
    let Some(lab) = Lab::new(RULES) else { return };
    let config = lab.world.path("tollgate.toml").display().to_string();
    let searched = |hostname: &str| {
        let script = format!("hostname {hostname} && exec \"$@\"");
        let tollgate =
            [env!("CARGO_BIN_EXE_tollgate"), "run", "--agent", AGENT, "--config", &config];
        let command: Vec<&str> = ["unshare", "--uts", "sh", "-c", &script, "sh"]
            .into_iter()
            .chain(tollgate)
            .chain(["--", "grep", "^search", "/etc/resolv.conf"])
            .collect();
        lab.world.start_ungoverned(&[], &command).wait().ok().to_owned()
    };
    assert_eq!(searched("box.corp.test"), "search corp.test\n");
    // The line is never left out: the workload would otherwise search what its own machine's name makes.
    assert_eq!(searched("box"), "search .\n");
}
