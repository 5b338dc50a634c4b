//! The three agents of the README and what each of them is promised.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};

use super::agent::{Client, Proxy, RESEARCH_LIMIT, Tollgate};
use super::internet::{Access, HOSTS, REPOSITORY, REPOSITORY_TEXT};
use super::report::{Report, Row};
use super::secrets::Secrets;
use super::world::{World, wait_until};
use crate::run;

const MAIL: &str = "https://gmail.googleapis.com/gmail/v1/users/me/messages";
const PAPER: &str = "https://arxiv.org/abs/1706.03762";

/// An upstream writes its line when the answer has been sent, so it may come a moment later.
const LOG_DELAY: Duration = Duration::from_secs(3);

/// A request and what has to come of it.
struct Case<'a> {
    agent: &'a str,
    request: (&'a str, &'a str),
    /// Status and, for a refusal, the gateway's word.
    promised: &'a str,
    /// What the upstream has to see.
    upstream: Upstream<'a>,
}

#[derive(Clone, Copy)]
enum Upstream<'a> {
    /// The request with the credential, which the agent never had.
    Credential(&'a str),
    /// The request as it is.
    Plain,
    /// No request at all.
    Nothing,
}

/// Reads mail, and may not delete it.
pub(crate) fn email(
    tollgate: &Tollgate,
    world: &World,
    secrets: &Secrets,
    report: &mut Report,
) -> Result<()> {
    run::announce("email-agent reads mail, and cannot delete it");
    let credential = secrets.header_for("gmail.googleapis.com").unwrap_or_default();
    let read = Case {
        agent: "email-agent",
        request: ("GET", MAIL),
        promised: "200",
        upstream: Upstream::Credential(&credential),
    };
    let delete = Case {
        request: ("DELETE", MAIL),
        promised: "403 blocked_by_policy",
        upstream: Upstream::Nothing,
        ..read
    };
    for case in [&read, &delete] {
        for proxy in Proxy::CLOSED {
            for client in Client::available() {
                request(tollgate, world, case, (proxy, client), report)?;
            }
        }
    }
    Ok(())
}

/// Clones and reads the API; nothing else.
pub(crate) fn code(
    tollgate: &Tollgate,
    world: &World,
    secrets: &Secrets,
    report: &mut Report,
) -> Result<()> {
    run::announce("code-agent clones, reads the API, and cannot chat");
    let api = secrets.header_for("api.github.com").unwrap_or_default();
    let read = Case {
        agent: "code-agent",
        request: ("GET", "https://api.github.com/repos/example/project"),
        promised: "200",
        upstream: Upstream::Credential(&api),
    };
    let chat = Case {
        request: ("GET", "https://slack.com/api/chat.postMessage"),
        promised: "403 blocked_by_default_policy",
        upstream: Upstream::Nothing,
        ..read
    };
    for proxy in Proxy::CLOSED {
        for client in Client::available() {
            request(tollgate, world, &read, (proxy, client), report)?;
            request(tollgate, world, &chat, (proxy, client), report)?;
        }
        clone(tollgate, world, secrets, proxy, report)?;
    }
    Ok(())
}

/// Reads anything, as often as its budget says.
pub(crate) fn research(tollgate: &Tollgate, world: &World, report: &mut Report) -> Result<()> {
    run::announce("research-agent reads anything, within its budget");
    leave_the_turn_of_the_hour()?;
    let mut reads = 0;
    for proxy in Proxy::ALL {
        for client in Client::available() {
            // The last requests are for the count below.
            if reads + 2 > RESEARCH_LIMIT {
                break;
            }
            let url = if reads == 0 { "https://slack.com/" } else { PAPER };
            let case = Case {
                agent: "research-agent",
                request: ("GET", url),
                promised: "200",
                upstream: Upstream::Plain,
            };
            request(tollgate, world, &case, (proxy, client), report)?;
            reads += 1;
        }
    }
    let rest = RESEARCH_LIMIT - reads;
    budget(tollgate, rest, report)?;
    let over = Case {
        agent: "research-agent",
        request: ("GET", PAPER),
        promised: "429 rate_limited",
        upstream: Upstream::Nothing,
    };
    for proxy in Proxy::ALL {
        request(tollgate, world, &over, (proxy, Client::Curl), report)?;
    }
    let mine = |access: &&Access| ["slack.com", "arxiv.org"].contains(&access.host.as_str());
    let seen = world.accesses().iter().filter(mine).count();
    report.add(Row {
        who: "the internet".to_owned(),
        tried: "counts the research agent's requests".to_owned(),
        proxy: "all",
        promised: RESEARCH_LIMIT.to_string(),
        seen: seen.to_string(),
        ok: seen == RESEARCH_LIMIT,
    });
    Ok(())
}

/// One record for each request that the upstreams saw, refusals beside them, and no secret in any.
pub(crate) fn audit(
    tollgate: &Tollgate,
    world: &World,
    secrets: &Secrets,
    report: &mut Report,
) -> Result<()> {
    let text = tollgate.audit()?;
    let mut allowed: BTreeMap<String, usize> = BTreeMap::new();
    let mut refused = 0;
    for line in text.lines() {
        let record: serde_json::Value = serde_json::from_str(line)?;
        let field = |name: &str| {
            record.get(name).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
        };
        match (field("kind").as_str(), field("decision").as_str()) {
            ("request", "allow") => *allowed.entry(field("host")).or_default() += 1,
            ("request", _) => refused += 1,
            _ => {}
        }
    }
    let accesses = world.accesses();
    let arrived = |host: &str| accesses.iter().filter(|access| access.host == host).count();
    let differing: Vec<String> = HOSTS
        .iter()
        .map(|(host, _)| (host, allowed.get(*host).copied().unwrap_or_default(), arrived(host)))
        .filter(|(_, records, requests)| records != requests)
        .map(|(host, records, requests)| format!("{host}: {records} records, {requests} requests"))
        .collect();
    let leaked = secrets.found_in(&text);
    let ok = differing.is_empty() && leaked.is_empty() && refused > 0;
    report.add(Row {
        who: "the audit".to_owned(),
        tried: "is compared with the upstreams' logs".to_owned(),
        proxy: "all",
        promised: "one record per request, no secret".to_owned(),
        seen: format!(
            "{} allowed, {refused} refused; differing: [{}]; secrets: [{}]",
            allowed.values().sum::<usize>(),
            differing.join(", "),
            leaked.join(", ")
        ),
        ok,
    });
    Ok(())
}

fn request(
    tollgate: &Tollgate,
    world: &World,
    case: &Case<'_>,
    (proxy, client): (Proxy, Client),
    report: &mut Report,
) -> Result<()> {
    let before = world.accesses().len();
    let answer = tollgate.request(case.agent, proxy, client, case.request)?;
    let (method, url) = case.request;
    let (reached, upstream) = upstream(world, before, case)?;
    report.add(Row {
        who: case.agent.to_owned(),
        tried: format!("{method} {url} with {}", client.title()),
        proxy: proxy.title(),
        promised: format!("{}; upstream: {}", case.promised, case.upstream.promise()),
        seen: format!("{}; upstream: {upstream}", answer.seen()),
        ok: reached && answer.seen() == case.promised,
    });
    Ok(())
}

impl Upstream<'_> {
    fn promise(self) -> &'static str {
        match self {
            Self::Credential(_) => "credential",
            Self::Plain => "no credential",
            Self::Nothing => "no request",
        }
    }
}

/// Whether the upstream saw what it had to see, and what that was.
fn upstream(world: &World, before: usize, case: &Case<'_>) -> Result<(bool, &'static str)> {
    let new = || world.accesses_after(before);
    if !matches!(case.upstream, Upstream::Nothing)
        && wait_until("a line in the access log", LOG_DELAY, || !new().is_empty()).is_err()
    {
        return Ok((false, "no request"));
    }
    let accesses = new();
    let Some(last) = accesses.last() else {
        return Ok((matches!(case.upstream, Upstream::Nothing), "no request"));
    };
    let (method, url) = case.request;
    let is_this = last.method == method && url.ends_with(&last.path) && url.contains(&last.host);
    Ok(match case.upstream {
        Upstream::Credential(value) if last.authorization == value => {
            (is_this && accesses.len() == 1, "credential")
        }
        Upstream::Plain if last.authorization == "-" => {
            (is_this && accesses.len() == 1, "no credential")
        }
        _ if last.authorization == "-" => (false, "no credential"),
        _ => (false, "another credential"),
    })
}

/// A clone over HTTPS by git itself.
fn clone(
    tollgate: &Tollgate,
    world: &World,
    secrets: &Secrets,
    proxy: Proxy,
    report: &mut Report,
) -> Result<()> {
    let before = world.accesses().len();
    let script = format!(
        "rm -rf project && git clone --quiet https://github.com{REPOSITORY} project && cat project/README && rm -rf project"
    );
    let output = tollgate.run("code-agent", proxy, &["sh", "-c", &script])?;
    let cloned = output.success && output.stdout.contains(REPOSITORY_TEXT);
    let credential = secrets.header_for("github.com").unwrap_or_default();
    let new = || world.accesses_after(before);
    // The last request of a clone is the POST that fetches the objects; a clone that failed has none.
    let fetched = || new().iter().any(|access| access.method == "POST");
    let logged = !cloned || wait_until("the last line of the clone", LOG_DELAY, fetched).is_ok();
    let accesses = new();
    let credited = logged
        && !accesses.is_empty()
        && accesses.iter().all(|access| access.authorization == credential);
    let complaint = output.stderr.trim().lines().last().unwrap_or_default();
    report.add(Row {
        who: "code-agent".to_owned(),
        tried: format!("git clone https://github.com{REPOSITORY}"),
        proxy: proxy.title(),
        promised: "cloned; upstream: credential".to_owned(),
        seen: format!(
            "{}; upstream: {} with credential: {credited}",
            if cloned { "cloned".to_owned() } else { format!("not cloned: {complaint}") },
            accesses.len(),
        ),
        ok: cloned && credited,
    });
    Ok(())
}

/// Spends the rest of the budget in one command; the request after it has to say when to come back.
fn budget(tollgate: &Tollgate, rest: usize, report: &mut Report) -> Result<()> {
    let script = format!(
        "for i in $(seq {}); do curl -sS --max-time 60 -o answer -D head -w '%{{http_code}}\\n' {PAPER}; done; \
         grep -i '^retry-after:' head; cat answer; rm -f head answer",
        rest + 1
    );
    let output = tollgate.run("research-agent", Proxy::None, &["sh", "-c", &script])?;
    let granted = output.stdout.lines().filter(|line| *line == "200").count();
    let refused = output.stdout.lines().filter(|line| *line == "429").count();
    let retry_after = output.stdout.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let seconds = value.trim().parse::<u64>().ok()?;
        name.eq_ignore_ascii_case("retry-after").then_some(seconds)
    });
    report.add(Row {
        who: "research-agent".to_owned(),
        tried: format!("{} more GET {PAPER} with curl", rest + 1),
        proxy: "none",
        promised: format!("{rest} times 200, then 429 with Retry-After"),
        seen: format!(
            "{granted} times 200, {refused} times 429, Retry-After {}",
            retry_after.map_or_else(|| "missing".to_owned(), |seconds| format!("{seconds} s"))
        ),
        ok: granted == rest
            && refused == 1
            && retry_after.is_some_and(|seconds| (1..=3600).contains(&seconds)),
    });
    Ok(())
}

/// Windows are clock hours. The story takes less than two minutes; it does not start in the last two.
fn leave_the_turn_of_the_hour() -> Result<()> {
    const STORY: u64 = 120;
    let left =
        || SystemTime::now().duration_since(UNIX_EPOCH).map(|now| 3600 - now.as_secs() % 3600);
    if left()? > STORY {
        return Ok(());
    }
    run::announce("the hour is about to turn, and with it the budget: waiting for the next one");
    wait_until("the next hour", Duration::from_secs(STORY + 10), || {
        left().is_ok_and(|left| left > STORY)
    })?;
    if left()? <= STORY {
        bail!("the clock did not turn");
    }
    Ok(())
}
