//! Specifications → [`Policy`]: per agent, what concerns it, found by host.

use std::collections::HashMap;
use std::sync::Arc;

use super::host_pattern::HostSpecificity;
use super::path_pattern::PathSpecificity;
use super::{
    Action, AgentSpec, CredentialName, CredentialSpec, DefaultAction, HostPattern, Injection,
    PathPattern, RuleName, RuleSpec,
};
use crate::agent::AgentName;
use crate::http::RequestHead;
use crate::net::{Destination, Host, Scheme};

/// A compiled policy. Cheap to ask, dear to make; swapped as a whole on reload.
#[derive(Debug)]
pub struct Policy {
    agents: HashMap<AgentName, AgentPolicy>,
    specs: Vec<AgentSpec>,
    credentials: Vec<CredentialSpec>,
    rule_count: usize,
}

/// What concerns one agent, its ancestors' part included.
#[derive(Debug)]
pub(super) struct AgentPolicy {
    pub(super) default: DefaultAction,
    /// In the order of the configuration.
    pub(super) rules: Vec<Arc<Rule>>,
    pub(super) rules_by_host: HostIndex,
    /// In the order of the configuration.
    pub(super) grants: Vec<Arc<Grant>>,
}

/// A rule without its agents and hosts, which have been checked when it is asked.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) name: RuleName,
    pub(super) action: Action,
    ports: Option<Vec<u16>>,
    methods: Option<Vec<String>>,
    paths: Option<Vec<PathPattern>>,
}

/// A credential as far as matching needs it.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) name: CredentialName,
    pub(super) inject: Injection,
    hosts: Vec<HostPattern>,
    paths: Vec<PathPattern>,
    ports: Vec<u16>,
    allow_plaintext: bool,
}

/// How narrowly a credential names a request: the path counts first, then the host.
pub(super) type GrantSpecificity = (PathSpecificity, HostSpecificity);

/// Which positions of a list concern a host.
#[derive(Debug, Default)]
pub(super) struct HostIndex {
    exact: HashMap<Host, Vec<usize>>,
    below: HashMap<Box<str>, Vec<usize>>,
    any: Vec<usize>,
}

// === impl Policy ===

impl Policy {
    /// Compiles specifications that have been checked: names are unique, every agent that is named exists, no
    /// agent descends from itself.
    pub(crate) fn compile(
        agents: Vec<AgentSpec>,
        credentials: Vec<CredentialSpec>,
        rules: &[RuleSpec],
    ) -> Self {
        let compiled_rules: Vec<_> =
            rules.iter().map(|spec| (spec, Arc::new(Rule::compile(spec)))).collect();
        let grants: Vec<_> =
            credentials.iter().map(|spec| (spec, Arc::new(Grant::compile(spec)))).collect();
        let by_name = agents
            .iter()
            .map(|agent| {
                let lineage = lineage(agent, &agents);
                (
                    agent.name.clone(),
                    AgentPolicy::compile(agent.default, &lineage, &compiled_rules, &grants),
                )
            })
            .collect();
        Self { agents: by_name, rule_count: rules.len(), specs: agents, credentials }
    }

    /// Whether the policy knows `agent`.
    #[must_use]
    pub fn has_agent(&self, agent: &AgentName) -> bool {
        self.agents.contains_key(agent)
    }

    /// The agents in the order of the configuration, with what their workloads are known by.
    pub fn agents(&self) -> impl ExactSizeIterator<Item = &AgentSpec> {
        self.specs.iter()
    }

    /// The credentials in the order of the configuration.
    pub fn credentials(&self) -> impl ExactSizeIterator<Item = &CredentialSpec> {
        self.credentials.iter()
    }

    /// The credentials that `agent` may use, its ancestors' included; none for an agent that is not known.
    pub fn credentials_of(&self, agent: &AgentName) -> impl Iterator<Item = &CredentialSpec> {
        let granted =
            self.agents.get(agent).map(|agent| agent.grants.as_slice()).unwrap_or_default();
        self.credentials.iter().filter(|spec| granted.iter().any(|grant| grant.name == spec.name))
    }

    /// How many rules the configuration has, those that are not enabled included.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.rule_count
    }

    pub(super) fn agent(&self, agent: &AgentName) -> Option<&AgentPolicy> {
        self.agents.get(agent)
    }
}

/// An agent and its ancestors. At most as many as there are agents, so that even a cycle would end.
fn lineage<'a>(agent: &'a AgentSpec, agents: &'a [AgentSpec]) -> Vec<&'a AgentName> {
    std::iter::successors(Some(agent), |descendant| {
        let parent = descendant.parent.as_ref()?;
        agents.iter().find(|candidate| candidate.name == *parent)
    })
    .take(agents.len())
    .map(|ancestor| &ancestor.name)
    .collect()
}

// === impl AgentPolicy ===

impl AgentPolicy {
    fn compile(
        default: DefaultAction,
        lineage: &[&AgentName],
        rules: &[(&RuleSpec, Arc<Rule>)],
        grants: &[(&CredentialSpec, Arc<Grant>)],
    ) -> Self {
        let concerns = |agents: &[AgentName]| agents.iter().any(|agent| lineage.contains(&agent));
        let mut compiled = Self {
            default,
            rules: Vec::new(),
            rules_by_host: HostIndex::default(),
            grants: grants
                .iter()
                .filter(|(spec, _grant)| concerns(&spec.agents))
                .map(|(_spec, grant)| Arc::clone(grant))
                .collect(),
        };
        for (spec, rule) in rules {
            if spec.enabled && spec.agents.as_deref().is_none_or(concerns) {
                compiled.rules_by_host.insert(spec.hosts.as_deref(), compiled.rules.len());
                compiled.rules.push(Arc::clone(rule));
            }
        }
        compiled
    }
}

// === impl Rule ===

impl Rule {
    fn compile(spec: &RuleSpec) -> Self {
        Self {
            name: spec.name.clone(),
            action: spec.action.clone(),
            ports: spec.ports.clone(),
            methods: spec.methods.clone(),
            paths: spec.paths.clone(),
        }
    }

    /// Whether it matches under at least one reading of the path.
    pub(super) fn matches_any_reading(&self, head: &RequestHead) -> bool {
        self.matches_beside_path(head)
            && self
                .paths
                .as_deref()
                .is_none_or(|paths| readings(head).any(|path| one_may_match(paths, path)))
    }

    /// Whether it matches under every reading of the path.
    pub(super) fn matches_every_reading(&self, head: &RequestHead) -> bool {
        self.matches_beside_path(head)
            && self
                .paths
                .as_deref()
                .is_none_or(|paths| readings(head).all(|path| one_matches(paths, path)))
    }

    /// Whether it matches whatever is requested of a host.
    pub(super) fn is_unconditional(&self) -> bool {
        self.ports.is_none()
            && self.methods.is_none()
            && self
                .paths
                .as_deref()
                .is_none_or(|paths| paths.iter().any(PathPattern::is_everything))
    }

    fn matches_beside_path(&self, head: &RequestHead) -> bool {
        self.ports.as_deref().is_none_or(|ports| ports.contains(&head.destination.port))
            && self.methods.as_deref().is_none_or(|methods| methods.contains(&head.method))
    }
}

/// Every reading of the path, the one that is sent always among them.
fn readings(head: &RequestHead) -> impl Iterator<Item = &str> {
    std::iter::once(head.path.sent.as_str()).chain(head.path.readings.iter().map(String::as_str))
}

fn one_may_match(paths: &[PathPattern], path: &str) -> bool {
    paths.iter().any(|pattern| pattern.may_match(path))
}

fn one_matches(paths: &[PathPattern], path: &str) -> bool {
    paths.iter().any(|pattern| pattern.matches(path))
}

// === impl Grant ===

impl Grant {
    fn compile(spec: &CredentialSpec) -> Self {
        Self {
            name: spec.name.clone(),
            inject: spec.inject.clone(),
            hosts: spec.hosts.clone(),
            paths: spec.paths.clone(),
            ports: spec.ports.clone(),
            allow_plaintext: spec.allow_plaintext,
        }
    }

    /// How narrowly it names the request, if it may be used for it.
    pub(super) fn specificity(&self, head: &RequestHead) -> Option<GrantSpecificity> {
        let host = self.host_specificity(&head.destination)?;
        if !readings(head).all(|path| one_matches(&self.paths, path)) {
            return None;
        }
        // The path that is sent decides, so that two credentials can tie only where their patterns overlap, which
        // the configuration refuses.
        let matching = self.paths.iter().filter(|pattern| pattern.matches(&head.path.sent));
        Some((matching.map(PathPattern::specificity).max()?, host))
    }

    fn host_specificity(&self, destination: &Destination) -> Option<HostSpecificity> {
        let carried = match destination.scheme {
            Scheme::Https => true,
            Scheme::Http => self.allow_plaintext,
        };
        if !carried || !self.ports.contains(&destination.port) {
            return None;
        }
        let matching = self.hosts.iter().filter(|pattern| pattern.matches(&destination.host));
        matching.map(HostPattern::specificity).max()
    }
}

// === impl HostIndex ===

impl HostIndex {
    /// `position` concerns the hosts of `patterns`, or every host.
    fn insert(&mut self, patterns: Option<&[HostPattern]>, position: usize) {
        let Some(patterns) = patterns else {
            self.any.push(position);
            return;
        };
        for pattern in patterns {
            match pattern {
                HostPattern::Exact(host) => {
                    self.exact.entry(host.clone()).or_default().push(position)
                }
                HostPattern::Below(domain) => {
                    self.below.entry(Box::from(domain.as_str())).or_default().push(position);
                }
            }
        }
    }

    /// The positions that concern `host`, in no particular order; one may come more than once.
    pub(super) fn positions<'a>(&'a self, host: &'a Host) -> impl Iterator<Item = usize> + 'a {
        let name = match host {
            Host::Name(name) => Some(name.as_str()),
            Host::Ip(_) => None,
        };
        let domains =
            std::iter::successors(name.and_then(parent_domain), |domain| parent_domain(domain));
        let below = domains.filter_map(|domain| self.below.get(domain)).flatten();
        self.exact.get(host).into_iter().flatten().chain(below).chain(&self.any).copied()
    }
}

fn parent_domain(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_label, domain)| domain)
}
