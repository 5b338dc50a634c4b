use std::path::Path;
use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::agent::AgentName;
use crate::audit::Reason;
use crate::config::Config;
use crate::http::{RequestHead, RequestPath};
use crate::net::{Destination, Host, HostName, Scheme};

mod conformance;
mod decisions;
mod matching;
mod properties;
mod schedules;

fn policy(text: &str) -> std::sync::Arc<Policy> {
    match Config::parse(Path::new("test.toml"), text) {
        Ok(config) => config.policy,
        Err(errors) => panic!("{errors}"),
    }
}

/// For rules without a schedule.
const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn agent(name: &str) -> AgentName {
    AgentName::parse(name).unwrap()
}

/// `GET https://host[:port]/path`, whose path has the given readings beside the one that is sent.
fn request(line: &str, other_readings: &[&str]) -> RequestHead {
    let (method, url) = line.split_once(' ').unwrap();
    let (scheme, rest) = url.split_once("://").unwrap();
    let scheme = if scheme == "http" { Scheme::Http } else { Scheme::Https };
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    let bracket = authority.find(']').unwrap_or(0);
    let (host, port) = match authority[bracket..].rfind(':') {
        Some(colon) => {
            (&authority[..bracket + colon], authority[bracket + colon + 1..].parse().unwrap())
        }
        None => (authority, scheme.default_port()),
    };
    let mut readings = vec![path.to_owned()];
    readings.extend(other_readings.iter().map(|reading| (*reading).to_owned()));
    RequestHead {
        method: method.to_owned(),
        destination: Destination { scheme, host: Host::parse(host).unwrap(), port },
        path: RequestPath { sent: path.to_owned(), query: None, readings },
    }
}

/// A verdict in one line: `allow RULE [CREDENTIALS] private`, `metered RULE LIMITS …`, `block RULE`, `deny`, `unknown`.
fn said(verdict: Verdict) -> String {
    match verdict {
        Verdict::Allow(permit) => format!("allow {}", permitted(&permit)),
        Verdict::Metered(metered) => {
            let limits: Vec<_> =
                metered.limits().iter().map(|limit| limit.rule.as_str().to_owned()).collect();
            let permit = metered.settle(Ok(())).unwrap();
            format!("metered {} {}", limits.join("+"), permitted(&permit))
        }
        Verdict::Block { rule } => format!("block {rule}"),
        Verdict::DefaultDeny => "deny".to_owned(),
        Verdict::UnknownAgent => "unknown".to_owned(),
    }
}

fn permitted(permit: &Permit) -> String {
    let mut text = match permit.rule() {
        Some(rule) => rule.as_str().to_owned(),
        None => "by-default".to_owned(),
    };
    let reason =
        if permit.rule().is_some() { Reason::AllowedByRule } else { Reason::AllowedByDefault };
    assert_eq!(permit.reason(), reason);
    if !permit.credentials().is_empty() {
        let names: Vec<_> = permit.credentials().iter().map(CredentialName::as_str).collect();
        text += &format!(" [{}]", names.join(" "));
    }
    if permit.allow_private() {
        text += " private";
    }
    text
}
