//! The database: one row per agent, rule and window.

use std::path::Path;
use std::time::Duration;

use rusqlite::{
    Connection, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior, params,
};

use super::{StateError, directory};
use crate::agent::AgentName;
use crate::policy::{ExhaustedLimit, Limit, Window};

/// An open database.
#[derive(Debug)]
pub(super) struct Counters {
    connection: Connection,
    /// When rows of past windows are removed next, in seconds of Unix time.
    next_sweep: i64,
}

/// A transaction in which charges are counted.
#[derive(Debug)]
pub(super) struct Open<'c> {
    transaction: Transaction<'c>,
    next_sweep: &'c mut i64,
}

/// One window of a limit, in seconds of Unix time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: i64,
    pub(super) end: i64,
}

// === impl Counters ===

impl Counters {
    pub(super) fn open(state_dir: &Path) -> Result<Self, StateError> {
        let folder = directory::prepare(state_dir)?;
        // Two processes that turn a new database to WAL at the same time fail without waiting for each other: hence
        // one after the other.
        let _opening = directory::lock(&folder)?;
        // SQLite would make the file with the umask's mode; its side files take the mode of this one.
        let path = directory::make_file(&folder, DATABASE_FILE)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let failed = |doing| move |source| StateError::Database { doing, source };
        let connection = Connection::open_with_flags(&path, flags).map_err(failed("open"))?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed("set its timeout"))?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed("switch to WAL"))?;
        // Survives the end of any process. A power cut may lose the last moments, which then count less: no more
        // than that moment's requests, and the alternative is a disk flush for each request.
        connection
            .pragma_update(None, "synchronous", "NORMAL")
            .map_err(failed("set its durability"))?;
        bring_up_to_date(&connection)?;
        Ok(Self { connection, next_sweep: 0 })
    }

    /// Begins a transaction that no other process can interleave with.
    pub(super) fn begin(&mut self) -> Result<Open<'_>, StateError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|source| StateError::Database { doing: "begin", source })?;
        Ok(Open { transaction, next_sweep: &mut self.next_sweep })
    }
}

fn bring_up_to_date(connection: &Connection) -> Result<(), StateError> {
    let failed = |doing| move |source| StateError::Database { doing, source };
    let found: i64 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(failed("read its layout"))?;
    match found {
        LAYOUT => Ok(()),
        0 => connection.execute_batch(CREATE_LAYOUT).map_err(failed("make its tables")),
        _ => Err(StateError::NewerLayout { found, known: LAYOUT }),
    }
}

// === impl Open ===

impl Open<'_> {
    /// Counts one request against all limits, or against none.
    pub(super) fn charge(
        &self,
        agent: &AgentName,
        limits: &[Limit],
        now: Duration,
    ) -> Result<Result<(), ExhaustedLimit>, StateError> {
        let mut exhausted: Option<ExhaustedLimit> = None;
        for limit in limits {
            let span = Span::around(limit.window, now)?;
            if self.used(agent, limit, span)? < i64::from(limit.limit) {
                continue;
            }
            let retry_after = span.rest(now)?;
            if exhausted.as_ref().is_none_or(|known| known.retry_after < retry_after) {
                let Limit { rule, limit, window } = limit.clone();
                exhausted = Some(ExhaustedLimit { rule, limit, window, retry_after });
            }
        }
        if let Some(exhausted) = exhausted {
            return Ok(Err(exhausted));
        }
        for limit in limits {
            self.count(agent, limit, Span::around(limit.window, now)?)?;
        }
        Ok(Ok(()))
    }

    /// Removes the rows of windows that have ended, from time to time.
    pub(super) fn sweep(&mut self, now: Duration) -> Result<(), StateError> {
        let now = seconds(now)?;
        if now < *self.next_sweep && *self.next_sweep <= now.saturating_add(SWEEP_INTERVAL_SECONDS)
        {
            return Ok(());
        }
        self.transaction
            .execute(
                "DELETE FROM charges WHERE window_end <= ?1",
                params![now - SWEEP_MARGIN_SECONDS],
            )
            .map_err(|source| StateError::Database { doing: "remove past windows", source })?;
        *self.next_sweep = now.saturating_add(SWEEP_INTERVAL_SECONDS);
        Ok(())
    }

    pub(super) fn commit(self) -> Result<(), StateError> {
        self.transaction.commit().map_err(|source| StateError::Database { doing: "commit", source })
    }

    fn used(&self, agent: &AgentName, limit: &Limit, span: Span) -> Result<i64, StateError> {
        let failed = |source| StateError::Database { doing: "read a counter", source };
        let mut statement = self.transaction.prepare(READ_COUNTER).map_err(failed)?;
        let key = params![agent.as_str(), limit.rule.as_str(), span.start, span.end];
        Ok(statement.query_row(key, |row| row.get(0)).optional().map_err(failed)?.unwrap_or(0))
    }

    fn count(&self, agent: &AgentName, limit: &Limit, span: Span) -> Result<(), StateError> {
        let failed = |source| StateError::Database { doing: "write a counter", source };
        let mut statement = self.transaction.prepare(ADD_TO_COUNTER).map_err(failed)?;
        let key = params![agent.as_str(), limit.rule.as_str(), span.start, span.end];
        statement.execute(key).map_err(failed)?;
        Ok(())
    }
}

// === impl Span ===

impl Span {
    /// The window that `now` (since 1970) is in. Unix time has no leap seconds, so that its days are those of UTC.
    pub(super) fn around(window: Window, now: Duration) -> Result<Self, StateError> {
        let length = seconds(window.length())?;
        let now = seconds(now)?;
        let start = now - now.rem_euclid(length);
        let end = start.checked_add(length).ok_or(StateError::Clock)?;
        Ok(Self { start, end })
    }

    /// How long it still lasts; never zero, since `now` is in it.
    pub(super) fn rest(self, now: Duration) -> Result<Duration, StateError> {
        let end = u64::try_from(self.end).map_err(|_negative| StateError::Clock)?;
        Ok(Duration::from_secs(end).saturating_sub(now))
    }
}

fn seconds(duration: Duration) -> Result<i64, StateError> {
    i64::try_from(duration.as_secs()).map_err(|_too_large| StateError::Clock)
}

const DATABASE_FILE: &str = "state.db";

/// How long a charge waits for other processes. Their transactions take far less than a millisecond; whoever waits
/// this long would rather hear that something is wrong.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How often past windows are removed.
const SWEEP_INTERVAL_SECONDS: i64 = 60;

/// Past windows are kept a while, so that a clock that is set back a little finds its counters again.
const SWEEP_MARGIN_SECONDS: i64 = 60 * 60;

/// The layout of the tables below, in the database's `user_version`.
const LAYOUT: i64 = 1;

const CREATE_LAYOUT: &str = "
    BEGIN IMMEDIATE;
    CREATE TABLE charges (
        agent TEXT NOT NULL,
        rule TEXT NOT NULL,
        window_start INTEGER NOT NULL,
        window_end INTEGER NOT NULL,
        used INTEGER NOT NULL,
        PRIMARY KEY (agent, rule, window_start, window_end)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX charges_by_end ON charges (window_end);
    PRAGMA user_version = 1;
    COMMIT;
";

const READ_COUNTER: &str = "SELECT used FROM charges WHERE agent = ?1 AND rule = ?2 AND window_start = ?3 AND window_end = ?4";

const ADD_TO_COUNTER: &str = "
    INSERT INTO charges (agent, rule, window_start, window_end, used) VALUES (?1, ?2, ?3, ?4, 1)
    ON CONFLICT (agent, rule, window_start, window_end) DO UPDATE SET used = used + 1
";
