//! Attempts to get past the gateway, and the control: the same attempts, ungoverned, do arrive and are counted.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use super::agent::{Client, Proxy, Tollgate, neutral_environment};
use super::internet::{FORBIDDEN_ANSWER, REPOSITORY, REPOSITORY_TEXT, address_of};
use super::report::{Report, Row};
use super::secrets::Secrets;
use super::world::{FORBIDDEN_V4, World, wait_until};
use crate::run;

/// Who tries what. The research agent may read any address over TCP, so its streams would be no escape.
const AGENTS: [(&str, &str); 3] =
    [("email-agent", "all"), ("code-agent", "all"), ("research-agent", "datagrams")];

/// What one attempt ended with.
#[derive(Deserialize)]
struct Attempt {
    attempt: String,
    errno: Option<String>,
    message: Option<String>,
    answer: Option<String>,
}

/// As agents: everything is refused, and nothing arrives.
pub(crate) fn attempts(tollgate: &Tollgate, world: &World, report: &mut Report) -> Result<()> {
    run::announce("agents try to get past the gateway");
    for (agent, which) in AGENTS {
        let output = tollgate.run(agent, Proxy::None, &["python3", "attempts.py", which])?;
        for attempt in parse(&output.stdout).with_context(|| output.stderr.trim().to_owned())? {
            report.add(row(agent, &attempt));
        }
    }
    for scheme in ["http", "https"] {
        let url = format!("{scheme}://{FORBIDDEN_V4}/");
        let answer = tollgate.request("email-agent", Proxy::None, Client::Curl, ("GET", &url))?;
        let promised = "403 blocked_by_default_policy";
        report.add(Row {
            who: "email-agent".to_owned(),
            tried: format!("GET {url} with curl"),
            proxy: "none",
            promised: promised.to_owned(),
            seen: answer.seen(),
            ok: answer.seen() == promised,
        });
    }
    let arrived = world.arrived()?;
    let seen: Vec<String> = arrived.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    report.add(Row {
        who: "the internet".to_owned(),
        tried: "counts packets from all of the above, and to any DNS server".to_owned(),
        proxy: "all",
        promised: "0 of every kind".to_owned(),
        seen: seen.join(", "),
        ok: arrived.values().all(|count| *count == 0),
    });
    Ok(())
}

/// Without Tollgate: the attempts arrive, so that the zeros above mean something.
pub(crate) fn control(
    folder: &Path,
    world: &World,
    secrets: &Secrets,
    report: &mut Report,
) -> Result<()> {
    run::announce("control: the same without Tollgate");
    let script = folder.join("control.py");
    std::fs::write(&script, include_str!("attempts.py"))?;
    let mut python = run::command("python3");
    neutral_environment(&mut python);
    let attempts = parse(&run::output(python.arg(&script).arg("all"))?)?;
    let got_through =
        attempts.iter().filter(|attempt| attempt.answer.as_deref().is_some_and(is_past)).count();
    let kinds = ["tcp4", "udp4", "icmp4", "other4", "tcp6", "udp6", "icmp6", "dns"];
    let all_counted = || {
        let arrived = world.arrived().unwrap_or_default();
        kinds.iter().all(|kind| arrived.get(*kind).is_some_and(|count| *count > 0))
    };
    let counted =
        wait_until("the arrival of every kind", Duration::from_secs(5), all_counted).is_ok();
    let arrived = world.arrived()?;
    let seen = kinds.map(|kind| format!("{kind} {}", arrived.get(kind).unwrap_or(&0)));
    report.add(Row {
        who: "no agent (control)".to_owned(),
        tried: "the same attempts without Tollgate".to_owned(),
        proxy: "none",
        promised: "every kind arrives, TCP is answered".to_owned(),
        seen: format!("{}; {got_through} answered", seen.join(", ")),
        ok: counted && got_through == 2,
    });
    ungoverned_request(world, report)?;
    ungoverned_clone(folder, world, secrets, report)
}

/// Without Tollgate a request goes out as it is, so the upstream asks for the credential.
fn ungoverned_request(world: &World, report: &mut Report) -> Result<()> {
    for (host, promised) in [("gmail.googleapis.com", "401 no credential"), ("slack.com", "200")] {
        let resolve = format!("{host}:443:{}", address_of(host)?);
        let mut curl = run::command("curl");
        neutral_environment(&mut curl);
        curl.args([
            "-sS",
            "--max-time",
            "20",
            "-w",
            "\n%{http_code}",
            "--resolve",
            &resolve,
            "--cacert",
        ]);
        curl.arg(world.root_certificate()).arg(format!("https://{host}/"));
        let text = run::output(&mut curl)?;
        let (body, status) = text.rsplit_once('\n').context("curl printed no status")?;
        let seen = if body.contains("no credential") {
            format!("{status} no credential")
        } else {
            status.to_owned()
        };
        report.add(Row {
            who: "no agent (control)".to_owned(),
            tried: format!("GET https://{host}/ with curl, without Tollgate"),
            proxy: "none",
            promised: promised.to_owned(),
            ok: seen == promised,
            seen,
        });
    }
    Ok(())
}

/// Without Tollgate a clone needs the credential in the client's own hands.
fn ungoverned_clone(
    folder: &Path,
    world: &World,
    secrets: &Secrets,
    report: &mut Report,
) -> Result<()> {
    let options = [
        format!("http.sslCAInfo={}", world.root_certificate().display()),
        format!("http.curloptResolve=github.com:443:{}", address_of("github.com")?),
        format!(
            "http.extraHeader=Authorization: {}",
            secrets.header_for("github.com").unwrap_or_default()
        ),
    ];
    let mut git = run::command("git");
    neutral_environment(&mut git);
    for option in &options {
        git.args(["-c", option]);
    }
    let target = folder.join("control-clone");
    git.args(["clone", "--quiet", &format!("https://github.com{REPOSITORY}")]).arg(&target);
    git.env("GIT_TERMINAL_PROMPT", "0").env_remove("GIT_SSL_CAINFO");
    // The command line holds the credential, so a failure is told without it.
    let cloned = run::output(&mut git).is_ok();
    let text = std::fs::read_to_string(target.join("README")).unwrap_or_default();
    let ok = cloned && text == REPOSITORY_TEXT;
    report.add(Row {
        who: "no agent (control)".to_owned(),
        tried: "git clone with the credential in hand, without Tollgate".to_owned(),
        proxy: "none",
        promised: "cloned".to_owned(),
        seen: if ok { "cloned" } else { "not cloned" }.to_owned(),
        ok,
    });
    Ok(())
}

fn row(agent: &str, attempt: &Attempt) -> Row {
    let answer = attempt.answer.as_deref();
    let seen = match (&attempt.errno, &attempt.message, answer) {
        (Some(errno), Some(message), _) => format!("{errno} ({message})"),
        (_, _, Some(answer)) => {
            format!("answered: {}", answer.lines().next().unwrap_or("closed without a word"))
        }
        (_, _, None) => "sent".to_owned(),
    };
    // Streams and names the gateway takes over: it answers in the place of the one who was asked.
    let (promised, may_be_answered) = match attempt.attempt.as_str() {
        stream if stream.contains("TCP") => {
            ("the gateway's refusal", answer.is_some_and(is_refusal))
        }
        dns if dns.contains("DNS") => ("the gateway's answer, or an errno", answer.is_some()),
        _ => ("an errno", false),
    };
    Row {
        who: agent.to_owned(),
        tried: format!("{} to the forbidden address", attempt.attempt),
        proxy: "none",
        promised: promised.to_owned(),
        seen,
        ok: attempt.errno.is_some() || may_be_answered,
    }
}

/// A stream may be answered, but only by the gateway, and only with a refusal.
fn is_refusal(answer: &str) -> bool {
    let status = answer.split_whitespace().nth(1).unwrap_or_default();
    (answer.is_empty() || status.starts_with('4')) && !is_past(answer)
}

fn is_past(answer: &str) -> bool {
    answer.contains(FORBIDDEN_ANSWER)
}

fn parse(text: &str) -> Result<Vec<Attempt>> {
    let attempts: Vec<Attempt> =
        text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    anyhow::ensure!(!attempts.is_empty(), "no attempt was reported");
    Ok(attempts)
}
