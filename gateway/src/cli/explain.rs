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
use crate::policy::{Limit, Permit, Policy, Verdict, decide};

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
    #[error("`{url}` is not a URL that starts with http:// or https://")]
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
    limit: u32,
    window: &'static str,
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
    let unknown = !policy.has_agent(agent);
    let note = unknown
        .then(|| format!("the configuration has no agent `{agent}`: everything is closed to it"));
    print(&Answer::from(decide(policy, agent, head)), &request, note, json)
}

fn print(answer: &Answer, request: &str, note: Option<String>, json: bool) -> String {
    if json {
        return serde_json::json!(answer).to_string() + "\n";
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
        lines.push(format!("limit       {} per {} ({})", limit.limit, limit.window, limit.rule));
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

impl From<Verdict> for Answer {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow(permit) => Self::allowed(&permit, Vec::new()),
            Verdict::Metered(metered) => {
                let limits = metered.limits().iter().map(AnsweredLimit::from).collect();
                match metered.settle(Ok(())) {
                    Ok(permit) => Self::allowed(&permit, limits),
                    Err(limit) => Self::blocked(Reason::RateLimited, Some(limit.rule.to_string())),
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
}

impl Answer {
    fn blocked(reason: Reason, rule: Option<String>) -> Self {
        Self { decision: Decision::Block, reason, rule, credential: None, limits: Vec::new() }
    }

    fn allowed(permit: &Permit, limits: Vec<AnsweredLimit>) -> Self {
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
            rule: permit.rule().map(ToString::to_string),
            credential: Some(credentials).filter(|names| !names.is_empty()),
            limits,
        }
    }
}

impl From<&Limit> for AnsweredLimit {
    fn from(limit: &Limit) -> Self {
        Self { rule: limit.rule.to_string(), limit: limit.limit, window: limit.window.as_str() }
    }
}

/// How much of a malformed question stands in the answer.
const SHOWN_MAX_CHARS: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
[[agent]]
name = "mail"
[[credential]]
name = "gmail"
source = { file = "/nowhere" }
hosts = ["gmail.example.com"]
inject = { header = "Authorization", format = "Bearer {value}" }
agents = ["mail"]
[[credential]]
name = "key"
source = { file = "/nowhere" }
hosts = ["gmail.example.com"]
inject = { header = "X-Key", format = "{value}" }
agents = ["mail"]
[[rule]]
name = "read"
hosts = ["gmail.example.com"]
action = "allow"
[[rule]]
name = "no admin"
paths = ["/admin/*"]
action = "block"
[[rule]]
name = "budget"
methods = ["POST"]
action = "rate_limit"
limit = 5
window = "hour"
"#;

    fn told_about(agent: &str, method: &str, url: &str, json: bool) -> String {
        let policy = Config::parse(Path::new("t.toml"), POLICY).unwrap().policy;
        let (destination, target) = destination_and_target(url).unwrap();
        let path = RequestPath { sent: target.clone(), query: None, readings: vec![target] };
        let head = RequestHead { method: super::method(method).unwrap(), destination, path };
        told(&policy, &AgentName::parse(agent).unwrap(), &head, json)
    }

    #[test]
    fn the_answer_for_people_says_what_decides() {
        let expected = "\
request     POST https://gmail.example.com:8443/a by mail
decision    allow
reason      allowed_by_rule
rule        read
credential  -
limit       5 per hour (budget)
";
        assert_eq!(told_about("mail", "post", "https://GMAIL.example.com:8443/a", false), expected);
        let expected = "\
request     GET http://a.example/ by nobody
decision    block
reason      blocked_by_default_policy
rule        -
credential  -
note        the configuration has no agent `nobody`: everything is closed to it
";
        assert_eq!(told_about("nobody", "GET", "http://a.example", false), expected);
    }

    #[test]
    fn what_is_refused_before_policy_is_asked_is_a_bad_request() {
        let told = told_about("mail", "TRACE", "https://gmail.example.com/", false);
        assert!(told.contains("decision    block\nreason      bad_request\n"), "{told}");
        assert!(told.ends_with("note        the gateway answers TRACE with 405\n"), "{told}");
    }

    #[test]
    fn the_answer_for_programs_has_the_words_of_the_audit_log() {
        let rows = [
            (
                "GET",
                "https://gmail.example.com/a",
                r#"{"credential":"gmail, key","decision":"allow","limits":[],"reason":"allowed_by_rule","rule":"read"}"#,
            ),
            (
                "GET",
                "https://gmail.example.com/admin",
                r#"{"credential":null,"decision":"block","limits":[],"reason":"blocked_by_policy","rule":"no admin"}"#,
            ),
            (
                "POST",
                "http://gmail.example.com/",
                r#"{"credential":null,"decision":"allow","limits":[{"limit":5,"rule":"budget","window":"hour"}],"reason":"allowed_by_rule","rule":"read"}"#,
            ),
            (
                "trace",
                "https://gmail.example.com/",
                r#"{"credential":null,"decision":"block","limits":[],"reason":"bad_request","rule":null}"#,
            ),
            (
                "GET",
                "https://other.example/",
                r#"{"credential":null,"decision":"block","limits":[],"reason":"blocked_by_default_policy","rule":null}"#,
            ),
        ];
        for (method, url, expected) in rows {
            let told = told_about("mail", method, url, true);
            let same = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(same(&told), same(expected), "{method} {url}");
        }
    }

    #[test]
    fn urls_are_taken_apart_as_clients_do() {
        let rows = [
            ("https://A.example", "https://a.example", "/"),
            ("HTTP://a.example:80/x?y=/z#f", "http://a.example", "/x?y=/z"),
            ("https://a.example?x", "https://a.example", "/?x"),
            ("https://[2001:DB8::1]:8443/", "https://[2001:db8::1]:8443", "/"),
            ("https://[2001:db8::1]", "https://[2001:db8::1]", "/"),
            ("https://192.0.2.1:443/a", "https://192.0.2.1", "/a"),
        ];
        for (url, destination, target) in rows {
            let (found, rest) = destination_and_target(url).unwrap();
            assert_eq!((found.to_string().as_str(), rest.as_str()), (destination, target), "{url}");
        }
        for url in [
            "a.example/x",
            "ftp://a.example/",
            "https://",
            "https://a.example:x/",
            "https://a.example:0/",
            "https://a.example:65536/",
            "https://user@a.example/",
            "https://a b/",
            "https://[::1/",
            "https:///x",
        ] {
            assert!(destination_and_target(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_wrong_question_is_told_from_a_wrong_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.toml");
        std::fs::write(&path, POLICY).unwrap();
        let ask = |agent: &str, method: &str, url: &str| Question {
            agent: agent.to_owned(),
            method: method.to_owned(),
            url: url.to_owned(),
            json: false,
        };
        assert_eq!(explain(&path, &ask("Mail", "GET", "https://a.example/")).code, 2);
        assert_eq!(explain(&path, &ask("mail", "G T", "https://a.example/")).code, 2);
        assert_eq!(explain(&path, &ask("mail", "GET", "a.example")).code, 2);
        std::fs::write(&path, "x = 1").unwrap();
        assert_eq!(explain(&path, &ask("mail", "GET", "https://a.example/")).code, 1);
    }
}
