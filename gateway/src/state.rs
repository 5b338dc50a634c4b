//! what must survive a restart: the counters of rate limits.
//!
//! An SQLite database in the state directory, shared by every process that runs under it. One thread of this process
//! talks to it, so that no request waits on the disk inside the async runtime. Whatever fails is an error, and the
//! caller refuses the request: a limit that cannot be counted is a limit that is used up.
//!
//! What holds, across all processes under one state directory:
//!
//! - **Requests are counted before they are forwarded and never overshoot**, whatever dies when. Of busy fixed limits a
//!   process counts a slice in advance and hands it out from memory; the last of a limit goes one by one. So SIGKILL
//!   forgets nothing, and may leave a slice counted that was not used; and while a process holds a slice, another
//!   one may be refused so many requests early.
//! - **Bytes and tokens are charged as they become known**, in memory at once and in the database within 200 ms, and a
//!   request is admitted while something is left there. Bytes overshoot by no more than what the *other*
//!   processes move in 200 ms; tokens by what the requests in flight use. SIGKILL forgets the last 200 ms of what was
//!   known.
mod account;
mod counters;
mod directory;
mod gcra;
mod worker;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};

use crate::agent::AgentName;
use crate::policy::{ExhaustedLimit, Limit, Unit};
use account::{Account, Ledger};
use worker::{Charge, Worker};

/// The counters of rate limits. Clones share one thread; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Limits(Arc<Counting>);

/// What one request uses up of a limit in bytes or tokens.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    limits: Limits,
    account: Arc<Account>,
}

/// A meter that lets nothing more through.
#[derive(Debug)]
pub(crate) enum Spent {
    /// There was not that much left.
    Exhausted(ExhaustedLimit),
    /// Nobody knows what is left.
    Unknown,
}

/// The thread and its ways in.
#[derive(Debug)]
struct Counting {
    ledger: Arc<Ledger>,
    /// None when it ends.
    charges: Option<mpsc::Sender<Charge>>,
    thread: Option<JoinHandle<()>>,
}

/// The state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The directory cannot be made or looked at.
    #[error("the state directory {} cannot be used", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others than the owner could replace the files in it.
    #[error("the state directory {} is writable by others (mode {mode:o}): chmod 700 it", path.display())]
    DirectoryOpen {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file of the database cannot be made or opened.
    #[error("the state file {} cannot be used", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The database failed.
    #[error("the state database failed to {doing}")]
    Database {
        /// What was asked of it.
        doing: &'static str,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// A newer version of the program has written the database.
    #[error(
        "the state database has layout {found}, this program knows {known}: use the newer program"
    )]
    NewerLayout {
        /// The layout of the file.
        found: i64,
        /// The newest layout that is known here.
        known: i64,
    },
    /// The charge that shared a transaction with this one failed, and this one with it.
    #[error("the state database failed; the charge was rolled back")]
    RolledBack,
    /// The time is before 1970 or far beyond it.
    #[error("the system's clock is out of range")]
    Clock,
    /// No thread could be started.
    #[error("no thread for the state database")]
    Thread {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread has ended.
    #[error("the thread of the state database has ended")]
    Stopped,
}

// === impl Limits ===

impl Limits {
    /// Opens the counters under `state_dir`; makes the directory and the database where there are none.
    ///
    /// # Errors
    /// When they cannot be used, or when others than the owner could change them.
    pub fn open(state_dir: &Path) -> Result<Self, StateError> {
        let counters = counters::Counters::open(state_dir)?;
        let (charges, queue) = mpsc::channel(QUEUE_MAX_CHARGES);
        let ledger = Arc::new(Ledger::default());
        let worker = Worker::new(counters, Arc::clone(&ledger), queue);
        let failed = |source| StateError::Thread { source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(failed)?;
        let thread = std::thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || runtime.block_on(worker.run()))
            .map_err(failed)?;
        Ok(Self(Arc::new(Counting { ledger, charges: Some(charges), thread: Some(thread) })))
    }

    /// Counts one request of `agent` against every one of `limits`, or against none if one of them is used up (then
    /// the one is returned that frees something last). Limits in bytes and tokens are looked at only: what is used
    /// of them goes through a [`Meter`].
    ///
    /// A charge goes through even if the caller stops waiting for it.
    ///
    /// # Errors
    /// When it could not be counted. The request must be refused then.
    pub async fn charge(
        &self,
        agent: &AgentName,
        limits: &[Limit],
        now: SystemTime,
    ) -> Result<Result<(), ExhaustedLimit>, StateError> {
        let now = since_1970(now)?;
        let accounts = self.0.ledger.accounts(agent, limits);
        if !self.0.ledger.is_failing() && Ledger::take_leased(&accounts, now) {
            return Ok(Ok(()));
        }
        let (reply, outcome) = oneshot::channel();
        let charge = Charge { accounts, now, reply };
        let charges = self.0.charges.as_ref().ok_or(StateError::Stopped)?;
        charges.send(charge).await.map_err(|_closed| StateError::Stopped)?;
        outcome.await.map_err(|_dropped| StateError::Stopped)?
    }

    /// Meters for those of `limits` that are in `unit`, for one request that has been charged.
    pub(crate) fn meters(&self, agent: &AgentName, limits: &[Limit], unit: Unit) -> Vec<Meter> {
        let metered: Vec<_> =
            limits.iter().filter(|limit| limit.budget.unit == unit).cloned().collect();
        let accounts = self.0.ledger.accounts(agent, &metered).into_iter();
        accounts.map(|account| Meter { limits: self.clone(), account }).collect()
    }
}

impl Drop for Counting {
    /// Waits until everything that was used is written.
    fn drop(&mut self) {
        drop(self.charges.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the state database panicked");
        }
    }
}

// === impl Meter ===

impl Meter {
    /// Uses up `amount`, whether there is that much left or not.
    ///
    /// # Errors
    /// When there was less left, or nobody knows.
    pub(crate) fn spend(&self, amount: u64, now: SystemTime) -> Result<(), Spent> {
        let now = since_1970(now).map_err(|_error| Spent::Unknown)?;
        let ledger = &self.limits.0.ledger;
        let suffices = ledger.spend(&self.account, amount, now);
        if ledger.is_failing() {
            return Err(Spent::Unknown);
        }
        if suffices { Ok(()) } else { Err(Spent::Exhausted(self.account.exhausted(now))) }
    }
}

fn since_1970(now: SystemTime) -> Result<Duration, StateError> {
    now.duration_since(SystemTime::UNIX_EPOCH).map_err(|_before| StateError::Clock)
}

/// Charges that wait for the database. Beyond it requests wait for their turn, in order.
const QUEUE_MAX_CHARGES: usize = 1024;

#[cfg(test)]
mod tests;
