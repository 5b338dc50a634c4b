//! The credentials of the demonstration, and the search for them where an agent could look.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::agent::{Proxy, Tollgate};
use super::report::{Report, Row};
use super::world::feed;
use crate::run;

/// One credential: where it is for the gateway, and what the upstream has to see.
pub(crate) struct Secret {
    /// The credential's name in the configuration.
    pub(crate) name: &'static str,
    /// The upstream it is for.
    pub(crate) host: &'static str,
    /// The agent it is granted to.
    pub(crate) agent: &'static str,
    /// The word before the value in `Authorization`.
    pub(crate) scheme: &'static str,
    /// The file the gateway reads.
    pub(crate) file: PathBuf,
    value: String,
}

/// All of them, random and new in each run.
pub(crate) struct Secrets {
    all: Vec<Secret>,
}

impl Secrets {
    /// Makes the values and writes them where only root reads.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        fs::DirBuilder::new().mode(0o700).create(folder)?;
        let make = |name, host, agent, scheme| -> Result<Secret> {
            let random = run::output(Command::new("openssl").args(["rand", "-hex", "24"]))?;
            let mut value = random.trim().to_owned();
            if scheme == "Basic" {
                let pair = format!("x-access-token:{value}");
                value =
                    feed(Command::new("openssl").args(["base64", "-A"]), &pair)?.trim().to_owned();
            }
            let file = folder.join(name);
            let mut handle =
                fs::File::options().write(true).create_new(true).mode(0o600).open(&file)?;
            handle.write_all(value.as_bytes())?;
            Ok(Secret { name, host, agent, scheme, file, value })
        };
        Ok(Self {
            all: vec![
                make("gmail", "gmail.googleapis.com", "email-agent", "Bearer")?,
                make("github-api", "api.github.com", "code-agent", "Bearer")?,
                make("github-git", "github.com", "code-agent", "Basic")?,
            ],
        })
    }

    /// For a gateway that injects nothing.
    pub(crate) fn none() -> Self {
        Self { all: Vec::new() }
    }

    pub(crate) fn all(&self) -> &[Secret] {
        &self.all
    }

    /// The `Authorization` that the upstream demands; nothing where it demands none.
    pub(crate) fn header_for(&self, host: &str) -> Option<String> {
        let secret = self.all.iter().find(|secret| secret.host == host)?;
        Some(format!("{} {}", secret.scheme, secret.value))
    }

    /// The names of the secrets that `text` holds.
    pub(crate) fn found_in(&self, text: &str) -> Vec<&'static str> {
        self.all
            .iter()
            .filter(|secret| text.contains(&secret.value))
            .map(|secret| secret.name)
            .collect()
    }
}

/// Lets each agent look for the credentials wherever a curious program would.
pub(crate) fn hunt(tollgate: &Tollgate, secrets: &Secrets, report: &mut Report) -> Result<()> {
    run::announce("agents look for credentials");
    let look = [
        ("its environment", "env; tr '\\0' '\\n' < /proc/self/environ".to_owned()),
        (
            "the environment of every process it sees",
            "cat /proc/[0-9]*/environ | tr '\\0' '\\n'".to_owned(),
        ),
        (
            "the command line of every process it sees",
            "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'".to_owned(),
        ),
        ("the files of its folder", "find . -type f -exec cat {} +".to_owned()),
    ];
    for agent in ["email-agent", "code-agent", "research-agent"] {
        for (where_to, script) in &look {
            // The end of the script tells a search that found nothing from one that did not happen.
            let script = format!("{script} 2>/dev/null; echo searched");
            let output = tollgate.run(agent, Proxy::None, &["sh", "-c", &script])?;
            let text = output.stdout + &output.stderr;
            report.add(searched(agent, where_to, &text, secrets));
        }
    }
    for secret in secrets.all() {
        let file = secret.file.display();
        let paths = [
            ("the secret's file", format!("{file}")),
            ("the same by /proc/PID/root", format!("/proc/[0-9]*/root{file}")),
        ];
        for (what, path) in paths {
            let script = format!("cat {path} 2>&1; echo searched");
            let output = tollgate.run(secret.agent, Proxy::None, &["sh", "-c", &script])?;
            report.add(searched(
                secret.agent,
                &format!("{what} ({})", secret.name),
                &output.stdout,
                secrets,
            ));
        }
    }
    let key = tollgate.authority_key();
    let script =
        format!("cat {} /proc/[0-9]*/root{} 2>&1; echo searched", key.display(), key.display());
    let output = tollgate.run("email-agent", Proxy::None, &["sh", "-c", &script])?;
    let ok = output.stdout.contains("searched")
        && !output.stdout.contains("PRIVATE KEY")
        && key.exists();
    report.add(Row {
        who: "email-agent".to_owned(),
        tried: "reads the key of the gateway's authority".to_owned(),
        proxy: "none",
        promised: "not there".to_owned(),
        seen: if ok { "not there" } else { "there, or not searched" }.to_owned(),
        ok,
    });
    Ok(())
}

fn searched(agent: &str, where_to: &str, text: &str, secrets: &Secrets) -> Row {
    let found = secrets.found_in(text);
    let seen = match (found.is_empty(), text.contains("searched")) {
        (true, true) => "not there".to_owned(),
        (true, false) => "could not search".to_owned(),
        (false, _) => format!("found {}", found.join(", ")),
    };
    let ok = seen == "not there";
    let tried = format!("looks in {where_to}");
    Row { who: agent.to_owned(), tried, proxy: "none", promised: "not there".to_owned(), seen, ok }
}
