//! The database: of fixed limits one row per agent, rule, unit and window, of sliding ones one per agent, rule, unit and
//! length of the window.

use std::path::Path;
use std::time::Duration;

use rusqlite::{
    Connection, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior, params,
};

use super::account::{Account, Lease};
use super::gcra::{self, Rate};
use super::{StateError, directory};
use crate::policy::{Algorithm, Window};

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

/// How a limit stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    /// How much is left, in units.
    pub(super) left: u64,
    /// If nothing is left: when there will be something.
    pub(super) wait: Duration,
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
    let (before, after) = match found {
        LAYOUT => return Ok(()),
        0 => ("", ""),
        1 => (SET_LAYOUT_1_ASIDE, TAKE_FROM_LAYOUT_1),
        _ => return Err(StateError::NewerLayout { found, known: LAYOUT }),
    };
    // All or nothing; an error ends the connection, and the transaction with it.
    let batch = format!("BEGIN IMMEDIATE; {before} {CREATE_TABLES} {after} COMMIT;");
    connection.execute_batch(&batch).map_err(failed("make its tables"))
}

// === impl Open ===

impl Open<'_> {
    /// How a limit stands at `now` (since 1970).
    pub(super) fn standing(
        &self,
        account: &Account,
        now: Duration,
    ) -> Result<Standing, StateError> {
        let budget = &account.limit.budget;
        match budget.algorithm {
            Algorithm::Fixed => {
                let span = Span::around(budget.window, now)?;
                let used = u64::try_from(self.used(account, span)?).unwrap_or(0);
                Ok(Standing { left: budget.limit.saturating_sub(used), wait: span.rest(now)? })
            }
            Algorithm::Sliding => {
                let (rate, paid_until) = (Rate::of(budget), self.paid_until(account)?);
                let now = gcra::nanoseconds(now)?;
                let wait = rate.wait(paid_until, now, 1);
                Ok(Standing { left: rate.left(paid_until, now), wait })
            }
        }
    }

    /// Uses up `amount` of a limit, whether there is that much left or not.
    pub(super) fn add(
        &self,
        account: &Account,
        amount: u64,
        now: Duration,
    ) -> Result<(), StateError> {
        let budget = &account.limit.budget;
        match budget.algorithm {
            Algorithm::Fixed => self.count(account, amount, Span::around(budget.window, now)?),
            Algorithm::Sliding => {
                let paid_until = self.paid_until(account)?;
                let now = gcra::nanoseconds(now)?;
                self.set_paid_until(account, Rate::of(budget).charged(paid_until, now, amount))
            }
        }
    }

    /// Takes back what was counted in advance and not used.
    pub(super) fn give_back(&self, account: &Account, lease: Lease) -> Result<(), StateError> {
        let failed = |source| StateError::Database { doing: "give requests back", source };
        let mut statement = self.transaction.prepare(TAKE_FROM_COUNTER).map_err(failed)?;
        let Account { agent, limit, .. } = account;
        let (rule, unit) = (limit.rule.as_str(), limit.budget.unit.as_str());
        let Span { start, end } = lease.span;
        statement
            .execute(params![agent.as_str(), rule, unit, start, end, amount_of(lease.left)])
            .map_err(failed)?;
        Ok(())
    }

    /// Removes the rows of windows that have ended, from time to time.
    pub(super) fn sweep(&mut self, now: Duration) -> Result<(), StateError> {
        let now = seconds(now)?;
        if now < *self.next_sweep && *self.next_sweep <= now.saturating_add(SWEEP_INTERVAL_SECONDS)
        {
            return Ok(());
        }
        let before = now - SWEEP_MARGIN_SECONDS;
        let failed = |source| StateError::Database { doing: "remove past windows", source };
        self.transaction
            .execute("DELETE FROM charges WHERE window_end <= ?1", params![before])
            .map_err(failed)?;
        let before = before.saturating_mul(NANOSECONDS_PER_SECOND);
        self.transaction
            .execute("DELETE FROM sliding WHERE paid_until <= ?1", params![before])
            .map_err(failed)?;
        *self.next_sweep = now.saturating_add(SWEEP_INTERVAL_SECONDS);
        Ok(())
    }

    pub(super) fn commit(self) -> Result<(), StateError> {
        self.transaction.commit().map_err(|source| StateError::Database { doing: "commit", source })
    }

    fn used(&self, account: &Account, span: Span) -> Result<i64, StateError> {
        let failed = |source| StateError::Database { doing: "read a counter", source };
        let mut statement = self.transaction.prepare(READ_COUNTER).map_err(failed)?;
        let Account { agent, limit, .. } = account;
        let (rule, unit) = (limit.rule.as_str(), limit.budget.unit.as_str());
        let key = params![agent.as_str(), rule, unit, span.start, span.end];
        Ok(statement.query_row(key, |row| row.get(0)).optional().map_err(failed)?.unwrap_or(0))
    }

    fn count(&self, account: &Account, amount: u64, span: Span) -> Result<(), StateError> {
        let failed = |source| StateError::Database { doing: "write a counter", source };
        let mut statement = self.transaction.prepare(ADD_TO_COUNTER).map_err(failed)?;
        let Account { agent, limit, .. } = account;
        let (rule, unit) = (limit.rule.as_str(), limit.budget.unit.as_str());
        let Span { start, end } = span;
        statement
            .execute(params![agent.as_str(), rule, unit, start, end, amount_of(amount)])
            .map_err(failed)?;
        Ok(())
    }

    fn paid_until(&self, account: &Account) -> Result<i64, StateError> {
        let failed = |source| StateError::Database { doing: "read a sliding limit", source };
        let mut statement = self.transaction.prepare(READ_SLIDING).map_err(failed)?;
        let Account { agent, limit, .. } = account;
        let (unit, window) = (limit.budget.unit.as_str(), limit.budget.window.as_str());
        let key = params![agent.as_str(), limit.rule.as_str(), unit, window];
        Ok(statement.query_row(key, |row| row.get(0)).optional().map_err(failed)?.unwrap_or(0))
    }

    fn set_paid_until(&self, account: &Account, paid_until: i64) -> Result<(), StateError> {
        let failed = |source| StateError::Database { doing: "write a sliding limit", source };
        let mut statement = self.transaction.prepare(WRITE_SLIDING).map_err(failed)?;
        let Account { agent, limit, .. } = account;
        let (unit, window) = (limit.budget.unit.as_str(), limit.budget.window.as_str());
        let row = params![agent.as_str(), limit.rule.as_str(), unit, window, paid_until];
        statement.execute(row).map_err(failed)?;
        Ok(())
    }
}

/// An amount as the database has it: sums of two stay in its range.
fn amount_of(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(AMOUNT_MAX).min(AMOUNT_MAX)
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

    /// Whether `now` (since 1970) is in it.
    pub(super) fn contains(self, now: Duration) -> bool {
        seconds(now).is_ok_and(|now| (self.start..self.end).contains(&now))
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

const NANOSECONDS_PER_SECOND: i64 = 1_000_000_000;

const AMOUNT_MAX: i64 = 1 << 61;

/// The layout of the tables below, in the database's `user_version`.
const LAYOUT: i64 = 2;

const CREATE_TABLES: &str = "
    CREATE TABLE charges (
        agent TEXT NOT NULL,
        rule TEXT NOT NULL,
        unit TEXT NOT NULL,
        window_start INTEGER NOT NULL,
        window_end INTEGER NOT NULL,
        used INTEGER NOT NULL,
        PRIMARY KEY (agent, rule, unit, window_start, window_end)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX charges_by_end ON charges (window_end);
    CREATE TABLE sliding (
        agent TEXT NOT NULL,
        rule TEXT NOT NULL,
        unit TEXT NOT NULL,
        window TEXT NOT NULL,
        paid_until INTEGER NOT NULL, -- nanoseconds of Unix time
        PRIMARY KEY (agent, rule, unit, window)
    ) STRICT, WITHOUT ROWID;
    PRAGMA user_version = 2;
";

/// Layout 1 knew requests in fixed windows only.
const SET_LAYOUT_1_ASIDE: &str =
    "ALTER TABLE charges RENAME TO charges_1; DROP INDEX charges_by_end;";

const TAKE_FROM_LAYOUT_1: &str = "
    INSERT INTO charges (agent, rule, unit, window_start, window_end, used)
    SELECT agent, rule, 'requests', window_start, window_end, used FROM charges_1;
    DROP TABLE charges_1;
";

const READ_COUNTER: &str = "
    SELECT used FROM charges
    WHERE agent = ?1 AND rule = ?2 AND unit = ?3 AND window_start = ?4 AND window_end = ?5
";

const ADD_TO_COUNTER: &str = "
    INSERT INTO charges (agent, rule, unit, window_start, window_end, used)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)
    ON CONFLICT (agent, rule, unit, window_start, window_end)
    DO UPDATE SET used = min(used + excluded.used, 1 << 61)
";

const TAKE_FROM_COUNTER: &str = "
    UPDATE charges SET used = max(used - ?6, 0)
    WHERE agent = ?1 AND rule = ?2 AND unit = ?3 AND window_start = ?4 AND window_end = ?5
";

const READ_SLIDING: &str =
    "SELECT paid_until FROM sliding WHERE agent = ?1 AND rule = ?2 AND unit = ?3 AND window = ?4";

const WRITE_SLIDING: &str = "
    INSERT INTO sliding (agent, rule, unit, window, paid_until) VALUES (?1, ?2, ?3, ?4, ?5)
    ON CONFLICT (agent, rule, unit, window) DO UPDATE SET paid_until = excluded.paid_until
";
