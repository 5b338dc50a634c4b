//! The decision itself.

use std::time::SystemTime;

use super::compile::AgentPolicy;
use super::grant::credentials;
use super::rule::{Query, Rule};
use super::{
    Action, DefaultAction, Limit, Metered, NameVerdict, Permit, Policy, Standing, Verdict,
};
use crate::agent::AgentName;
use crate::http::RequestHead;
use crate::net::{Host, HostName};

/// Decides about one request that is made at `now`.
#[must_use]
pub fn decide(policy: &Policy, agent: &AgentName, head: &RequestHead, now: SystemTime) -> Verdict {
    let Some(concern) = policy.agent(agent) else { return Verdict::UnknownAgent };
    let query = Query::new(head, now);
    let matched = Matched::find(policy.enforced(concern, &query), &query);
    if let Some(rule) = matched.block {
        return Verdict::Block { rule: rule.name.clone() };
    }
    if !matched.permits(concern) {
        return Verdict::DefaultDeny;
    }
    let permit = Permit::new(
        agent.clone(),
        head.destination.clone(),
        matched.allow.map(|rule| rule.name.clone()),
        matched.allow_private,
        credentials(policy, concern, &query),
    );
    if matched.limits.is_empty() {
        Verdict::Allow(permit)
    } else {
        Verdict::Metered(Metered::new(permit, matched.limits()))
    }
}

/// Decides about a name at `now`: could any request to that host be permitted?
#[must_use]
pub fn decide_name(
    policy: &Policy,
    agent: &AgentName,
    host: &HostName,
    now: SystemTime,
) -> NameVerdict {
    let Some(concern) = policy.agent(agent) else { return NameVerdict::Denied };
    let mut permitted = concern.default == DefaultAction::Allow;
    let host = Host::Name(host.clone());
    for rule in policy.about(concern, &host) {
        match (&rule.action, rule.standing(now)) {
            (Action::Block, Standing::InForce | Standing::Unknown) if rule.is_unconditional() => {
                return NameVerdict::Denied;
            }
            (Action::Allow { .. }, Standing::InForce) => permitted = true,
            (Action::Allow { .. } | Action::Block | Action::RateLimit(_), _) => {}
        }
    }
    if permitted { NameVerdict::Permitted } else { NameVerdict::Denied }
}

/// The rules that match a request, by kind. Positions are those of the configuration; the first one gives the name.
#[derive(Default)]
pub(super) struct Matched<'a> {
    pub(super) block: Option<&'a Rule>,
    pub(super) allow: Option<&'a Rule>,
    allow_private: bool,
    pub(super) limits: Vec<(u32, Limit)>,
}

impl<'a> Matched<'a> {
    pub(super) fn find(rules: impl Iterator<Item = &'a Rule>, query: &Query<'_>) -> Self {
        let mut matched = Self::default();
        for rule in rules {
            matched.weigh(rule, query);
        }
        matched.limits.sort_by_key(|(position, _limit)| *position);
        matched
    }

    /// Looks at a rule, unless it could change nothing: another one of its kind may stand before it.
    fn weigh(&mut self, rule: &'a Rule, query: &Query<'_>) {
        let position = rule.position;
        let is_first = |best: Option<&Rule>| best.is_none_or(|known| position < known.position);
        match &rule.action {
            Action::Block => {
                if is_first(self.block) && rule.forbids(query) {
                    self.block = Some(rule);
                }
            }
            Action::Allow { allow_private } => {
                let opens = *allow_private && !self.allow_private;
                if (is_first(self.allow) || opens) && rule.permits(query) {
                    self.allow_private |= allow_private;
                    if is_first(self.allow) {
                        self.allow = Some(rule);
                    }
                }
            }
            Action::RateLimit(budget) => {
                // Two host patterns of one rule may match one host; the rule still counts once.
                let is_new = self.limits.iter().all(|(known, _limit)| *known != position);
                if is_new && rule.forbids(query) {
                    let limit = Limit { rule: rule.name.clone(), budget: *budget };
                    self.limits.push((position, limit));
                }
            }
        }
    }

    /// Whether a request may go on as far as these rules are concerned.
    pub(super) fn permits(&self, concern: &AgentPolicy) -> bool {
        let allowed = self.allow.is_some() || concern.default == DefaultAction::Allow;
        allowed && self.block.is_none()
    }

    pub(super) fn limits(self) -> Vec<Limit> {
        self.limits.into_iter().map(|(_position, limit)| limit).collect()
    }
}
