//! `tollgate docker-args`: what an operator passes to `docker run` by hand.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use super::Printed;
use crate::admin::WayIn;
use crate::agent::AgentName;
use crate::capture::SLICE;
use crate::config::{Config, SourceCheck};
use crate::policy::{AgentSpec, WorkloadMatch};
use crate::{run, trust};

/// Print the arguments of `docker run` that make a container an agent: its label, its way in, what its clients trust, and
/// placeholders of its credentials. For use as `docker run $(tollgate docker-args --agent NAME) IMAGE`
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The agent that the container is to be
    #[arg(long, value_name = "NAME")]
    agent: String,
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = super::CONFIG)]
    config: PathBuf,
    /// How it comes to be governed [default: runtime where the engine knows it, else label]
    #[arg(long, value_name = "WAY")]
    way: Option<Way>,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// The daemon finds it by its label: its first moments are not governed
    Label,
    /// It starts below tollgate.slice
    Slice,
    /// It is started by Tollgate's OCI runtime
    Runtime,
}

pub(super) fn main(arguments: &Arguments) -> Printed {
    let way = arguments.way.unwrap_or_else(|| default_way(Path::new(DOCKER_CONFIG)));
    let made = made(arguments, way).and_then(|words| {
        if arguments.json { Ok(serde_json::to_string(&words)?) } else { one_line(&words) }
    });
    match made {
        Ok(line) => Printed::success(format!("{line}\n")),
        Err(error) => Printed::misuse(format!("tollgate: {error:#}\n")),
    }
}

/// Where Docker's daemon is told of runtimes.
const DOCKER_CONFIG: &str = "/etc/docker/daemon.json";
/// There while systemd is the machine's first process, which then also makes the engine's cgroups.
const SYSTEMD: &str = "/run/systemd/system";

fn default_way(docker_config: &Path) -> Way {
    let knows_runtime = || -> Option<bool> {
        let text = fs::read_to_string(docker_config).ok()?;
        let config: serde_json::Value = serde_json::from_str(&text).ok()?;
        Some(config.get("runtimes")?.get(WayIn::RUNTIME).is_some())
    };
    if knows_runtime().unwrap_or(false) { Way::Runtime } else { Way::Label }
}

fn made(arguments: &Arguments, way: Way) -> anyhow::Result<Vec<String>> {
    let config = Config::load_with(&arguments.config, SourceCheck::Skip)?;
    let name = AgentName::parse(&arguments.agent)?;
    let agents = &config.policy;
    let agent = agents.agents().find(|agent| agent.name == name);
    let agent =
        agent.with_context(|| format!("the configuration has no agent `{}`", arguments.agent))?;
    let mut words: Vec<String> = labels(agent)?;
    match way {
        Way::Label => {}
        Way::Slice if Path::new(SYSTEMD).exists() => words.push(format!("--cgroup-parent={SLICE}")),
        Way::Slice => words.push(format!("--cgroup-parent=/{SLICE}")),
        Way::Runtime => words.push(format!("--runtime={}", WayIn::RUNTIME)),
    }
    let handout = trust::handout(&config.gateway.state_dir);
    if !handout.source.is_dir() {
        bail!("there is no CA yet; it is made by the first `tollgate daemon`");
    }
    words.push(mount(&handout.source, &handout.target)?);
    for (name, value) in handout.variables {
        words.push(format!("--env={name}={}", value.display()));
    }
    for credential in config.policy.credentials_of(&name) {
        if let Some(variable) = &credential.env {
            words.push(format!("--env={variable}={}", run::placeholder(credential)));
        }
    }
    Ok(words)
}

/// The labels by which a container is this agent.
fn labels(agent: &AgentSpec) -> anyhow::Result<Vec<String>> {
    let WorkloadMatch { labels, container, cgroup } = &agent.workloads;
    if container.is_some() || cgroup.is_some() || labels.is_empty() {
        bail!(
            "the agent's `match` asks for a container's name or cgroup, which only who starts it can give; match it by labels"
        );
    }
    let argument = |(key, value): &(String, String)| {
        if value.contains('*') {
            bail!(
                "the agent's `match` has the pattern `{key} = \"{value}\"`: give the container a label that it matches, or match it by one value"
            );
        }
        Ok(format!("--label={key}={value}"))
    };
    labels.iter().map(argument).collect()
}

fn mount(source: &Path, target: &Path) -> anyhow::Result<String> {
    let source = source.to_str().filter(|path| !path.contains([',', '"']));
    let source = source.context("the path of `gateway.state_dir` has a comma or a quote")?;
    Ok(format!("--mount=type=bind,source={source},target={},readonly", target.display()))
}

/// The arguments as `$( )` takes them: the shell splits its result at blanks, expands patterns in it, and takes quotes
/// for characters, so that nothing else can be passed.
fn one_line(words: &[String]) -> anyhow::Result<String> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&b);
    if let Some(word) = words.iter().find(|word| !word.bytes().all(is_plain)) {
        let shown: String = word.chars().take(200).collect();
        bail!(
            "a shell would not pass on {shown:?} as it is: take the list that `--json` prints, or choose names without blanks and other special characters"
        );
    }
    Ok(words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminate::Authority;

    /// What is printed for one agent of `text`.
    fn printed(
        text: &str,
        agent: &str,
        way: Option<Way>,
        json: bool,
    ) -> (tempfile::TempDir, Printed) {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("t.toml");
        fs::write(&config, format!("[gateway]\nstate_dir = \"state\"\n{text}")).unwrap();
        let state = folder.path().join("state");
        let pem = Authority::open(&state).unwrap().trusted_pem();
        trust::publish(&state, &[], &pem).unwrap();
        let agent = agent.to_owned();
        let way = way.or(Some(Way::Label));
        let printed = main(&Arguments { agent, config, way, json });
        (folder, printed)
    }

    const TEXT: &str = "[[agent]]\nname = \"mail\"\n\
        [[agent]]\nname = \"two\"\nmatch = { labels = { a = \"x y\", b = \"z\" } }\n\
        [[agent]]\nname = \"glob\"\nmatch = { labels = { a = \"x-*\" } }\n\
        [[agent]]\nname = \"name\"\nmatch = { container = \"x\" }\n\
        [[credential]]\nname = \"gmail\"\nsource = { env = \"SECRET\" }\nhosts = [\"c.example.com\"]\n\
        inject = { header = \"A\", format = \"{value}\" }\nenv = \"GMAIL_TOKEN\"\nagents = [\"mail\"]\n";

    #[test]
    fn the_arguments_make_a_container_the_agent_and_hold_no_secret() {
        let (folder, said) = printed(TEXT, "mail", None, false);
        assert_eq!(said.code, 0, "{said:?}");
        let words: Vec<&str> = said.text.split_whitespace().collect();
        assert_eq!(words[0], "--label=tollgate.agent=mail");
        let source = folder.path().join("state/trust");
        let mount =
            format!("--mount=type=bind,source={},target=/run/tollgate,readonly", source.display());
        assert_eq!(words[1], mount);
        assert!(words.contains(&"--env=GMAIL_TOKEN=tollgate-placeholder-gmail"), "{words:?}");
        assert!(words.contains(&"--env=SSL_CERT_FILE=/run/tollgate/ca-bundle.pem"), "{words:?}");
        let (_folder, other) = printed(TEXT, "two", None, true);
        assert!(!other.text.contains("GMAIL_TOKEN"), "it is not this agent's: {other:?}");
        for (way, word) in [(Way::Runtime, "--runtime=tollgate"), (Way::Slice, "--cgroup-parent=")]
        {
            let (_folder, said) = printed(TEXT, "mail", Some(way), false);
            assert!(said.text.contains(word), "{said:?}");
        }
    }

    #[test]
    fn what_a_shell_would_tear_apart_is_printed_as_a_list_only() {
        let (_folder, said) = printed(TEXT, "two", None, false);
        assert!(said.code != 0 && said.text.contains("--json"), "{said:?}");
        let (_folder, said) = printed(TEXT, "two", None, true);
        let words: Vec<String> = serde_json::from_str(&said.text).unwrap();
        assert_eq!(words[..2], ["--label=a=x y".to_owned(), "--label=b=z".to_owned()]);
        for bad in [
            "a b", "$(id)", "`id`", "a;b", "*", "a?", "[a]", "~", "\"a\"", "a'b", "a\\b", "a\nb",
            "a&b", "é",
        ] {
            assert!(one_line(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_agent_that_no_label_makes_is_refused_with_the_remedy() {
        for (agent, words) in [
            ("glob", "a label that it matches"),
            ("name", "match it by labels"),
            ("nobody", "has no agent `nobody`"),
            ("No Name", "is not an agent name"),
        ] {
            let (_folder, said) = printed(TEXT, agent, None, false);
            assert!(said.code != 0 && said.text.contains(words), "{agent}: {said:?}");
        }
    }

    #[test]
    fn the_runtime_is_the_way_where_the_engine_knows_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("daemon.json");
        assert_eq!(default_way(&path), Way::Label);
        for (text, way) in [
            (r#"{"runtimes":{"tollgate":{"path":"/usr/bin/tollgate"}}}"#, Way::Runtime),
            (r#"{"runtimes":{"other":{}}}"#, Way::Label),
            ("{", Way::Label),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(default_way(&path), way, "{text}");
        }
    }
}
