//! `tollgate explain`: what would happen to a request, and by which rule. Nothing is sent, counted or looked up.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::Printed;
use crate::agent::{AgentName, AgentNameError};
use crate::audit::{Decision, Reason};
use crate::config::{Config, SourceCheck};
use crate::http::{RequestHead, RequestPath};
use crate::net::{Destination, Host, HostError, Scheme};
use crate::policy::{Budget, Limit, Permit, Policy, Verdict, decide};
use crate::upstream::is_refused_address;

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// The agent's name.
    pub agent: String,
    /// The method; a known one may be written in lower case.
    pub method: String,
    /// `http://…` or `https://…`.
    pub url: String,
    /// Whether the answer is a JSON object.
    pub json: bool,
}

/// A question that cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum QuestionError {
    /// Not an agent's name.
    #[error(transparent)]
    Agent(#[from] AgentNameError),
    /// Not a method.
    #[error("`{method}` is not a method")]
    Method {
        /// As it was asked.
        method: String,
    },
    /// Not a URL, or one without scheme or host.
    #[error("`{url}` is not a URL of the form http(s)://HOST[:PORT][/PATH], without a user name")]
    Url {
        /// As it was asked.
        url: String,
    },
    /// The host in the URL is none.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The answer, in the words of the audit log.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Answer {
    decision: Decision,
    reason: Reason,
    rule: Option<String>,
    credential: Option<String>,
    limits: Vec<AnsweredLimit>,
}

/// A limit that a request would count against.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct AnsweredLimit {
    rule: String,
    limit: u64,
    unit: &'static str,
    window: &'static str,
    algorithm: &'static str,
}

/// Answers `question` from the configuration at `path`. Exit code 0 whatever the decision is; 1 where the
/// configuration is wrong, 2 where the question is.
pub fn explain(path: &Path, question: &Question) -> Printed {
    let config = match Config::load_with(path, SourceCheck::Skip) {
        Ok(config) => config,
        Err(errors) => return Printed::failure(format!("{errors}\n")),
    };
    match answer(&config.policy, question) {
        Ok(text) => Printed::success(text),
        Err(error) => Printed::misuse(format!("{error}\n")),
    }
}

fn answer(policy: &Policy, question: &Question) -> Result<String, QuestionError> {
    let agent = AgentName::parse(&question.agent)?;
    let method = method(&question.method)?;
    let (destination, target) = destination_and_target(&question.url)?;
    Ok(match RequestPath::parse(&target) {
        Ok(path) => told(policy, &agent, &RequestHead { method, destination, path }, question.json),
        Err(error) => {
            let request = format!("{method} {destination}{target} by {agent}");
            print(
                &Answer::blocked(Reason::BadRequest, None),
                &request,
                Some(error.to_string()),
                question.json,
            )
        }
    })
}

fn told(policy: &Policy, agent: &AgentName, head: &RequestHead, json: bool) -> String {
    let request = format!("{} {}{} by {agent}", head.method, head.destination, head.path.sent);
    if matches!(head.method.as_str(), "TRACE" | "CONNECT") {
        let note = format!("the gateway answers {} with 405", head.method);
        return print(&Answer::blocked(Reason::BadRequest, None), &request, Some(note), json);
    }
    let answer = Answer::of(decide(policy, agent, head), &head.destination.host);
    let note = if answer.reason == Reason::BlockedAddress {
        Some("the address is private, local or reserved, and no rule opens it".to_owned())
    } else if policy.has_agent(agent) {
        None
    } else {
        Some(format!("the configuration has no agent `{agent}`: everything is closed to it"))
    };
    print(&answer, &request, note, json)
}

fn print(answer: &Answer, request: &str, note: Option<String>, json: bool) -> String {
    if json {
        let mut object = serde_json::json!(answer);
        if let (Some(note), Some(fields)) = (note, object.as_object_mut()) {
            fields.insert("note".to_owned(), note.into());
        }
        return object.to_string() + "\n";
    }
    let decision = match answer.decision {
        Decision::Allow => "allow",
        Decision::Block => "block",
    };
    let mut lines = vec![
        format!("request     {request}"),
        format!("decision    {decision}"),
        format!("reason      {}", answer.reason.code()),
        format!("rule        {}", answer.rule.as_deref().unwrap_or("-")),
        format!("credential  {}", answer.credential.as_deref().unwrap_or("-")),
    ];
    for limit in &answer.limits {
        let AnsweredLimit { rule, limit, unit, window, algorithm } = limit;
        lines.push(format!("limit       {limit} {unit} per {window}, {algorithm} ({rule})"));
    }
    lines.extend(note.map(|note| format!("note        {note}")));
    lines.join("\n") + "\n"
}

fn destination_and_target(url: &str) -> Result<(Destination, String), QuestionError> {
    let malformed = || QuestionError::Url { url: url.chars().take(SHOWN_MAX_CHARS).collect() };
    let (scheme, rest) = url.split_once("://").ok_or_else(malformed)?;
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return Err(malformed()),
    };
    // A fragment stays with the client.
    let rest = rest.split('#').next().unwrap_or(rest);
    let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (host, port) = split_port(authority).ok_or_else(malformed)?;
    let port = port.unwrap_or_else(|| scheme.default_port());
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    Ok((Destination { scheme, host: Host::parse(host)?, port }, target))
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`; none where the port is no number.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let behind_brackets = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let (_host, behind) = authority.split_at_checked(behind_brackets)?;
    match behind.rfind(':') {
        None => Some((authority, None)),
        Some(colon) => {
            let (host, port) = authority.split_at_checked(behind_brackets + colon)?;
            let port = port.strip_prefix(':')?.parse().ok().filter(|port| *port > 0)?;
            Some((host, Some(port)))
        }
    }
}

/// A method as it is sent: whoever asks may write known ones in lower case, as in the configuration.
fn method(text: &str) -> Result<String, QuestionError> {
    if http::Method::from_bytes(text.as_bytes()).is_err() {
        return Err(QuestionError::Method { method: text.chars().take(SHOWN_MAX_CHARS).collect() });
    }
    let upper = text.to_ascii_uppercase();
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"];
    Ok(if known.contains(&upper.as_str()) { upper } else { text.to_owned() })
}

// === impl Answer ===

impl Answer {
    /// An address that the gateway would not dial is refused as the gateway does it; names are not looked up.
    fn of(verdict: Verdict, host: &Host) -> Self {
        match verdict {
            Verdict::Allow(permit) => Self::allowed(&permit, host, Vec::new()),
            Verdict::Metered(metered) => {
                let limits = metered.limits().iter().map(AnsweredLimit::from).collect();
                match metered.settle(Ok(())) {
                    Ok(permit) => Self::allowed(&permit, host, limits),
                    Err(exhausted) => {
                        let rule = exhausted.limit.rule.to_string();
                        Self::blocked(Reason::RateLimited, Some(rule))
                    }
                }
            }
            Verdict::Block { rule } => {
                Self::blocked(Reason::BlockedByPolicy, Some(rule.to_string()))
            }
            Verdict::DefaultDeny | Verdict::UnknownAgent => {
                Self::blocked(Reason::BlockedByDefaultPolicy, None)
            }
        }
    }

    fn blocked(reason: Reason, rule: Option<String>) -> Self {
        Self { decision: Decision::Block, reason, rule, credential: None, limits: Vec::new() }
    }

    fn allowed(permit: &Permit, host: &Host, limits: Vec<AnsweredLimit>) -> Self {
        let rule = permit.rule().map(ToString::to_string);
        if matches!(host, Host::Ip(address) if is_refused_address(*address) && !permit.allow_private())
        {
            return Self { limits, ..Self::blocked(Reason::BlockedAddress, rule) };
        }
        let mut credentials = String::new();
        for name in permit.credentials() {
            let separator = if credentials.is_empty() { "" } else { ", " };
            // Writing into a String cannot fail.
            if write!(credentials, "{separator}{name}").is_err() {
                break;
            }
        }
        Self {
            decision: Decision::Allow,
            reason: permit.reason(),
            rule,
            credential: Some(credentials).filter(|names| !names.is_empty()),
            limits,
        }
    }
}

impl From<&Limit> for AnsweredLimit {
    fn from(limit: &Limit) -> Self {
        let Budget { limit: number, unit, window, algorithm } = limit.budget;
        Self {
            rule: limit.rule.to_string(),
            limit: number,
            unit: unit.as_str(),
            window: window.as_str(),
            algorithm: algorithm.as_str(),
        }
    }
}

/// How much of a malformed question stands in the answer.
const SHOWN_MAX_CHARS: usize = 80;

#[cfg(test)]
mod tests;
