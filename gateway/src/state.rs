//! what must survive a restart: the counters of rate limits.
//!
//! An SQLite database in the state directory, shared by every process that runs under it. One thread of this process
//! talks to it, so that no request waits on the disk inside the async runtime. Whatever fails is an error, and the
//! caller refuses the request: a limit that cannot be counted is a limit that is used up.

mod counters;
mod directory;
mod worker;

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot};

use crate::agent::AgentName;
use crate::policy::{ExhaustedLimit, Limit};
use worker::Charge;

/// The counters of rate limits. Clones share one thread; it ends with the last of them.
#[derive(Debug, Clone)]
pub struct Limits {
    charges: mpsc::Sender<Charge>,
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
        std::thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || worker::run(counters, queue))
            .map_err(|source| StateError::Thread { source })?;
        Ok(Self { charges })
    }

    /// Counts one request of `agent` against every one of `limits`, or against none if one of them is used up (then
    /// the one is returned whose window ends last).
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
        let now =
            now.duration_since(SystemTime::UNIX_EPOCH).map_err(|_before| StateError::Clock)?;
        let (reply, outcome) = oneshot::channel();
        let charge = Charge { agent: agent.clone(), limits: limits.to_vec(), now, reply };
        self.charges.send(charge).await.map_err(|_closed| StateError::Stopped)?;
        outcome.await.map_err(|_dropped| StateError::Stopped)?
    }
}

/// Charges that wait for the database. Beyond it requests wait for their turn, in order.
const QUEUE_MAX_CHARGES: usize = 1024;

#[cfg(test)]
mod tests;
