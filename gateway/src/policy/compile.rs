//! Specifications → [`Policy`]: per agent, what concerns it, found by host.

use std::collections::HashMap;
use std::time::SystemTime;

use super::grant::Grant;
use super::index::HostIndex;
use super::rule::{Query, Rule};
use super::sieve::Candidate;
use super::{AgentSpec, CredentialSpec, DefaultAction, Mode, RuleName, RuleSpec, Standing};
use crate::agent::AgentName;
use crate::net::Host;

/// A compiled policy. Cheap to ask, dear to make; swapped as a whole on reload.
#[derive(Debug)]
pub struct Policy {
    agents: HashMap<AgentName, AgentPolicy>,
    /// In the order of the configuration, without those that are not enabled.
    rules: Box<[Rule]>,
    enforced: Indexes,
    shadow: Indexes,
    /// In the order of the configuration.
    grants: Box<[Grant]>,
    specs: Vec<AgentSpec>,
    credentials: Vec<CredentialSpec>,
    rule_count: usize,
}

/// What concerns one agent, its ancestors' part included.
#[derive(Debug)]
pub(super) struct AgentPolicy {
    pub(super) default: DefaultAction,
    enforced: Vec<usize>,
    shadow: Vec<usize>,
    grants: Vec<usize>,
}

/// Rules of one mode: those for everybody, and those that name an agent, by that agent.
#[derive(Debug, Default)]
struct Indexes {
    lists: Vec<HostIndex<Candidate>>,
    of_everybody: Option<usize>,
    of_agent: HashMap<AgentName, usize>,
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
        let (mut enforced, mut shadow) = (Indexes::default(), Indexes::default());
        let enabled = || (0..).zip(rules.iter().filter(|spec| spec.enabled));
        for (position, spec) in enabled() {
            let indexes = match spec.mode {
                Mode::Enforce => &mut enforced,
                Mode::Shadow => &mut shadow,
            };
            indexes.insert(spec, position);
        }
        let specs: HashMap<_, _> = agents.iter().map(|spec| (&spec.name, spec)).collect();
        let by_name = agents.iter().map(|agent| {
            let lineage = lineage(agent, &specs);
            let grants = credentials.iter().enumerate().filter(|(_position, credential)| {
                credential.agents.iter().any(|agent| lineage.contains(&agent))
            });
            let concern = AgentPolicy {
                default: agent.default,
                enforced: enforced.of(&lineage),
                shadow: shadow.of(&lineage),
                grants: grants.map(|(position, _credential)| position).collect(),
            };
            (agent.name.clone(), concern)
        });
        Self {
            agents: by_name.collect(),
            rules: enabled().map(|(position, spec)| Rule::compile(spec, position)).collect(),
            enforced,
            shadow,
            grants: credentials.iter().map(Grant::compile).collect(),
            rule_count: rules.len(),
            specs: agents,
            credentials,
        }
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
        granted.iter().filter_map(|position| self.credentials.get(*position))
    }

    /// How many rules the configuration has, those that are not enabled included.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.rule_count
    }

    /// The rules that do nothing any more at `now`, because they have expired.
    pub fn expired_rules(&self, now: SystemTime) -> impl Iterator<Item = &RuleName> {
        let expired = move |rule: &&Rule| rule.standing(now) == Standing::Expired;
        self.rules.iter().filter(expired).map(|rule| &rule.name)
    }

    pub(super) fn agent(&self, agent: &AgentName) -> Option<&AgentPolicy> {
        self.agents.get(agent)
    }

    /// The rules that decide about requests of an agent to `host`, in no particular order; one may come more than
    /// once.
    pub(super) fn about<'a>(
        &'a self,
        concern: &'a AgentPolicy,
        host: &'a Host,
    ) -> impl Iterator<Item = &'a Rule> {
        self.found(self.enforced.candidates(&concern.enforced, host))
    }

    /// Those of them that may match a request.
    pub(super) fn enforced<'a>(
        &'a self,
        concern: &'a AgentPolicy,
        query: &'a Query<'_>,
    ) -> impl Iterator<Item = &'a Rule> {
        let host = &query.head.destination.host;
        let candidates = self.enforced.candidates(&concern.enforced, host);
        self.found(candidates.filter(|candidate| candidate.passes(&query.mesh)))
    }

    /// The same of the rules in shadow.
    pub(super) fn shadow<'a>(
        &'a self,
        concern: &'a AgentPolicy,
        query: &'a Query<'_>,
    ) -> impl Iterator<Item = &'a Rule> {
        let host = &query.head.destination.host;
        let candidates = self.shadow.candidates(&concern.shadow, host);
        self.found(candidates.filter(|candidate| candidate.passes(&query.mesh)))
    }

    pub(super) fn grants<'a>(
        &'a self,
        concern: &'a AgentPolicy,
    ) -> impl Iterator<Item = &'a Grant> {
        concern.grants.iter().filter_map(|position| self.grants.get(*position))
    }

    fn found(&self, found: impl Iterator<Item = Candidate>) -> impl Iterator<Item = &Rule> {
        found.filter_map(|candidate| self.rules.get(usize::try_from(candidate.slot).ok()?))
    }
}

/// An agent and its ancestors. At most as many as there are agents, so that even a cycle would end.
fn lineage<'a>(
    agent: &'a AgentSpec,
    specs: &HashMap<&AgentName, &'a AgentSpec>,
) -> Vec<&'a AgentName> {
    let parent = |descendant: &&'a AgentSpec| specs.get(descendant.parent.as_ref()?).copied();
    std::iter::successors(Some(agent), parent)
        .take(specs.len())
        .map(|ancestor| &ancestor.name)
        .collect()
}

// === impl AgentPolicy ===

impl AgentPolicy {
    /// Whether any rule in shadow could concern it.
    pub(super) fn has_shadow(&self) -> bool {
        !self.shadow.is_empty()
    }
}

// === impl Indexes ===

impl Indexes {
    fn insert(&mut self, spec: &RuleSpec, slot: u32) {
        let Self { lists, of_everybody, of_agent } = self;
        let mut new_list = || {
            lists.push(HostIndex::default());
            lists.len() - 1
        };
        let chosen: Vec<usize> = match &spec.agents {
            None => vec![*of_everybody.get_or_insert_with(new_list)],
            Some(agents) => agents
                .iter()
                .map(|agent| *of_agent.entry(agent.clone()).or_insert_with(&mut new_list))
                .collect(),
        };
        for list in chosen {
            if let Some(index) = lists.get_mut(list) {
                index.insert(spec.hosts.as_deref(), Candidate::new(spec, slot));
            }
        }
    }

    /// The lists that concern an agent with these ancestors.
    fn of(&self, lineage: &[&AgentName]) -> Vec<usize> {
        let own = lineage.iter().filter_map(|name| self.of_agent.get(*name));
        own.chain(&self.of_everybody).copied().collect()
    }

    fn candidates<'a>(
        &'a self,
        lists: &'a [usize],
        host: &'a Host,
    ) -> impl Iterator<Item = Candidate> + use<'a> {
        let lists = lists.iter().filter_map(|list| self.lists.get(*list));
        lists.flat_map(move |index| index.positions(host))
    }
}
