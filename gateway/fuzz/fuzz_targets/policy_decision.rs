//! A policy and a request: a decision is the same twice, rules in shadow have no part in it, and no other agent's do.
#![no_main]

use std::path::Path;
use std::time::{Duration, SystemTime};

use gateway::agent::AgentName;
use gateway::config::Config;
use gateway::http::{RequestHead, RequestPath};
use gateway::net::{Destination, Host, HostName, Scheme};
use gateway::policy::{NameVerdict, Verdict, decide, decide_name, rehearse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str, &str, &str, u64)| {
    let (keys, method, host, target, seconds) = input;
    let (Ok(host), Ok(path)) = (Host::parse(host), RequestPath::parse(target)) else { return };
    let agent = AgentName::parse("a").expect("a name");
    let destination = Destination { scheme: Scheme::Https, host: host.clone(), port: 443 };
    let head = RequestHead { method: method.to_owned(), destination, path };
    let Some(now) = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)) else {
        return;
    };
    let parse = |mode: &str| {
        let text = format!("[[agent]]\nname = 'a'\n[[rule]]\nname = 'r'\nmode = '{mode}'\n{keys}");
        Config::parse(Path::new("tollgate.toml"), &text)
    };
    let (Ok(enforced), Ok(shadow)) = (parse("enforce"), parse("shadow")) else { return };
    let permits = |config: &Config| {
        let verdict = decide(&config.policy, &agent, &head, now);
        matches!(verdict, Verdict::Allow(_) | Verdict::Metered(_))
    };
    assert_eq!(permits(&enforced), permits(&enforced));
    if let (true, Host::Name(name)) = (permits(&enforced), &host) {
        let name: &HostName = name;
        let verdict = decide_name(&enforced.policy, &agent, name, now);
        assert_eq!(verdict, NameVerdict::Permitted, "what is permitted has a name");
    }
    // The keys may bring agents and rules of their own; with one rule, its shadow decides nothing.
    if shadow.policy.rule_count() == 1 && shadow.policy.agents().len() == 1 {
        assert!(!permits(&shadow));
        assert_eq!(permits(&enforced), rehearse(&shadow.policy, &agent, &head, now).is_some());
    }
});
