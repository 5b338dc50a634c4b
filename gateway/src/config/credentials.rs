//! `[[credential]]`.

use std::path::Path;

use super::agents::agent_names;
use super::diagnostic::{Findings, Located, Place};
use super::reader::{Table, shown};
use super::rules::{host_patterns, path_patterns};
use super::sections::file_path;
use crate::agent::AgentName;
use crate::policy::{CredentialName, CredentialSpec, Injection, PathPattern, SourceSpec};

/// A credential with the places that later checks point at.
#[derive(Debug)]
pub(super) struct CredentialDraft {
    pub(super) name: Located<CredentialName>,
    pub(super) agents: Vec<Located<AgentName>>,
    pub(super) source_place: Place,
    pub(super) inject_place: Place,
    pub(super) env_place: Place,
    pub(super) spec: CredentialSpec,
}

/// Reads one `[[credential]]`; none where a part without a closed default is wrong.
pub(super) fn credential(
    findings: &mut Findings,
    mut table: Table<'_>,
    folder: &Path,
) -> Option<CredentialDraft> {
    let name = table.required_string(findings, "name", "give it one, such as `name = \"gmail\"`");
    let name = name.and_then(|name| match CredentialName::parse(name.value) {
        Ok(value) => Some(Located { value, place: name.place }),
        Err(error) => {
            findings.add(name.place, error.to_string(), "choose a short name");
            None
        }
    });
    let label = table.place;
    let source_place = table.place_of("source").unwrap_or(label);
    let inject_place = table.place_of("inject").unwrap_or(label);
    let env_place = table.place_of("env").unwrap_or(label);
    let source = source(findings, &mut table, folder);
    let inject = injection(findings, &mut table);
    let env = table
        .string(findings, "env")
        .and_then(|variable| variable_name(findings, "env", &variable));
    if !table.has("hosts") {
        let help = "name the hosts that may see it: `hosts = [\"gmail.googleapis.com\"]`";
        findings.add(label, "[[credential]] has no `hosts`", help);
    }
    let empty = "name the hosts that may see the credential";
    let hosts = host_patterns(findings, &mut table, empty).unwrap_or_default();
    let paths = path_patterns(findings, &mut table, "leave `paths` out for every path");
    let allow_plaintext =
        table.boolean(findings, "allow_plaintext").is_some_and(|allow| allow.value);
    let ports = table.ports(findings, "ports").unwrap_or_else(|| default_ports(allow_plaintext));
    let agents = agent_names(findings, &mut table, None).unwrap_or_default();
    table.finish(findings);

    let name = name?;
    let spec = CredentialSpec {
        name: name.value.clone(),
        source: source?,
        inject: inject?,
        env,
        hosts,
        paths: paths.unwrap_or_else(|| vec![PathPattern::everything()]),
        ports,
        allow_plaintext,
        agents: agents.iter().map(|agent| agent.value.clone()).collect(),
    };
    Some(CredentialDraft { name, agents, source_place, inject_place, env_place, spec })
}

fn default_ports(allow_plaintext: bool) -> Vec<u16> {
    if allow_plaintext { vec![443, 80] } else { vec![443] }
}

fn source(findings: &mut Findings, table: &mut Table<'_>, folder: &Path) -> Option<SourceSpec> {
    if !table.has("source") {
        findings.add(table.place, "[[credential]] has no `source`", SOURCE_HELP);
    }
    let mut source = table.table(findings, "source", "`source`")?;
    let place = source.place;
    let file = file_path(findings, &mut source, "file", folder).map(SourceSpec::File);
    let env = source
        .string(findings, "env")
        .and_then(|variable| variable_name(findings, "env", &variable));
    let env = env.map(SourceSpec::Env);
    let names_one =
        source.has("file") || source.has("env") || LATER_SOURCES.iter().any(|key| source.has(key));
    source.not_yet(findings, LATER_SOURCES);
    source.finish(findings);
    match (file, env) {
        (Some(_), Some(_)) => {
            findings.add(place, "`source` names two sources", SOURCE_HELP);
            None
        }
        (None, None) if !names_one => {
            findings.add(place, "`source` names no source", SOURCE_HELP);
            None
        }
        (file, env) => file.or(env),
    }
}

fn injection(findings: &mut Findings, table: &mut Table<'_>) -> Option<Injection> {
    if !table.has("inject") {
        findings.add(table.place, "[[credential]] has no `inject`", INJECT_HELP);
    }
    let mut inject = table.table(findings, "inject", "`inject`")?;
    let later = LATER_INJECTIONS.iter().any(|key| inject.has(key));
    inject.not_yet(findings, LATER_INJECTIONS);
    if !later && !inject.has("header") {
        findings.add(inject.place, "`inject` names no `header`", INJECT_HELP);
    }
    if !later && !inject.has("format") {
        findings.add(inject.place, "`inject` has no `format`", INJECT_HELP);
    }
    let header =
        inject.string(findings, "header").and_then(|header| header_name(findings, &header));
    let format =
        inject.string(findings, "format").and_then(|format| header_format(findings, &format));
    inject.finish(findings);
    Some(Injection::Header { name: header?, format: format? })
}

fn header_name(findings: &mut Findings, text: &Located<&str>) -> Option<http::HeaderName> {
    let Ok(name) = http::HeaderName::from_bytes(text.value.as_bytes()) else {
        let message = format!("`{}` is not the name of a header field", shown(text.value));
        findings.add(text.place, message, "for example `header = \"Authorization\"`");
        return None;
    };
    if FRAMING_HEADERS.contains(&name.as_str()) {
        let message = format!("the header field `{name}` cannot carry a credential");
        findings.add(
            text.place,
            message,
            "it belongs to the connection; choose the field that the service documents",
        );
        return None;
    }
    Some(name)
}

fn header_format(findings: &mut Findings, text: &Located<&str>) -> Option<String> {
    // The format itself is not quoted: somebody may have written the secret into it.
    if !text.value.contains(VALUE_HOLE) {
        findings.add(
            text.place,
            "`format` has no `{value}`",
            "for example `format = \"Bearer {value}\"`",
        );
        return None;
    }
    let visible = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    let valid = text.value.bytes().all(visible) && text.value.trim() == text.value;
    if !valid {
        let help = "use visible ASCII characters, and no blank at either end";
        findings.add(text.place, "`format` is not a valid field value", help);
        return None;
    }
    Some(text.value.to_owned())
}

fn variable_name(findings: &mut Findings, key: &str, text: &Located<&str>) -> Option<String> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let valid =
        text.value.bytes().all(word) && text.value.starts_with(|c: char| !c.is_ascii_digit());
    if !valid {
        let message = format!("`{key}` is not the name of an environment variable");
        findings.add(
            text.place,
            message,
            "use letters, digits and `_`, for example `env = \"GITHUB_TOKEN\"`",
        );
        return None;
    }
    Some(text.value.to_owned())
}

/// Where the secret goes in a format.
const VALUE_HOLE: &str = "{value}";

const SOURCE_HELP: &str =
    "write `source = { file = \"/etc/tollgate/secrets/NAME\" }` or `source = { env = \"NAME\" }`";

const INJECT_HELP: &str =
    "write `inject = { header = \"Authorization\", format = \"Bearer {value}\" }`";

const LATER_SOURCES: &[&str] = &["command", "store", "systemd", "vault"];

const LATER_INJECTIONS: &[&str] = &["query", "path", "basic", "type"];

/// Fields that say how a message is framed or where it goes: overwriting one would let a request say something else
/// than what was decided about.
const FRAMING_HEADERS: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
