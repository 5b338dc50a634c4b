//! `tollgate explain`: what would happen to a request, and by which rule. Nothing is sent, counted or looked up.

use std::fmt::Write as _;
use std::path::Path;
use std::time::SystemTime;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Printed;
use crate::agent::{AgentName, AgentNameError};
use crate::audit::{Decision, Reason};
use crate::config::{Config, SourceCheck};
use crate::http::{RequestHead, RequestPath};
use crate::net::{Destination, Host, HostError, Scheme};
use crate::policy::{
    Budget, Limit, Permit, Policy, RuleName, Standing, Verdict, WouldHave, decide, dormant,
    rehearse,
};
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
    /// When it would be sent (RFC 3339); now if absent.
    pub at: Option<String>,
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
    /// Not a time.
    #[error("`{at}` is not a date and time of RFC 3339, such as 2027-01-31T18:00:00Z")]
    Time {
        /// As it was asked.
        at: String,
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
    /// What rules in shadow would have made of it, where that is something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    would_have: Option<Rehearsed>,
    /// Rules that would take part if they were in force.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dormant: Vec<Dormant>,
}

/// What would have been decided, were no rule in shadow.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Rehearsed {
    decision: Decision,
    /// None where only limits would be counted: whether they are used up is not looked up.
    reason: Option<Reason>,
    rules: Vec<String>,
}

/// A rule that does nothing at that time.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Dormant {
    rule: String,
    why: &'static str,
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
    let now = match &question.at {
        Some(text) => time(text)?,
        None => SystemTime::now(),
    };
    Ok(match RequestPath::parse(&target) {
        Ok(path) => {
            let head = RequestHead { method, destination, path };
            told(policy, &agent, &head, now, question.json)
        }
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

fn told(
    policy: &Policy,
    agent: &AgentName,
    head: &RequestHead,
    now: SystemTime,
    json: bool,
) -> String {
    let request = format!("{} {}{} by {agent}", head.method, head.destination, head.path.sent);
    if matches!(head.method.as_str(), "TRACE" | "CONNECT") {
        let note = format!("the gateway answers {} with 405", head.method);
        return print(&Answer::blocked(Reason::BadRequest, None), &request, Some(note), json);
    }
    let mut answer = Answer::of(decide(policy, agent, head, now), &head.destination.host);
    answer.would_have = rehearse(policy, agent, head, now).map(Rehearsed::from);
    answer.dormant = dormant(policy, agent, head, now).into_iter().map(Dormant::from).collect();
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
    if let Some(would_have) = &answer.would_have {
        let what = match (would_have.decision, would_have.reason) {
            (Decision::Allow, Some(_reason)) => "allow",
            (Decision::Block, _) => "block",
            (Decision::Allow, None) => "count",
        };
        lines.push(format!("would have  {what} (in shadow: {})", would_have.rules.join(", ")));
    }
    for Dormant { rule, why } in &answer.dormant {
        lines.push(format!("dormant     {rule}: {why}"));
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

/// A time of RFC 3339.
fn time(text: &str) -> Result<SystemTime, QuestionError> {
    let shown = || text.chars().take(SHOWN_MAX_CHARS).collect();
    let parsed = OffsetDateTime::parse(text, &Rfc3339);
    parsed.map(SystemTime::from).map_err(|_malformed| QuestionError::Time { at: shown() })
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
        Self {
            decision: Decision::Block,
            reason,
            rule,
            credential: None,
            limits: Vec::new(),
            would_have: None,
            dormant: Vec::new(),
        }
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
            would_have: None,
            dormant: Vec::new(),
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

impl From<WouldHave> for Rehearsed {
    fn from(would_have: WouldHave) -> Self {
        let (decision, reason, rules) = match would_have {
            WouldHave::Allow { rule } => {
                (Decision::Allow, Some(Reason::AllowedByRule), vec![rule.to_string()])
            }
            WouldHave::Block { rule } => {
                (Decision::Block, Some(Reason::BlockedByPolicy), vec![rule.to_string()])
            }
            WouldHave::Count { limits } => {
                let rules = limits.iter().map(|limit| limit.rule.to_string());
                (Decision::Allow, None, rules.collect())
            }
        };
        Self { decision, reason, rules }
    }
}

impl From<(RuleName, Standing)> for Dormant {
    fn from((rule, standing): (RuleName, Standing)) -> Self {
        let why = match standing {
            Standing::InForce => "in force",
            Standing::OutsideHours => "not in its hours or on its days",
            Standing::Expired => "expired",
            Standing::Unknown => "the clock is out of range",
        };
        Self { rule: rule.to_string(), why }
    }
}

/// How much of a malformed question stands in the answer.
const SHOWN_MAX_CHARS: usize = 80;

#[cfg(test)]
mod tests;
