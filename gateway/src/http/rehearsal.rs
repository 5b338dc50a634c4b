//! What rules in shadow would have done to a request → its record. It never changes what happens to the request.

use std::error::Error;
use std::time::SystemTime;

use super::RequestHead;
use super::serve::Connection;
use crate::audit::{Decision, Reason, WouldHave as Recorded};
use crate::gateway::Rules;
use crate::policy::{Limit, RuleName, WouldHave, rehearse};

/// Asks the rules in shadow about a request that is permitted or not. Where they would have counted it, they count it.
pub(super) async fn would_have(
    connection: &Connection,
    rules: &Rules,
    head: &RequestHead,
    is_permitted: bool,
) -> Option<Recorded> {
    let agent = &connection.stages.agent.name;
    let (decision, reason, rule) = match rehearse(&rules.policy, agent, head, SystemTime::now())? {
        WouldHave::Allow { rule } => (Decision::Allow, Reason::AllowedByRule, rule),
        WouldHave::Block { rule } => (Decision::Block, Reason::BlockedByPolicy, rule),
        // What was refused counts against no limit, in shadow neither.
        WouldHave::Count { limits } if is_permitted => {
            let rule = exhausted(connection, &limits).await?;
            (Decision::Block, Reason::RateLimited, rule)
        }
        WouldHave::Count { .. } => return None,
    };
    Some(Recorded { decision, reason, rule: rule.as_str().to_owned() })
}

/// The limit in shadow that would have been used up.
async fn exhausted(connection: &Connection, limits: &[Limit]) -> Option<RuleName> {
    let stages = &connection.stages;
    let _turn = stages.quota.charges.acquire().await.ok();
    match stages.limits.charge(&stages.agent.name, limits, SystemTime::now()).await {
        Ok(outcome) => outcome.err().map(|exhausted| exhausted.limit.rule),
        Err(error) => {
            let error = &error as &dyn Error;
            tracing::warn!(error, "a limit in shadow cannot be counted; the request goes on");
            None
        }
    }
}
