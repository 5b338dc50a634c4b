//! Runs commands as agents: `tollgate run --agent NAME --config FILE -- COMMAND`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::internet::{HOSTS, REPOSITORY};
use super::secrets::Secrets;
use super::world::World;
use crate::{paths, run};

/// How many requests the research agent has in an hour.
pub(crate) const RESEARCH_LIMIT: usize = 20;

/// No single command of the story takes longer, even on a slow machine.
const COMMAND_SECONDS: &str = "90";

/// A proxy that does not exist, by address and by name.
const PROXY_ADDRESS: &str = "http://203.0.113.254:3128";
const PROXY_NAME: &str = "http://proxy.corp.example:3128";

/// What the agent's environment says about proxies. None of it may matter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proxy {
    /// No variable at all.
    None,
    /// Every variable names a proxy that does not exist, by address.
    Address,
    /// The same by name.
    Name,
    /// `NO_PROXY=*` beside it.
    Bypass,
}

impl Proxy {
    /// The variants in which every agent has to see the same.
    pub(crate) const ALL: [Self; 3] = [Self::None, Self::Address, Self::Bypass];
    /// For agents that deny by default: a name that they may not look up is no way out either.
    pub(crate) const CLOSED: [Self; 4] = [Self::None, Self::Address, Self::Name, Self::Bypass];

    /// For the report.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Address => "proxy by address",
            Self::Name => "proxy by name",
            Self::Bypass => "NO_PROXY=*",
        }
    }

    fn variables(self) -> Vec<String> {
        let all = |proxy: &str| {
            let names = [
                "HTTP_PROXY",
                "http_proxy",
                "HTTPS_PROXY",
                "https_proxy",
                "ALL_PROXY",
                "all_proxy",
            ];
            names.map(|name| format!("{name}={proxy}")).to_vec()
        };
        match self {
            Self::None => Vec::new(),
            Self::Address => all(PROXY_ADDRESS),
            Self::Name => all(PROXY_NAME),
            Self::Bypass => {
                let mut variables = all(PROXY_ADDRESS);
                variables.extend(["NO_PROXY=*", "no_proxy=*"].map(str::to_owned));
                variables
            }
        }
    }
}

/// A real HTTP client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// curl, which asks for HTTP/2.
    Curl,
    /// curl with HTTP/1.1.
    CurlHttp1,
    /// Python's own urllib.
    Urllib,
    /// The requests library, which brings its own roots.
    Requests,
    /// Node's fetch.
    Fetch,
}

impl Client {
    /// Those that the machine has.
    pub(crate) fn available() -> Vec<Self> {
        let mut clients = vec![Self::Curl, Self::CurlHttp1, Self::Urllib, Self::Fetch];
        if run::output(Command::new("python3").args(["-c", "import requests"])).is_ok() {
            clients.push(Self::Requests);
        }
        clients
    }

    /// For the report.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Curl => "curl",
            Self::CurlHttp1 => "curl --http1.1",
            Self::Urllib => "python urllib",
            Self::Requests => "python requests",
            Self::Fetch => "node fetch",
        }
    }

    /// A command that prints the body and, in the last line, the status.
    fn command<'a>(self, method: &'a str, url: &'a str) -> Vec<&'a str> {
        let curl = ["curl", "-sS", "--max-time", "60", "-w", "\n%{http_code}", "-X", method, url];
        match self {
            Self::Curl => curl.to_vec(),
            Self::CurlHttp1 => [curl.as_slice(), ["--http1.1"].as_slice()].concat(),
            Self::Urllib => vec!["python3", "client.py", "urllib", method, url],
            Self::Requests => vec!["python3", "client.py", "requests", method, url],
            Self::Fetch => vec!["node", "client.mjs", method, url],
        }
    }
}

/// What a command as an agent left behind.
pub(crate) struct Output {
    pub(crate) success: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// What a client saw.
pub(crate) struct Answer {
    /// Nothing when there was no HTTP answer at all.
    pub(crate) status: Option<u16>,
    pub(crate) body: String,
    /// What the client said instead.
    pub(crate) complaint: String,
}

impl Answer {
    /// The gateway's word for a refusal.
    pub(crate) fn error(&self) -> Option<String> {
        let document: serde_json::Value = serde_json::from_str(self.body.trim()).ok()?;
        Some(document.get("error")?.as_str()?.to_owned())
    }

    /// For the report.
    pub(crate) fn seen(&self) -> String {
        match (self.status, self.error()) {
            (Some(status), Some(error)) => format!("{status} {error}"),
            (Some(status), None) => format!("{status}"),
            (None, _) => format!("no answer: {}", self.complaint),
        }
    }
}

/// The program under demonstration with its configuration.
pub(crate) struct Tollgate {
    binary: PathBuf,
    configuration: PathBuf,
    state: PathBuf,
    audit: PathBuf,
    /// The folder in which agents run, with the clients' scripts.
    workspace: PathBuf,
}

impl Tollgate {
    /// Writes the configuration and the agents' folder.
    pub(crate) fn new(
        folder: &Path,
        binary: &Path,
        world: &World,
        secrets: &Secrets,
        rules: &str,
    ) -> Result<Self> {
        let tollgate = Self {
            binary: binary.to_path_buf(),
            configuration: folder.join("tollgate.toml"),
            state: folder.join("state"),
            audit: folder.join("audit.jsonl"),
            workspace: workspace(folder)?,
        };
        let text = tollgate.configuration_text(world, secrets, rules);
        fs::write(&tollgate.configuration, text)?;
        Ok(tollgate)
    }

    /// Lets connections come as fast as they can: for measurements of something else than their rate.
    pub(crate) fn without_rate(self) -> Result<Self> {
        let text = fs::read_to_string(&self.configuration)?;
        let keys = "[gateway]\nconnects_per_second = 1000000\n";
        fs::write(&self.configuration, text.replace("[gateway]\n", keys))?;
        Ok(self)
    }

    /// Runs `command` as `agent`, with the proxy variables set by the agent itself.
    pub(crate) fn run(&self, agent: &str, proxy: Proxy, command: &[&str]) -> Result<Output> {
        let mut child = run::command("setpriv");
        child.args(["--pdeathsig", "TERM", "timeout", "--foreground", "-k", "5", COMMAND_SECONDS]);
        child
            .arg(&self.binary)
            .args(["run", "--agent", agent, "--config"])
            .arg(&self.configuration);
        child.arg("--").arg("env").args(proxy.variables()).args(command);
        neutral_environment(&mut child);
        child.current_dir(&self.workspace).stdin(Stdio::null());
        let output =
            child.output().with_context(|| format!("cannot start {}", run::line(&child)))?;
        Ok(Output {
            success: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// One request as `agent`.
    pub(crate) fn request(
        &self,
        agent: &str,
        proxy: Proxy,
        client: Client,
        request: (&str, &str),
    ) -> Result<Answer> {
        let (method, url) = request;
        let output = self.run(agent, proxy, &client.command(method, url))?;
        let text = output.stdout.trim_end();
        let (body, last) = text.rsplit_once('\n').unwrap_or(("", text));
        let status = last.trim().parse().ok().filter(|status| *status != 0);
        let complaint = output.stderr.trim().lines().last().unwrap_or_default().to_owned();
        Ok(Answer { status, body: body.to_owned(), complaint })
    }

    /// The key with which every certificate could be forged.
    pub(crate) fn authority_key(&self) -> PathBuf {
        self.state.join("ca.key")
    }

    /// The audit so far: one JSON object a line.
    pub(crate) fn audit(&self) -> Result<String> {
        fs::read_to_string(&self.audit)
            .with_context(|| format!("cannot read {}", self.audit.display()))
    }

    fn configuration_text(&self, world: &World, secrets: &Secrets, rules: &str) -> String {
        let hosts = HOSTS
            .iter()
            .map(|(name, address)| format!("\"{name}\" = [\"{address}\"]\n"))
            .collect::<String>();
        let credentials = secrets.all().iter().map(|secret| {
            format!(
                "[[credential]]\nname = \"{}\"\nsource = {{ file = \"{}\" }}\nhosts = [\"{}\"]\n\
                 inject = {{ header = \"Authorization\", format = \"{} {{value}}\" }}\nagents = [\"{}\"]\n\n",
                secret.name, secret.file.display(), secret.host, secret.scheme, secret.agent
            )
        });
        format!(
            "[gateway]\nstate_dir = \"{}\"\naudit = \"{}\"\n\n[upstream]\nca_files = [\"{}\"]\n\n\
             [upstream.hosts]\n{hosts}\n{}{}",
            self.state.display(),
            self.audit.display(),
            world.root_certificate().display(),
            credentials.collect::<String>(),
            rules
        )
    }
}

/// Three agents, as an operator would write them.
pub(crate) fn rules() -> String {
    format!(
        r#"[[agent]]
name = "email-agent"

[[agent]]
name = "code-agent"

[[agent]]
name = "research-agent"

[[rule]]
name = "mail"
agents = ["email-agent"]
hosts = ["gmail.googleapis.com"]
methods = ["GET", "DELETE"]
action = "allow"

[[rule]]
name = "never delete mail"
agents = ["email-agent"]
hosts = ["gmail.googleapis.com"]
methods = ["DELETE"]
action = "block"

[[rule]]
name = "read the API"
agents = ["code-agent"]
hosts = ["api.github.com"]
methods = ["GET"]
action = "allow"

[[rule]]
name = "clone"
agents = ["code-agent"]
hosts = ["github.com"]
methods = ["GET", "POST"]
paths = ["{REPOSITORY}/*"]
action = "allow"

[[rule]]
name = "read anything"
agents = ["research-agent"]
methods = ["GET"]
action = "allow"

[[rule]]
name = "research budget"
agents = ["research-agent"]
action = "rate_limit"
limit = {RESEARCH_LIMIT}
window = "hour"
"#
    )
}

fn workspace(folder: &Path) -> Result<PathBuf> {
    let workspace = folder.join("agent");
    fs::create_dir(&workspace)?;
    fs::write(workspace.join("client.py"), include_str!("client.py"))?;
    fs::write(workspace.join("client.mjs"), include_str!("client.mjs"))?;
    fs::write(workspace.join("attempts.py"), include_str!("attempts.py"))?;
    Ok(workspace)
}

/// The caller's own proxy variables and identity are no part of the story.
pub(crate) fn neutral_environment(command: &mut Command) {
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];
    for name in names {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    // Agents are root here, also under sudo: who has more rights has more ways to try.
    for name in ["SUDO_USER", "SUDO_UID", "SUDO_GID", "SUDO_COMMAND"] {
        command.env_remove(name);
    }
    // Tools found beside the checkout's own stay findable.
    if let Some(path) = std::env::var_os("PATH") {
        let folders = std::env::split_paths(&path).chain([paths::tools().join("bin")]);
        if let Ok(joined) = std::env::join_paths(folders) {
            command.env("PATH", joined);
        }
    }
}
