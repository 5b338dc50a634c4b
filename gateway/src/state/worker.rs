//! The thread that owns the database. Charges that wait at the same time share a transaction, which costs one
//! write of the log for all of them; so does what was used meanwhile.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::StateError;
use super::account::{Account, Lease, Ledger, Pending};
use super::counters::{Counters, Open, Span};
use crate::policy::{ExhaustedLimit, Unit};

/// One request to be counted, and where the answer goes.
#[derive(Debug)]
pub(super) struct Charge {
    pub(super) accounts: Vec<Arc<Account>>,
    /// Since 1970.
    pub(super) now: Duration,
    pub(super) reply: oneshot::Sender<Outcome>,
}

/// What a charge is answered with.
pub(super) type Outcome = Result<Result<(), ExhaustedLimit>, StateError>;

/// The database with those who wait for it.
pub(super) struct Worker {
    counters: Counters,
    ledger: Arc<Ledger>,
    queue: mpsc::Receiver<Charge>,
}

/// What becomes true with the commit of a transaction.
#[derive(Default)]
struct Effects {
    leases: Vec<(Arc<Account>, Lease)>,
    left: Vec<(Arc<Account>, u64, Duration)>,
    /// What was taken out of accounts, to be put back if the transaction fails.
    written: Vec<(Arc<Account>, Pending)>,
    /// Requests taken out of leases that the process had before.
    taken: Vec<(Arc<Account>, Duration)>,
}

impl Worker {
    pub(super) fn new(
        counters: Counters,
        ledger: Arc<Ledger>,
        queue: mpsc::Receiver<Charge>,
    ) -> Self {
        Self { counters, ledger, queue }
    }

    /// Serves charges until nobody can send any more, and writes what is left to be written.
    pub(super) async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH_MAX_CHARGES);
        let mut next_look: Option<Instant> = None;
        loop {
            let look_at = next_look.unwrap_or_else(|| Instant::now() + WRITE_INTERVAL);
            tokio::select! {
                biased;
                () = sleep_until(look_at), if next_look.is_some() => {
                    next_look = self.look().then(|| Instant::now() + WRITE_INTERVAL);
                }
                received = self.queue.recv_many(&mut batch, BATCH_MAX_CHARGES) => {
                    if received == 0 {
                        break;
                    }
                    self.serve(&mut batch);
                    next_look = next_look.or_else(|| Some(Instant::now() + WRITE_INTERVAL));
                }
                () = self.ledger.wake.notified(), if next_look.is_none() => {
                    next_look = Some(Instant::now() + WRITE_INTERVAL);
                }
            }
        }
        // Twice, since what was used a moment ago is only given back at the second look.
        for _ in 0..2 {
            self.look();
        }
    }

    /// Answers all charges of the batch: each is all-or-nothing by itself; if the database fails, none counts.
    fn serve(&mut self, batch: &mut Vec<Charge>) {
        let result = self.transact(|open, effects| {
            let outcomes = batch.iter().map(|charge| charge_one(open, effects, charge));
            let outcomes = outcomes.collect::<Result<Vec<_>, _>>()?;
            if let Some(last) = batch.last() {
                open.sweep(last.now)?;
            }
            Ok(outcomes)
        });
        let (outcomes, mut failure): (Vec<_>, _) = match result {
            Ok(outcomes) => (outcomes, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let mut outcomes = outcomes.into_iter();
        for charge in batch.drain(..) {
            // Only the first caller gets the cause: nothing was committed, so that all of them must refuse.
            let outcome = match outcomes.next() {
                Some(outcome) => Ok(outcome),
                None => Err(failure.take().unwrap_or(StateError::RolledBack)),
            };
            if charge.reply.send(outcome).is_err() {
                tracing::debug!("a request went away while it was counted");
            }
        }
    }

    /// Writes what was used, and gives leases back that nobody uses. Whether there is more to come.
    fn look(&mut self) -> bool {
        let (idle, is_leasing) = self.ledger.take_idle_leases();
        if idle.is_empty() && !self.ledger.is_dirty() {
            self.ledger.forget_idle();
            return is_leasing;
        }
        // If it fails, what was leased stays counted though it was not used: that is the safe side.
        let result = self.transact(|open, _effects| {
            for (account, lease) in &idle {
                open.give_back(account, *lease)?;
            }
            Ok(())
        });
        // Once more, to try again or to forget what is no longer used.
        result.is_err() || is_leasing || !idle.is_empty()
    }

    /// One transaction: first everything that was used until now, then `work`, with the effects of its commit.
    fn transact<T>(
        &mut self,
        work: impl FnOnce(&mut Open<'_>, &mut Effects) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let mut effects = Effects::default();
        for account in self.ledger.take_dirty() {
            if let Some(pending) = account.take_pending() {
                effects.written.push((account, pending));
            }
        }
        let result = commit(&mut self.counters, &mut effects, work);
        effects.settle(&self.ledger, result.is_ok());
        let was_failing = self.ledger.set_failing(result.is_err());
        match &result {
            Ok(_) if was_failing => tracing::info!("rate limits are counted again"),
            Err(error) if !was_failing => {
                // Once, not for every request that is refused because of it.
                let error: &dyn std::error::Error = error;
                tracing::error!(
                    error,
                    "rate limits cannot be counted: limited requests are refused"
                );
            }
            Ok(_) | Err(_) => {}
        }
        result
    }
}

fn commit<T>(
    counters: &mut Counters,
    effects: &mut Effects,
    work: impl FnOnce(&mut Open<'_>, &mut Effects) -> Result<T, StateError>,
) -> Result<T, StateError> {
    let mut open = counters.begin()?;
    for (account, pending) in &effects.written {
        open.add(account, pending.amount, pending.since)?;
    }
    for (account, pending) in &effects.written {
        let left = open.standing(account, pending.since)?.left;
        effects.left.push((Arc::clone(account), left, pending.since));
    }
    let value = work(&mut open, effects)?;
    open.commit()?;
    Ok(value)
}

/// Counts one request against all of its limits, or against none.
fn charge_one(
    open: &Open<'_>,
    effects: &mut Effects,
    charge: &Charge,
) -> Result<Result<(), ExhaustedLimit>, StateError> {
    let now = charge.now;
    let mut exhausted: Option<ExhaustedLimit> = None;
    // What each limit has left in the database; none where the request is counted already.
    let mut standings = Vec::with_capacity(charge.accounts.len());
    let mut covered = Vec::new();
    for account in &charge.accounts {
        if effects.take(account, now) {
            covered.push(account);
            standings.push(None);
            continue;
        }
        let standing = open.standing(account, now)?;
        if standing.left == 0
            && exhausted.as_ref().is_none_or(|known| known.retry_after < standing.wait)
        {
            exhausted =
                Some(ExhaustedLimit { limit: account.limit.clone(), retry_after: standing.wait });
        }
        standings.push(Some(standing.left));
    }
    if let Some(exhausted) = exhausted {
        for account in covered {
            effects.give(account, now);
        }
        return Ok(Err(exhausted));
    }
    for (account, left) in charge.accounts.iter().zip(standings) {
        let Some(left) = left else { continue };
        if account.limit.budget.unit != Unit::Requests {
            effects.left.push((Arc::clone(account), left, now));
            continue;
        }
        let in_advance = account.lease_size(left.saturating_sub(1));
        open.add(account, in_advance.saturating_add(1), now)?;
        if in_advance > 0 {
            let span = Span::around(account.limit.budget.window, now)?;
            effects.leases.push((Arc::clone(account), Lease { span, left: in_advance }));
        }
    }
    Ok(Ok(()))
}

// === impl Effects ===

impl Effects {
    /// Takes one request that is counted already: before this transaction, or in it.
    fn take(&mut self, account: &Arc<Account>, now: Duration) -> bool {
        if let Some(lease) = self.lease_of(account, now).filter(|lease| lease.left > 0) {
            lease.left -= 1;
            return true;
        }
        let taken = account.take_leased(now);
        if taken {
            self.taken.push((Arc::clone(account), now));
        }
        taken
    }

    /// Gives back what [`Self::take`] took.
    fn give(&mut self, account: &Arc<Account>, now: Duration) {
        let before =
            self.taken.iter().rposition(|(other, at)| Arc::ptr_eq(other, account) && *at == now);
        if let Some(position) = before {
            self.taken.swap_remove(position);
            account.put_back(now);
        } else if let Some(lease) = self.lease_of(account, now) {
            lease.left += 1;
        }
    }

    fn lease_of(&mut self, account: &Arc<Account>, now: Duration) -> Option<&mut Lease> {
        let mut leases = self.leases.iter_mut();
        leases
            .find(|(other, lease)| Arc::ptr_eq(other, account) && lease.span.contains(now))
            .map(|(_account, lease)| lease)
    }

    /// Lets accounts know how the transaction ended.
    fn settle(self, ledger: &Ledger, is_committed: bool) {
        if is_committed {
            for (account, lease) in self.leases {
                account.grant(lease);
            }
            for (account, left, now) in self.left {
                account.set_left(left, now);
            }
            return;
        }
        for (account, pending) in self.written {
            ledger.put_back(&account, pending);
        }
        for (account, now) in self.taken {
            account.put_back(now);
        }
    }
}

/// Charges in one transaction: other processes wait no longer than these take.
const BATCH_MAX_CHARGES: usize = 64;

/// How long what was used, or leased and not used, may be unknown to the database, to other processes and after
/// SIGKILL. A lease that is no longer used goes back with the second look.
pub(super) const WRITE_INTERVAL: Duration = Duration::from_millis(200);
