//! `tollgate trust`: what a container's clients trust.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use bollard::errors::Error;
use clap::Subcommand;
use nix::unistd::Pid;

use super::Printed;
use crate::config::{Config, SourceCheck};
use crate::discover::engine::first_process;
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

fn container_pid(name: &str, engine: &Path) -> anyhow::Result<Pid> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(first_process(engine, name));
    let pid = match asked {
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
            bail!("the engine at {} has no container `{name}`", engine.display())
        }
        asked => asked.with_context(|| format!("cannot ask the engine at {}", engine.display()))?,
    };
    pid.with_context(|| format!("the container `{name}` does not run"))
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

#[cfg(test)]
mod tests {
    use super::*;

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
