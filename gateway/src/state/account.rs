//! What this process knows of one limit of one agent between two looks into the database.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::counters::Span;
use crate::agent::AgentName;
use crate::policy::{Algorithm, ExhaustedLimit, Limit, Unit};

/// One limit of one agent.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) agent: AgentName,
    pub(super) limit: Limit,
    held: Mutex<Held>,
}

/// All accounts of this process, and how they get the attention of the thread that writes them.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    accounts: Mutex<HashMap<AgentName, HashMap<Limit, Arc<Account>>>>,
    /// Accounts with something that the database does not know.
    dirty: Mutex<Vec<Arc<Account>>>,
    /// Rings when there is the first of them.
    pub(super) wake: Notify,
    /// Whether the database failed when it was asked last.
    failing: AtomicBool,
}

#[derive(Debug, Default)]
struct Held {
    /// Requests that the database has counted already and that have not come yet.
    lease: Option<Lease>,
    /// Charges that went to the database since the last look at leases.
    charges: u32,
    /// Whether the lease was used since then.
    lease_used: bool,
    /// Bytes or tokens that were used and are not in the database.
    pending: u64,
    /// When the first of them were used.
    pending_since: Duration,
    /// Bytes or tokens that are left, as far as this process knows.
    left: u64,
    /// The window in which they are left, for fixed ones.
    left_in: Option<Span>,
    is_dirty: bool,
}

/// A slice of a fixed limit's requests, counted in advance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) span: Span,
    pub(super) left: u64,
}

/// What has to be written for one account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) amount: u64,
    pub(super) since: Duration,
}

// === impl Ledger ===

impl Ledger {
    /// The accounts of `limits`, in that order.
    pub(super) fn accounts(&self, agent: &AgentName, limits: &[Limit]) -> Vec<Arc<Account>> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if !accounts.contains_key(agent) {
            accounts.insert(agent.clone(), HashMap::new());
        }
        let Some(of_agent) = accounts.get_mut(agent) else { return Vec::new() };
        let mut found = Vec::with_capacity(limits.len());
        for limit in limits {
            if let Some(account) = of_agent.get(limit) {
                found.push(Arc::clone(account));
                continue;
            }
            let held = Mutex::default();
            let account = Arc::new(Account { agent: agent.clone(), limit: limit.clone(), held });
            of_agent.insert(limit.clone(), Arc::clone(&account));
            found.push(account);
        }
        found
    }

    /// Marks that `account` has something to be written, and wakes the writer for the first one.
    fn mark(&self, account: &Arc<Account>) {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        dirty.push(Arc::clone(account));
        if dirty.len() == 1 {
            self.wake.notify_one();
        }
    }

    /// The accounts that have something to be written; they are no longer marked.
    pub(super) fn take_dirty(&self) -> Vec<Arc<Account>> {
        let dirty = std::mem::take(&mut *self.dirty.lock().unwrap_or_else(PoisonError::into_inner));
        for account in &dirty {
            account.held().is_dirty = false;
        }
        dirty
    }

    /// Whether something waits to be written.
    pub(super) fn is_dirty(&self) -> bool {
        !self.dirty.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Takes the leases that nobody has used since the last look, and looks at how busy accounts are anew. Whether
    /// there are leases left.
    pub(super) fn take_idle_leases(&self) -> (Vec<(Arc<Account>, Lease)>, bool) {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut idle, mut is_leasing) = (Vec::new(), false);
        for account in accounts.values().flat_map(HashMap::values) {
            if let Some(lease) = account.take_idle_lease() {
                idle.push((Arc::clone(account), lease));
            }
            is_leasing |= account.held().lease.is_some();
        }
        (idle, is_leasing)
    }

    /// How many accounts there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        let accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.values().map(HashMap::len).sum()
    }

    /// Forgets the accounts that hold nothing and that nobody uses: those of rules that are no more.
    pub(super) fn forget_idle(&self) {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        for of_agent in accounts.values_mut() {
            of_agent.retain(|_limit, account| {
                Arc::strong_count(account) > 1 || account.held().is_of_use()
            });
        }
        accounts.retain(|_agent, of_agent| !of_agent.is_empty());
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }

    /// Says how the database did; returns how it did before.
    pub(super) fn set_failing(&self, failing: bool) -> bool {
        self.failing.swap(failing, Ordering::AcqRel)
    }

    /// Takes one request from the lease of each account, or from none.
    pub(super) fn take_leased(accounts: &[Arc<Account>], now: Duration) -> bool {
        for (taken, account) in accounts.iter().enumerate() {
            if !account.take_leased(now) {
                for account in accounts.iter().take(taken) {
                    account.put_back(now);
                }
                return false;
            }
        }
        true
    }

    /// Uses up `amount` of a limit in bytes or tokens. False if there was not that much left: it is used all the same.
    pub(super) fn spend(&self, account: &Arc<Account>, amount: u64, now: Duration) -> bool {
        if amount == 0 {
            return true;
        }
        let mut held = account.held();
        if held.pending == 0 {
            held.pending_since = now;
        }
        held.pending = held.pending.saturating_add(amount);
        if let Some(span) = held.left_in
            && !span.contains(now)
        {
            // A new window, of which nobody has told anything yet.
            held.left_in = Span::around(account.limit.budget.window, now).ok();
            held.left = account.limit.budget.limit;
        }
        let suffices = held.left >= amount;
        held.left = held.left.saturating_sub(amount);
        if !std::mem::replace(&mut held.is_dirty, true) {
            drop(held);
            self.mark(account);
        }
        suffices
    }

    /// Puts back what could not be written.
    pub(super) fn put_back(&self, account: &Arc<Account>, pending: Pending) {
        let mut held = account.held();
        if held.pending == 0 || pending.since < held.pending_since {
            held.pending_since = pending.since;
        }
        held.pending = held.pending.saturating_add(pending.amount);
        if !std::mem::replace(&mut held.is_dirty, true) {
            drop(held);
            self.mark(account);
        }
    }
}

// === impl Account ===

impl Account {
    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only requests in fixed windows are counted in advance: a unit of a sliding limit that is given back later is
    /// not worth what it was, and bytes and tokens are counted afterwards.
    fn may_be_leased(&self) -> bool {
        let budget = &self.limit.budget;
        budget.unit == Unit::Requests && budget.algorithm == Algorithm::Fixed
    }

    /// Takes one request that is counted already.
    pub(super) fn take_leased(&self, now: Duration) -> bool {
        if !self.may_be_leased() {
            return false;
        }
        let mut held = self.held();
        let Some(lease) = held.lease.as_mut() else { return false };
        if lease.left == 0 || !lease.span.contains(now) {
            return false;
        }
        lease.left -= 1;
        held.lease_used = true;
        true
    }

    /// Gives one request back that [`Self::take_leased`] took at the same `now`.
    pub(super) fn put_back(&self, now: Duration) {
        let mut held = self.held();
        if let Some(lease) = held.lease.as_mut()
            && lease.span.contains(now)
        {
            lease.left += 1;
        }
    }

    /// How many requests more to count in advance when one is counted and `left` remain for everybody.
    pub(super) fn lease_size(&self, left: u64) -> u64 {
        if !self.may_be_leased() {
            return 0;
        }
        let mut held = self.held();
        held.charges = held.charges.saturating_add(1);
        if held.charges < BUSY_CHARGES || left < LEASE_LEFT_MIN { 0 } else { LEASE }
    }

    /// Adds a lease that is in the database. What is left of one of another window is lost, with that window.
    pub(super) fn grant(&self, lease: Lease) {
        let mut held = self.held();
        let left = held.lease.filter(|known| known.span == lease.span).map_or(0, |l| l.left);
        held.lease = Some(Lease { left: left.saturating_add(lease.left), ..lease });
        held.lease_used = true;
    }

    /// Takes the lease away if it was not used since the last call, for it to be given back.
    fn take_idle_lease(&self) -> Option<Lease> {
        let mut held = self.held();
        held.charges = 0;
        if std::mem::take(&mut held.lease_used) {
            return None;
        }
        held.lease.take()
    }

    /// Takes what has to be written.
    pub(super) fn take_pending(&self) -> Option<Pending> {
        let mut held = self.held();
        let amount = std::mem::take(&mut held.pending);
        (amount > 0).then_some(Pending { amount, since: held.pending_since })
    }

    /// The limit, used up at `now`, as far as this process knows.
    pub(super) fn exhausted(&self, now: Duration) -> ExhaustedLimit {
        let window = self.limit.budget.window;
        let rest = Span::around(window, now).and_then(|span| span.rest(now));
        let retry_after = match self.limit.budget.algorithm {
            Algorithm::Fixed => rest.unwrap_or_else(|_error| window.length()),
            // Something comes back soon; the database says when to whoever asks.
            Algorithm::Sliding => Duration::from_secs(1),
        };
        ExhaustedLimit { limit: self.limit.clone(), retry_after }
    }

    /// What the database says is left, without what has been used since.
    pub(super) fn set_left(&self, left: u64, now: Duration) {
        let mut held = self.held();
        held.left = left.saturating_sub(held.pending);
        held.left_in = match self.limit.budget.algorithm {
            Algorithm::Fixed => Span::around(self.limit.budget.window, now).ok(),
            Algorithm::Sliding => None,
        };
    }
}

// === impl Held ===

impl Held {
    fn is_of_use(&self) -> bool {
        self.lease.is_some() || self.pending > 0 || self.charges > 0 || self.is_dirty
    }
}

/// Charges between two looks from which on an account is busy enough to count in advance.
const BUSY_CHARGES: u32 = 8;

/// What must be left for everybody beyond it: the last of a limit, and small limits, are counted one by one, so that
/// no process is refused what another one holds and does not use.
const LEASE_LEFT_MIN: u64 = 1024;

/// Requests counted in advance at a time. After SIGKILL so many may stay counted that never came.
const LEASE: u64 = 64;
