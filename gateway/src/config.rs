//! configuration file → checked [`Config`]: every mistake at once, each with file, line and column.
//!
//! The text is read as TOML with places, table by table; what is wrong becomes a finding, and reading goes on.
//! Checks across tables and files follow. Only a configuration without any finding is compiled.

mod agents;
mod credentials;
mod cross_check;
mod diagnostic;
mod document;
mod reader;
mod rules;
mod schedule;
mod sections;

use std::ffi::OsString;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::DeTable;

use crate::capture::Way;
use crate::discover::Waiver;
use crate::net::HostName;
use crate::policy::Policy;
use agents::AgentDraft;
use credentials::CredentialDraft;
use diagnostic::{Findings, Place};
use document::{Document, DocumentKind};
use reader::Table;
use rules::RuleDraft;

pub use diagnostic::{ConfigErrors, Diagnostic};

/// A whole checked configuration.
#[derive(Debug)]
pub struct Config {
    /// `[gateway]`.
    pub gateway: Gateway,
    /// `[dns]`.
    pub dns: Dns,
    /// `[discover]`.
    pub discover: Discover,
    /// `[upstream]`.
    pub upstream: Upstream,
    /// Agents, credentials (without their values) and rules.
    pub policy: Arc<Policy>,
}

/// `[gateway]`: where things are.
#[derive(Debug)]
pub struct Gateway {
    /// `port` of the listener inside each workload's network namespace, and `connects_per_second`.
    pub way: Way,
    /// CA, counters, secret store.
    pub state_dir: PathBuf,
    /// The audit log.
    pub audit: PathBuf,
}

/// `[dns]`.
#[derive(Debug)]
pub struct Dns {
    /// What a denied name is answered with.
    pub denied: DeniedName,
}

/// What a denied name is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeniedName {
    /// A synthetic address, so that HTTP clients get the explanatory refusal.
    Explain,
    /// REFUSED.
    Refuse,
}

/// `[discover]`: what may be governed.
#[derive(Debug)]
pub struct Discover {
    /// Sockets of container engines; one that is not there is asked now and then.
    pub engines: Vec<PathBuf>,
    /// Objections to a workload that do not keep it closed.
    pub permit: Vec<Waiver>,
}

/// `[upstream]`: how the gateway reaches the outside.
#[derive(Debug, Default)]
pub struct Upstream {
    /// Roots in addition to the system's.
    pub ca_files: Vec<PathBuf>,
    /// Fixed addresses of names, as in `/etc/hosts`.
    pub hosts: Vec<(HostName, Vec<IpAddr>)>,
    /// DNS servers; the host's own where empty.
    pub resolvers: Vec<SocketAddr>,
}

/// Whether the things that a configuration points at are looked at too.
#[derive(Clone, Copy)]
pub enum SourceCheck<'a> {
    /// Only the configuration itself: for explaining it where its secrets cannot be read.
    Skip,
    /// Files must be readable.
    Files,
    /// Files must be readable and variables set; the function reads a variable.
    FilesAndEnvironment(&'a dyn Fn(&str) -> Option<OsString>),
}

// === impl Config ===

impl Config {
    /// Reads `path` and the parts in `policy.d` beside it, and checks that files which they name can be read.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of files and lines.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        Self::load_with(path, SourceCheck::Files)
    }

    /// [`Config::load`] with a choice of what else is looked at.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of files and lines.
    pub fn load_with(path: &Path, sources: SourceCheck<'_>) -> Result<Self, ConfigErrors> {
        from_documents(&document::read_all(path)?, sources)
    }

    /// Checks `text` as if it stood in `file_name`, without looking at any file.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of lines.
    pub fn parse(file_name: &Path, text: &str) -> Result<Self, ConfigErrors> {
        let document = Document {
            file: file_name.to_owned(),
            folder: file_name.parent().unwrap_or_else(|| Path::new("")).to_owned(),
            text: text.to_owned(),
            kind: DocumentKind::Main,
        };
        from_documents(&[document], SourceCheck::Skip)
    }
}

/// The entries of all files, before they are checked against each other.
#[derive(Debug, Default)]
struct Drafts {
    agents: Vec<AgentDraft>,
    credentials: Vec<CredentialDraft>,
    rules: Vec<RuleDraft>,
}

/// The sections that only the main file has.
struct Sections {
    gateway: Gateway,
    dns: Dns,
    discover: Discover,
    upstream: Upstream,
}

fn from_documents(
    documents: &[Document],
    sources: SourceCheck<'_>,
) -> Result<Config, ConfigErrors> {
    let mut findings = Findings::default();
    let mut drafts = Drafts::default();
    let mut main = Sections {
        gateway: Gateway::default(),
        dns: Dns::default(),
        discover: Discover::default(),
        upstream: Upstream::default(),
    };
    for (position, document) in documents.iter().enumerate() {
        let (entries, errors) = DeTable::parse_recoverable(&document.text);
        for error in errors {
            let offset = error.span().map_or(0, |span| span.start);
            findings.add_syntax(Place { document: position, offset }, error.message());
        }
        let place = Place { document: position, offset: 0 };
        let mut table = Table::new("the file", entries.get_ref(), place);
        read_sections(&mut findings, &mut table, document, sources, &mut main);
        read_entries(&mut findings, &mut table, document, &mut drafts);
        table.finish(&mut findings);
    }
    cross_check::cross_check(&mut findings, &drafts, sources);
    findings.into_result(documents)?;

    let rules: Vec<_> = drafts.rules.into_iter().map(|rule| rule.spec).collect();
    let policy = Policy::compile(
        drafts.agents.into_iter().map(|agent| agent.spec).collect(),
        drafts.credentials.into_iter().map(|credential| credential.spec).collect(),
        &rules,
    );
    let Sections { gateway, dns, discover, upstream } = main;
    Ok(Config { gateway, dns, discover, upstream, policy: Arc::new(policy) })
}

fn read_sections(
    findings: &mut Findings,
    table: &mut Table<'_>,
    document: &Document,
    sources: SourceCheck<'_>,
    main: &mut Sections,
) {
    if document.kind == DocumentKind::Part {
        for key in ["gateway", "dns", "discover", "upstream", "state"] {
            if let Some(place) = table.place_of(key) {
                let help = "move it to the main file: parts have [[agent]], [[credential]] and [[rule]] only";
                findings.add(
                    place,
                    format!("`[{key}]` cannot stand in a part of the policy"),
                    help,
                );
                table.take(key);
            }
        }
        return;
    }
    let folder = document.folder.as_path();
    let read_files = !matches!(sources, SourceCheck::Skip);
    let section = table.table(findings, "gateway", "[gateway]");
    main.gateway = sections::gateway(findings, section, folder);
    let section = table.table(findings, "dns", "[dns]");
    main.dns = sections::dns(findings, section);
    let section = table.table(findings, "discover", "[discover]");
    main.discover = sections::discover(findings, section);
    let section = table.table(findings, "upstream", "[upstream]");
    main.upstream = sections::upstream(findings, section, folder, read_files);
    table.not_yet(findings, &["state"]);
}

fn read_entries(
    findings: &mut Findings,
    table: &mut Table<'_>,
    document: &Document,
    drafts: &mut Drafts,
) {
    for entry in table.tables(findings, "agent", "[[agent]]") {
        drafts.agents.extend(agents::agent(findings, entry));
    }
    for entry in table.tables(findings, "credential", "[[credential]]") {
        drafts.credentials.extend(credentials::credential(findings, entry, &document.folder));
    }
    for entry in table.tables(findings, "rule", "[[rule]]") {
        drafts.rules.extend(rules::rule(findings, entry));
    }
}

// === defaults ===

impl Default for Gateway {
    fn default() -> Self {
        Self {
            way: Way::by(10255),
            state_dir: PathBuf::from("/var/lib/tollgate"),
            audit: PathBuf::from("/var/log/tollgate/audit.jsonl"),
        }
    }
}

impl Default for Discover {
    fn default() -> Self {
        let engines = ["/run/docker.sock", "/run/podman/podman.sock"];
        Self { engines: engines.map(PathBuf::from).to_vec(), permit: Vec::new() }
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self { denied: DeniedName::Explain }
    }
}

impl fmt::Debug for SourceCheck<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Skip => "Skip",
            Self::Files => "Files",
            Self::FilesAndEnvironment(_) => "FilesAndEnvironment",
        })
    }
}

#[cfg(test)]
mod tests;
