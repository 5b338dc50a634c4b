//! `tollgate trust`: what a container's clients trust.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use nix::unistd::Pid;

use super::Printed;
use crate::config::{Config, SourceCheck};
use crate::terminate;
use crate::trust::{self, Anchors, check::Client};

/// Look into what a container's clients trust
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = super::CONFIG, global = true)]
    config: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say which clients in a container trust the CA, and why others do not; runs none of them
    Check {
        /// A container's name or id, or the number of a process in it
        #[arg(value_name = "CONTAINER|PID")]
        target: String,
        /// The engine's socket
        #[arg(long, value_name = "FILE", default_value = "/run/docker.sock")]
        engine: PathBuf,
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn main(arguments: &Arguments) -> Printed {
    let Verb::Check { target, engine, json } = &arguments.verb;
    let checked = clients(arguments, target, engine);
    match checked {
        Ok(clients) => printed(&clients, *json),
        Err(error) => Printed::misuse(format!("tollgate: {error:#}\n")),
    }
}

fn clients(arguments: &Arguments, target: &str, engine: &Path) -> anyhow::Result<Vec<Client>> {
    let config = Config::load_with(&arguments.config, SourceCheck::Skip)?;
    let pem = terminate::trusted_pem(&config.gateway.state_dir)?;
    if pem.is_empty() {
        bail!("there is no CA yet; it is made by the first `tollgate daemon` or `tollgate run`");
    }
    let pid = match target.parse() {
        Ok(number) => Pid::from_raw(number),
        Err(_name) => container_pid(target, engine)?,
    };
    Ok(trust::check(pid, &Anchors::new(&pem)?)?)
}

/// Asks the engine. The one question is small enough to be asked by hand.
fn container_pid(name: &str, engine: &Path) -> anyhow::Result<Pid> {
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte)) {
        bail!("`{name}` is no name of a container");
    }
    let asked = || -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(engine)?;
        stream.set_read_timeout(Some(ENGINE_PATIENCE))?;
        write!(stream, "GET /containers/{name}/json HTTP/1.0\r\nHost: engine\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX_BYTES).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer =
        asked().with_context(|| format!("cannot ask the engine at {}", engine.display()))?;
    pid_of(&String::from_utf8_lossy(&answer))
        .with_context(|| format!("the engine has no container `{name}` that runs"))
}

/// The number of the first process, in an answer that says of a container that it runs.
fn pid_of(answer: &str) -> Option<Pid> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200 ").then_some(())?;
    let body: serde_json::Value = serde_json::from_str(body).ok()?;
    let number = body.pointer("/State/Pid")?.as_i64().filter(|number| *number > 0)?;
    Some(Pid::from_raw(i32::try_from(number).ok()?))
}

/// The code says whether everything is well; that something is not is no failure of this command, so that the list
/// goes to standard output all the same.
fn printed(clients: &[Client], json: bool) -> Printed {
    let mut text = String::new();
    if json {
        text = serde_json::to_string(clients).unwrap_or_default() + "\n";
    } else {
        for client in clients {
            let (mark, why) = match &client.problem {
                None => ("trusts", String::new()),
                Some(problem) => ("FAILS ", format!(": {problem}")),
            };
            text.push_str(&format!("{mark}  {} ({}){why}\n", client.name, client.path));
        }
    }
    Printed::success(text)
}

const ENGINE_PATIENCE: Duration = Duration::from_secs(10);
/// A container's description has some kilobytes.
const ANSWER_MAX_BYTES: u64 = 8 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_answer_is_believed_only_for_a_container_that_runs() {
        let answer = |status: &str, pid: i64| {
            format!("HTTP/1.0 {status}\r\nA: b\r\n\r\n{{\"State\":{{\"Pid\":{pid}}}}}\n")
        };
        assert_eq!(pid_of(&answer("200 OK", 7)), Some(Pid::from_raw(7)));
        for bad in [answer("200 OK", 0), answer("404 Not Found", 7), "HTTP/1.0 200 OK".into()] {
            assert_eq!(pid_of(&bad), None, "{bad}");
        }
    }

    #[test]
    fn what_fails_is_printed_with_its_reason() {
        let clients = [("curl", None), ("node", Some("own roots"))].map(|(name, problem)| Client {
            name: name.to_owned(),
            path: format!("/bin/{name}"),
            problem: problem.map(str::to_owned),
        });
        let text = printed(&clients, false).text;
        assert_eq!(text, "trusts  curl (/bin/curl)\nFAILS   node (/bin/node): own roots\n");
        let json: serde_json::Value = serde_json::from_str(&printed(&clients, true).text).unwrap();
        assert_eq!(json[1]["problem"], "own roots");
    }
}
