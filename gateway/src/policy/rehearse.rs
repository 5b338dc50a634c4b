//! What rules would do that do nothing now: those in shadow, and those that are not in force.

use std::time::SystemTime;

use super::decide::Matched;
use super::rule::Query;
use super::{Action, Limit, Policy, RuleName, Standing};
use crate::agent::AgentName;
use crate::http::RequestHead;

/// What rules in shadow would change about a request if they were enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WouldHave {
    /// It is refused, and would go on.
    Allow {
        /// The first such rule of the configuration.
        rule: RuleName,
    },
    /// It may go on, and would be refused.
    Block {
        /// The first such rule of the configuration.
        rule: RuleName,
    },
    /// It may go on, and would count against these limits too. Never empty.
    Count {
        /// What to charge in order to know whether it would be refused.
        limits: Vec<Limit>,
    },
}

/// What rules in shadow would change about the request that [`decide`] decides about; none where they would not.
#[must_use]
pub fn rehearse(
    policy: &Policy,
    agent: &AgentName,
    head: &RequestHead,
    now: SystemTime,
) -> Option<WouldHave> {
    let concern = policy.agent(agent).filter(|concern| concern.has_shadow())?;
    let query = Query::new(head, now);
    let shadow = Matched::find(policy.shadow(concern, &query), &query);
    let enforced = Matched::find(policy.enforced(concern, &query), &query);
    match (enforced.permits(concern), shadow.block, shadow.allow) {
        (true, Some(rule), _) => Some(WouldHave::Block { rule: rule.name.clone() }),
        (true, None, _) if !shadow.limits.is_empty() => {
            Some(WouldHave::Count { limits: shadow.limits() })
        }
        (false, None, Some(rule)) if enforced.block.is_none() => {
            Some(WouldHave::Allow { rule: rule.name.clone() })
        }
        (true | false, _, _) => None,
    }
}

/// The rules that would take part in the decision about a request if they were in force at `now`, with why they are
/// not; in the order of the configuration.
#[must_use]
pub fn dormant(
    policy: &Policy,
    agent: &AgentName,
    head: &RequestHead,
    now: SystemTime,
) -> Vec<(RuleName, Standing)> {
    let Some(concern) = policy.agent(agent) else { return Vec::new() };
    let query = Query::new(head, now);
    let mut found: Vec<_> = policy
        .enforced(concern, &query)
        .filter(|rule| match rule.action {
            Action::Allow { .. } => rule.matches_every_reading(&query),
            Action::Block | Action::RateLimit(_) => rule.matches_any_reading(&query),
        })
        .filter(|rule| rule.standing(now) != Standing::InForce)
        .collect();
    found.sort_by_key(|rule| rule.position);
    found.dedup_by_key(|rule| rule.position);
    found.into_iter().map(|rule| (rule.name.clone(), rule.standing(now))).collect()
}
