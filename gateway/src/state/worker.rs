//! The thread that owns the database. Charges that wait at the same time share a transaction, which costs one
//! write of the log for all of them.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::StateError;
use super::counters::Counters;
use crate::agent::AgentName;
use crate::policy::{ExhaustedLimit, Limit};

/// One request to be counted, and where the answer goes.
#[derive(Debug)]
pub(super) struct Charge {
    pub(super) agent: AgentName,
    pub(super) limits: Vec<Limit>,
    /// Since 1970.
    pub(super) now: Duration,
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// What a charge is answered with.
pub(super) type Outcome = Result<Result<(), ExhaustedLimit>, StateError>;

/// Serves charges until nobody can send any more.
pub(super) fn run(mut counters: Counters, mut queue: mpsc::Receiver<Charge>) {
    let mut batch = Vec::with_capacity(BATCH_MAX_CHARGES);
    let mut failing = false;
    while queue.blocking_recv_many(&mut batch, BATCH_MAX_CHARGES) > 0 {
        let (outcomes, mut failure) = match charge_all(&mut counters, &batch) {
            Ok(outcomes) => {
                if std::mem::take(&mut failing) {
                    tracing::info!("rate limits are counted again");
                }
                (outcomes, None)
            }
            Err(error) => {
                // Once, not for every request that is refused because of it.
                if !std::mem::replace(&mut failing, true) {
                    let error: &dyn std::error::Error = &error;
                    tracing::error!(
                        error,
                        "rate limits cannot be counted: limited requests are refused"
                    );
                }
                (Vec::new(), Some(error))
            }
        };
        let mut outcomes = outcomes.into_iter();
        for charge in batch.drain(..) {
            // Only the first caller gets the cause: nothing was committed, so that all of them must refuse.
            let outcome = match outcomes.next() {
                Some(outcome) => Ok(outcome),
                None => Err(failure.take().unwrap_or(StateError::RolledBack)),
            };
            if charge.reply.send(outcome).is_err() {
                tracing::debug!(agent = %charge.agent, "the request went away while it was counted");
            }
        }
    }
}

/// Counts all charges in one transaction. Each is all-or-nothing by itself; if the database fails, none counts.
fn charge_all(
    counters: &mut Counters,
    batch: &[Charge],
) -> Result<Vec<Result<(), ExhaustedLimit>>, StateError> {
    let mut open = counters.begin()?;
    let mut outcomes = Vec::with_capacity(batch.len());
    for charge in batch {
        outcomes.push(open.charge(&charge.agent, &charge.limits, charge.now)?);
    }
    if let Some(last) = batch.last() {
        open.sweep(last.now)?;
    }
    open.commit()?;
    Ok(outcomes)
}

/// Charges in one transaction: other processes wait no longer than these take.
const BATCH_MAX_CHARGES: usize = 64;
