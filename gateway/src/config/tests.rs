use super::*;
use crate::agent::AgentName;
use crate::policy::{DefaultAction, Injection, SourceSpec};

mod mistakes;
mod parts;

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(Path::new("t.toml"), text)
}

fn accepted(text: &str) -> Config {
    parse(text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The messages with their places, without the helps.
fn refused(text: &str) -> Vec<String> {
    let errors = parse(text).expect_err("it should have been refused");
    errors
        .diagnostics()
        .iter()
        .map(|d| {
            assert!(d.help.is_some() || d.message.starts_with("not valid TOML"), "{d} has no help");
            format!("{}:{}: {}", d.line, d.column, d.message)
        })
        .collect()
}

const WHOLE: &str = r#"
[gateway]
port = 10256
connects_per_second = 500
state_dir = "/srv/state"
audit = "audit.jsonl"

[dns]
denied = "refuse"

[upstream]
ca_files = ["/etc/tollgate/extra-roots.pem"]
resolvers = ["192.0.2.53:53", "[2001:db8::53]:5353"]
[upstream.hosts]
"Mail.Internal.example" = ["10.0.0.7", "fd00::7"]

[[agent]]
name = "email-agent"
default = "deny"
match = { labels = { "tollgate.agent" = "email-agent" }, container = "mail-*", cgroup = "/agents/*" }

[[agent]]
name = "research-agent"
default = "allow"
parent = "email-agent"

[[credential]]
name = "gmail"
source = { file = "/etc/tollgate/secrets/gmail" }
hosts = ["gmail.googleapis.com"]
paths = ["/gmail/*"]
inject = { header = "Authorization", format = "Bearer {value}" }
agents = ["email-agent"]
env = "GMAIL_TOKEN"

[[credential]]
name = "plain"
source = { env = "PLAIN" }
hosts = ["plain.example.com"]
inject = { header = "X-Api-Key", format = "{value}" }
allow_plaintext = true

[[rule]]
name = "read mail"
agents = ["email-agent"]
hosts = ["gmail.googleapis.com"]
ports = [443]
methods = ["get", "Head", "PROPFIND"]
paths = ["/gmail/*"]
action = "allow"
mode = "enforce"

[[rule]]
name = "research budget"
agents = ["research-agent"]
action = "rate_limit"
limit = 1_000_000
window = "hour"
enabled = false

[[rule]]
name = "our own mail server"
hosts = ["mail.internal.example"]
action = "allow"
allow_private = true
"#;

#[test]
fn every_key_is_read() {
    let config = Config::parse(Path::new("/etc/tollgate/tollgate.toml"), WHOLE).unwrap();
    assert_eq!(config.gateway.way.port, 10256);
    assert_eq!(config.gateway.way.connects_per_second.get(), 500);
    assert_eq!(config.gateway.state_dir, Path::new("/srv/state"));
    assert_eq!(
        config.gateway.audit,
        Path::new("/etc/tollgate/audit.jsonl"),
        "relative to the file"
    );
    assert_eq!(config.dns.denied, DeniedName::Refuse);
    assert_eq!(config.upstream.resolvers.len(), 2);
    let (name, addresses) = &config.upstream.hosts[0];
    assert_eq!((name.as_str(), addresses.len()), ("mail.internal.example", 2));

    let agents: Vec<_> = config.policy.agents().collect();
    assert_eq!(agents[0].workloads.container.as_deref(), Some("mail-*"));
    assert_eq!(agents[0].workloads.cgroup.as_deref(), Some("/agents/*"));
    assert_eq!(agents[1].default, DefaultAction::Allow);
    assert_eq!(agents[1].parent, Some(AgentName::parse("email-agent").unwrap()));
    let by_label = [("tollgate.agent".to_owned(), "research-agent".to_owned())];
    assert_eq!(agents[1].workloads.labels, by_label, "the default is the agent's own label");

    let credentials: Vec<_> = config.policy.credentials().collect();
    assert_eq!(
        credentials[0].source,
        SourceSpec::File(PathBuf::from("/etc/tollgate/secrets/gmail"))
    );
    assert_eq!(
        (credentials[0].env.as_deref(), &*credentials[0].ports),
        (Some("GMAIL_TOKEN"), &[443][..])
    );
    let Injection::Header { name, format } = &credentials[0].inject;
    assert_eq!((name.as_str(), format.as_str()), ("authorization", "Bearer {value}"));
    assert_eq!(credentials[1].source, SourceSpec::Env("PLAIN".to_owned()));
    assert_eq!((credentials[1].agents.len(), &*credentials[1].ports), (0, &[443, 80][..]));
    assert_eq!(config.policy.rule_count(), 3);
}

#[test]
fn an_empty_file_has_the_defaults_and_lets_nobody_out() {
    let config = accepted("");
    assert_eq!(config.gateway.way, Way::by(10255));
    assert_eq!(config.gateway.state_dir, Path::new("/var/lib/tollgate"));
    assert_eq!(config.gateway.audit, Path::new("/var/log/tollgate/audit.jsonl"));
    assert_eq!(config.dns.denied, DeniedName::Explain);
    assert_eq!(config.policy.agents().len(), 0);
}
