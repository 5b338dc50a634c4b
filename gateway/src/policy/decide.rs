//! The decision itself.

use super::compile::{AgentPolicy, Grant, GrantSpecificity, Rule};
use super::{
    Action, CredentialName, CredentialSpec, DefaultAction, Injection, Limit, Metered, NameVerdict,
    Permit, Policy, Verdict,
};
use crate::agent::AgentName;
use crate::http::RequestHead;
use crate::net::{Host, HostName};

/// Decides about one request.
#[must_use]
pub fn decide(policy: &Policy, agent: &AgentName, head: &RequestHead) -> Verdict {
    let Some(concern) = policy.agent(agent) else { return Verdict::UnknownAgent };
    let matched = Matched::find(concern, head);
    if let Some(rule) = matched.block.and_then(|position| concern.rules.get(position)) {
        return Verdict::Block { rule: rule.name.clone() };
    }
    let rule = matched.allow.and_then(|position| concern.rules.get(position));
    if rule.is_none() && concern.default == DefaultAction::Deny {
        return Verdict::DefaultDeny;
    }
    let permit = Permit::new(
        agent.clone(),
        head.destination.clone(),
        rule.map(|rule| rule.name.clone()),
        matched.allow_private,
        credentials(concern, head),
    );
    if matched.limits.is_empty() {
        Verdict::Allow(permit)
    } else {
        let limits = matched.limits.into_iter().map(|(_position, limit)| limit).collect();
        Verdict::Metered(Metered::new(permit, limits))
    }
}

/// Decides about a name: could any request to that host be permitted?
#[must_use]
pub fn decide_name(policy: &Policy, agent: &AgentName, host: &HostName) -> NameVerdict {
    let Some(concern) = policy.agent(agent) else { return NameVerdict::Denied };
    let mut permitted = concern.default == DefaultAction::Allow;
    let host = Host::Name(host.clone());
    for rule in
        concern.rules_by_host.positions(&host).filter_map(|position| concern.rules.get(position))
    {
        match rule.action {
            Action::Block if rule.is_unconditional() => return NameVerdict::Denied,
            Action::Block | Action::RateLimit(_) => {}
            Action::Allow { .. } => permitted = true,
        }
    }
    if permitted { NameVerdict::Permitted } else { NameVerdict::Denied }
}

/// The rules that match a request, by kind. Positions are those of the configuration; the first one gives the name.
#[derive(Default)]
struct Matched {
    block: Option<usize>,
    allow: Option<usize>,
    allow_private: bool,
    limits: Vec<(usize, Limit)>,
}

impl Matched {
    fn find(concern: &AgentPolicy, head: &RequestHead) -> Self {
        let mut matched = Self::default();
        for position in concern.rules_by_host.positions(&head.destination.host) {
            if let Some(rule) = concern.rules.get(position) {
                matched.weigh(position, rule, head);
            }
        }
        matched.limits.sort_by_key(|(position, _limit)| *position);
        matched
    }

    fn weigh(&mut self, position: usize, rule: &Rule, head: &RequestHead) {
        match &rule.action {
            Action::Block if rule.matches_any_reading(head) => first(&mut self.block, position),
            Action::Allow { allow_private } if rule.matches_every_reading(head) => {
                first(&mut self.allow, position);
                self.allow_private |= allow_private;
            }
            Action::RateLimit(budget) if rule.matches_any_reading(head) => {
                // Two host patterns of one rule may match one host; the rule still counts once.
                if self.limits.iter().all(|(known, _limit)| *known != position) {
                    let limit = Limit { rule: rule.name.clone(), budget: *budget };
                    self.limits.push((position, limit));
                }
            }
            Action::Block | Action::Allow { .. } | Action::RateLimit(_) => {}
        }
    }
}

fn first(best: &mut Option<usize>, position: usize) {
    *best = Some(best.map_or(position, |known| known.min(position)));
}

/// The credentials for a request: of those that would set the same thing, the one that names it most narrowly.
fn credentials(concern: &AgentPolicy, head: &RequestHead) -> Vec<CredentialName> {
    let mut chosen: Vec<(&Grant, GrantSpecificity)> = Vec::new();
    for grant in &concern.grants {
        let Some(specificity) = grant.specificity(head) else { continue };
        match chosen.iter_mut().find(|(rival, _)| same_surface(&rival.inject, &grant.inject)) {
            Some(rival) if rival.1 < specificity => *rival = (grant, specificity),
            Some(_narrower) => {}
            None => chosen.push((grant, specificity)),
        }
    }
    chosen.into_iter().map(|(grant, _specificity)| grant.name.clone()).collect()
}

/// What two credentials would both set in one request without one of them being the narrower, if there is such a
/// thing. The configuration refuses it, so that [`decide`] never has to choose between equals.
pub(crate) fn rivalry(a: &CredentialSpec, b: &CredentialSpec) -> Option<String> {
    let Injection::Header { name, .. } = &a.inject;
    let same_host = a.hosts.iter().any(|host| b.hosts.contains(host));
    let same_port = a.ports.iter().any(|port| b.ports.contains(port));
    let same_path = a.paths.iter().any(|mine| {
        b.paths
            .iter()
            .any(|other| mine.specificity() == other.specificity() && mine.overlaps(other))
    });
    (same_surface(&a.inject, &b.inject) && same_host && same_port && same_path)
        .then(|| format!("the header field `{name}`"))
}

/// Whether two injections would set the same thing.
fn same_surface(a: &Injection, b: &Injection) -> bool {
    let (Injection::Header { name: a, .. }, Injection::Header { name: b, .. }) = (a, b);
    a == b
}
