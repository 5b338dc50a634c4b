use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::counters::Span;
use super::*;
use crate::policy::{Algorithm, Budget, RuleName, Window};

fn agent(name: &str) -> AgentName {
    AgentName::parse(name).unwrap()
}

fn limit(rule: &str, limit: u64, window: Window) -> Limit {
    let budget = Budget { limit, unit: Unit::Requests, window, algorithm: Algorithm::Fixed };
    Limit { rule: RuleName::parse(rule).unwrap(), budget }
}

fn sliding(rule: &str, number: u64, window: Window) -> Limit {
    let mut limit = limit(rule, number, window);
    limit.budget.algorithm = Algorithm::Sliding;
    limit
}

fn counted_in(unit: Unit, rule: &str, number: u64) -> Limit {
    let mut limit = limit(rule, number, Window::Day);
    limit.budget.unit = unit;
    limit
}

/// One meter of one limit that was charged.
fn meter(limits: &Limits, limit: &Limit) -> Meter {
    let mut meters = limits.meters(&agent("a"), std::slice::from_ref(limit), limit.budget.unit);
    meters.remove(0)
}

/// Waits until the database has what `condition` looks for.
async fn wait_for(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(30), waiting).await.is_err() {
        panic!("waited for: {what}");
    }
}

/// What the database has counted of all limits together.
fn used(folder: &Path) -> u64 {
    let database = rusqlite::Connection::open(folder.join("state.db")).unwrap();
    database.busy_timeout(Duration::from_secs(30)).unwrap();
    let query = "SELECT coalesce(sum(used), 0) FROM charges";
    u64::try_from(database.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap()).unwrap()
}

/// 2026-01-01 00:00:00 UTC, plus `seconds`.
fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + seconds)
}

#[tokio::test]
async fn a_limit_lets_through_exactly_as_many_requests_as_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::open(folder.path()).unwrap();
    let three = [limit("three", 3, Window::Minute)];
    for _ in 0..3 {
        assert_eq!(limits.charge(&agent("a"), &three, at(10)).await.unwrap(), Ok(()));
    }
    let exhausted = limits.charge(&agent("a"), &three, at(10)).await.unwrap().unwrap_err();
    assert_eq!(exhausted.limit.rule.as_str(), "three");
    assert_eq!(exhausted.limit, three[0]);
    assert_eq!(exhausted.retry_after, Duration::from_secs(50));
    assert_eq!(
        limits.charge(&agent("b"), &three, at(10)).await.unwrap(),
        Ok(()),
        "each agent has its own counter"
    );
    assert_eq!(
        limits.charge(&agent("a"), &three, at(60)).await.unwrap(),
        Ok(()),
        "the next minute begins anew"
    );
    assert!(
        limits.charge(&agent("a"), &three, at(59)).await.unwrap().is_err(),
        "a clock set back frees nothing"
    );
}

#[tokio::test]
async fn a_refused_request_counts_against_no_limit() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::open(folder.path()).unwrap();
    let (wide, narrow) = (limit("wide", 3, Window::Day), limit("narrow", 1, Window::Minute));
    let both = [wide.clone(), narrow];
    assert_eq!(limits.charge(&agent("a"), &both, at(0)).await.unwrap(), Ok(()));
    for _ in 0..10 {
        let exhausted = limits.charge(&agent("a"), &both, at(1)).await.unwrap().unwrap_err();
        assert_eq!(exhausted.limit.rule.as_str(), "narrow");
    }
    let only_wide = [wide];
    assert_eq!(limits.charge(&agent("a"), &only_wide, at(2)).await.unwrap(), Ok(()));
    assert_eq!(limits.charge(&agent("a"), &only_wide, at(2)).await.unwrap(), Ok(()));
    assert!(limits.charge(&agent("a"), &only_wide, at(2)).await.unwrap().is_err());
}

#[tokio::test]
async fn of_several_used_up_limits_the_one_that_ends_last_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::open(folder.path()).unwrap();
    let both = [limit("minute", 1, Window::Minute), limit("hour", 1, Window::Hour)];
    assert_eq!(limits.charge(&agent("a"), &both, at(0)).await.unwrap(), Ok(()));
    let exhausted = limits.charge(&agent("a"), &both, at(1)).await.unwrap().unwrap_err();
    assert_eq!(
        (exhausted.limit.rule.as_str(), exhausted.retry_after),
        ("hour", Duration::from_secs(3599))
    );
}

#[tokio::test]
async fn counters_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let one = [limit("one", 1, Window::Day)];
    assert_eq!(
        Limits::open(folder.path()).unwrap().charge(&agent("a"), &one, at(0)).await.unwrap(),
        Ok(())
    );
    assert!(
        Limits::open(folder.path())
            .unwrap()
            .charge(&agent("a"), &one, at(1))
            .await
            .unwrap()
            .is_err()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hundred_tasks_over_two_handles_never_overshoot() {
    let folder = tempfile::tempdir().unwrap();
    let handles = [Limits::open(folder.path()).unwrap(), Limits::open(folder.path()).unwrap()];
    let limits: Arc<[Limit]> =
        Arc::from([limit("hundred", 100, Window::Day), limit("more", 150, Window::Hour)]);
    let granted = Arc::new(AtomicU32::new(0));
    let tasks: Vec<_> = (0..200)
        .map(|task| {
            let handle = handles[task % 2].clone();
            let (limits, granted) = (Arc::clone(&limits), Arc::clone(&granted));
            tokio::spawn(async move {
                if handle.charge(&agent("a"), &limits, at(5)).await.unwrap().is_ok() {
                    granted.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(granted.load(Ordering::SeqCst), 100);
    let fifty_left = [limit("more", 150, Window::Hour)];
    for _ in 0..50 {
        assert_eq!(handles[0].charge(&agent("a"), &fifty_left, at(6)).await.unwrap(), Ok(()));
    }
    assert!(handles[1].charge(&agent("a"), &fifty_left, at(6)).await.unwrap().is_err());
}

/// Not a test of its own: what a child of the next test does, in a process of its own.
#[tokio::test]
async fn child_process_charges() {
    let Some(folder) = std::env::var_os(CHILD_FOLDER) else { return };
    let limits = Limits::open(Path::new(&folder)).unwrap();
    let fifty = [limit("fifty", 50, Window::Day)];
    let mut granted = 0;
    for _ in 0..30 {
        // Other handles of the same process come and go.
        drop(Limits::open(Path::new(&folder)).unwrap());
        granted += u32::from(limits.charge(&agent("a"), &fifty, at(5)).await.unwrap().is_ok());
    }
    println!("granted={granted};");
}

const CHILD_FOLDER: &str = "TOLLGATE_TEST_STATE_DIR";

#[test]
fn several_processes_share_one_counter() {
    let folder = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..3)
        .map(|_| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "state::tests::child_process_charges", "--nocapture"])
                .env(CHILD_FOLDER, folder.path())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let granted = children.into_iter().map(|child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let (_, rest) = text.split_once("granted=").unwrap();
        rest.split_once(';').unwrap().0.parse::<u32>().unwrap()
    });
    assert_eq!(granted.sum::<u32>(), 50);
}

#[test]
fn many_can_open_a_new_directory_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new");
    std::thread::scope(|scope| {
        let openers: Vec<_> =
            (0..8).map(|_| scope.spawn(|| Limits::open(&path).map(drop))).collect();
        for opener in openers {
            opener.join().unwrap().unwrap();
        }
    });
}

#[tokio::test]
async fn past_windows_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::open(folder.path()).unwrap();
    let minute = [limit("minute", 5, Window::Minute)];
    for hour in 0..5 {
        assert_eq!(limits.charge(&agent("a"), &minute, at(hour * 3600)).await.unwrap(), Ok(()));
    }
    let database = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    let rows: i64 =
        database.query_row("SELECT count(*) FROM charges", [], |row| row.get(0)).unwrap();
    assert!(rows <= 2, "{rows} rows are left");
}

#[tokio::test]
async fn a_database_that_fails_is_an_error_for_every_waiting_charge() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::open(folder.path()).unwrap();
    let one = [limit("one", 10, Window::Day)];
    assert_eq!(limits.charge(&agent("a"), &one, at(0)).await.unwrap(), Ok(()));
    let database = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    database.execute_batch("DROP TABLE charges").unwrap();
    let name = agent("a");
    let outcomes =
        futures_util::future::join_all((0..5).map(|_| limits.charge(&name, &one, at(0)))).await;
    assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
}

#[tokio::test]
async fn a_time_before_1970_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::open(folder.path()).unwrap();
    let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
    let outcome = limits.charge(&agent("a"), &[limit("one", 1, Window::Day)], before).await;
    assert!(matches!(outcome, Err(StateError::Clock)));
}

#[test]
fn what_is_made_is_closed_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let limits = Limits::open(&path).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for file in path.read_dir().unwrap() {
        let file = file.unwrap().path();
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    drop(limits);
    std::fs::set_permissions(path.join("state.db"), std::fs::Permissions::from_mode(0o644))
        .unwrap();
    Limits::open(&path).unwrap();
    assert_eq!(mode(&path.join("state.db")), 0o600);
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(
        Limits::open(folder.path()),
        Err(StateError::DirectoryOpen { mode: 0o777, .. })
    ));
}

#[test]
fn a_link_in_place_of_the_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = folder.path().join("elsewhere");
    std::fs::write(&elsewhere, "").unwrap();
    let path = folder.path().join("state");
    std::fs::create_dir(&path).unwrap();
    symlink(&elsewhere, path.join("state.db")).unwrap();
    assert!(matches!(Limits::open(&path), Err(StateError::File { .. })));
}

#[test]
fn a_newer_layout_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(Limits::open(folder.path()).unwrap());
    let database = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    database.pragma_update(None, "user_version", 99).unwrap();
    drop(database);
    assert!(matches!(Limits::open(folder.path()), Err(StateError::NewerLayout { found: 99, .. })));
}

#[tokio::test]
async fn the_edge_between_two_windows_is_the_whole_minute_of_the_clock() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::open(folder.path()).unwrap();
    let one = [limit("one", 1, Window::Minute)];
    let last = at(60) - Duration::from_nanos(1);
    assert_eq!(limits.charge(&agent("a"), &one, last).await.unwrap(), Ok(()));
    let exhausted = limits.charge(&agent("a"), &one, last).await.unwrap().unwrap_err();
    assert_eq!(exhausted.retry_after, Duration::from_nanos(1));
    assert_eq!(limits.charge(&agent("a"), &one, at(60)).await.unwrap(), Ok(()));
    assert!(limits.charge(&agent("a"), &one, at(60)).await.unwrap().is_err());
}

#[tokio::test]
async fn a_sliding_limit_has_no_edge_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::open(folder.path()).unwrap();
    let six = [sliding("six", 6, Window::Minute)];
    for _ in 0..6 {
        assert_eq!(limits.charge(&agent("a"), &six, at(59)).await.unwrap(), Ok(()));
    }
    drop(limits);
    let limits = Limits::open(folder.path()).unwrap();
    let exhausted = limits.charge(&agent("a"), &six, at(60)).await.unwrap().unwrap_err();
    assert_eq!(exhausted.retry_after, Duration::from_secs(9));
    assert_eq!(limits.charge(&agent("b"), &six, at(60)).await.unwrap(), Ok(()));
    assert_eq!(limits.charge(&agent("a"), &six, at(69)).await.unwrap(), Ok(()));
    assert!(limits.charge(&agent("a"), &six, at(69)).await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_requests_at_once_never_overshoot_either_kind_of_limit() {
    let rows = [
        (1000, limit("small", 700, Window::Day)),
        (3000, limit("counted in advance", 2000, Window::Day)),
        (1000, sliding("sliding", 700, Window::Day)),
    ];
    for (requests, limit) in rows {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits::open(folder.path()).unwrap();
        let tasks: Vec<_> = (0..requests)
            .map(|_| {
                let (limits, limit) = (limits.clone(), limit.clone());
                tokio::spawn(async move {
                    limits.charge(&agent("a"), &[limit], at(5)).await.unwrap().is_ok()
                })
            })
            .collect();
        let mut granted = 0;
        for task in tasks {
            granted += u64::from(task.await.unwrap());
        }
        assert_eq!(granted, limit.budget.limit, "{limit:?}");
    }
}

#[tokio::test]
async fn a_busy_limit_is_handed_out_from_memory_and_what_is_left_over_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::open(folder.path()).unwrap();
    let many = [limit("many", 3000, Window::Day)];
    let (name, mut granted) = (agent("a"), 0);
    wait_for("some are counted in advance", async || {
        let burst = (0..50).map(|_| limits.charge(&name, &many, at(5)));
        let outcomes = futures_util::future::join_all(burst).await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(Ok(())))), "{outcomes:?}");
        granted += 50;
        used(folder.path()) > granted
    })
    .await;
    wait_for("what was not used is given back", async || used(folder.path()) == granted).await;
    // The other process has all the rest, and no more.
    let other = Limits::open(folder.path()).unwrap();
    for granted in granted..3000 {
        assert_eq!(other.charge(&agent("a"), &many, at(5)).await.unwrap(), Ok(()), "{granted}");
    }
    assert!(other.charge(&agent("a"), &many, at(5)).await.unwrap().is_err());
    assert!(limits.charge(&agent("a"), &many, at(5)).await.unwrap().is_err());
}

#[tokio::test]
async fn a_window_that_ends_takes_what_was_counted_in_advance_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::open(folder.path()).unwrap();
    let many = [limit("many", 2000, Window::Minute)];
    for _ in 0..100 {
        assert_eq!(limits.charge(&agent("a"), &many, at(5)).await.unwrap(), Ok(()));
    }
    let mut granted = 0;
    while limits.charge(&agent("a"), &many, at(60)).await.unwrap().is_ok() {
        granted += 1;
    }
    assert_eq!(granted, 2000);
}

#[tokio::test]
async fn bytes_and_tokens_are_charged_afterwards_and_then_nothing_is_admitted() {
    for unit in [Unit::Bytes, Unit::Tokens] {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits::open(folder.path()).unwrap();
        let thousand = counted_in(unit, "thousand", 1000);
        let charged = [thousand.clone()];
        assert_eq!(limits.charge(&agent("a"), &charged, at(5)).await.unwrap(), Ok(()));
        let meter = meter(&limits, &thousand);
        assert!(meter.spend(999, at(5)).is_ok());
        assert_eq!(limits.charge(&agent("a"), &charged, at(5)).await.unwrap(), Ok(()));
        assert!(matches!(meter.spend(50, at(5)), Err(Spent::Exhausted(_))));
        let exhausted = limits.charge(&agent("a"), &charged, at(5)).await.unwrap().unwrap_err();
        assert_eq!(exhausted.limit, thousand);
        assert_eq!(limits.charge(&agent("b"), &charged, at(5)).await.unwrap(), Ok(()));
        drop((limits, meter));
        assert_eq!(used(folder.path()), 1049);
    }
}

#[tokio::test]
async fn a_request_is_refused_by_each_of_its_limits_whatever_they_count() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::open(folder.path()).unwrap();
    let tokens = counted_in(Unit::Tokens, "tokens", 10);
    let both = [limit("requests", 5, Window::Day), tokens.clone()];
    assert_eq!(limits.charge(&agent("a"), &both, at(5)).await.unwrap(), Ok(()));
    assert!(meter(&limits, &tokens).spend(10, at(5)).is_ok());
    for _ in 0..10 {
        let exhausted = limits.charge(&agent("a"), &both, at(5)).await.unwrap().unwrap_err();
        assert_eq!(exhausted.limit, tokens);
    }
    let requests = [both[0].clone()];
    for _ in 0..4 {
        assert_eq!(limits.charge(&agent("a"), &requests, at(5)).await.unwrap(), Ok(()));
    }
    assert!(limits.charge(&agent("a"), &requests, at(5)).await.unwrap().is_err());
}

#[tokio::test]
async fn what_one_process_uses_the_other_knows_within_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Limits::open(folder.path()).unwrap(), Limits::open(folder.path()).unwrap());
    let limit = counted_in(Unit::Bytes, "bytes", 1000);
    let charged = [limit.clone()];
    for limits in [&one, &other] {
        assert_eq!(limits.charge(&agent("a"), &charged, at(5)).await.unwrap(), Ok(()));
    }
    assert!(meter(&one, &limit).spend(1000, at(5)).is_ok());
    let begun = std::time::Instant::now();
    wait_for("the other process refuses", async || {
        other.charge(&agent("a"), &charged, at(5)).await.unwrap().is_err()
    })
    .await;
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn while_the_database_fails_nothing_is_counted_in_memory_either() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::open(folder.path()).unwrap();
    let bytes = counted_in(Unit::Bytes, "bytes", 1_000_000);
    let requests = [limit("requests", 5000, Window::Day)];
    let charged = [bytes.clone()];
    assert_eq!(limits.charge(&agent("a"), &charged, at(5)).await.unwrap(), Ok(()));
    for _ in 0..100 {
        assert_eq!(limits.charge(&agent("a"), &requests, at(5)).await.unwrap(), Ok(()));
    }
    let database = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    database.execute_batch("ALTER TABLE charges RENAME TO elsewhere").unwrap();
    let meter = meter(&limits, &bytes);
    wait_for("the meter knows", async || matches!(meter.spend(1, at(5)), Err(Spent::Unknown)))
        .await;
    let outcome = limits.charge(&agent("a"), &requests, at(5)).await;
    assert!(outcome.is_err(), "{outcome:?}");
    // And back: what was used meanwhile is not forgotten.
    database.execute_batch("ALTER TABLE elsewhere RENAME TO charges").unwrap();
    wait_for("the meter goes on", async || meter.spend(1, at(5)).is_ok()).await;
    assert_eq!(limits.charge(&agent("a"), &requests, at(5)).await.unwrap(), Ok(()));
    drop((limits, meter));
    assert!(used(folder.path()) > 101);
}

#[tokio::test]
async fn limits_that_nobody_asks_for_are_forgotten_in_memory_only() {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits::open(folder.path()).unwrap();
    let bytes = counted_in(Unit::Bytes, "bytes", 1000);
    let both = [limit("requests", 5, Window::Day), bytes.clone()];
    assert_eq!(limits.charge(&agent("a"), &both, at(5)).await.unwrap(), Ok(()));
    let meter = meter(&limits, &bytes);
    assert!(meter.spend(10, at(5)).is_ok());
    wait_for("all but what is used is forgotten", async || {
        // Something goes on, or nobody would look.
        assert!(limits.charge(&agent("b"), &both[..1], at(86_400)).await.is_ok());
        limits.0.ledger.count() == 2
    })
    .await;
    drop(meter);
    assert_eq!(limits.charge(&agent("a"), &both, at(5)).await.unwrap(), Ok(()));
    drop(limits);
    assert!(used(folder.path()) >= 12);
}

/// Not a test of its own: what the next test kills.
#[tokio::test]
async fn child_process_uses_until_it_is_killed() {
    let Some(folder) = std::env::var_os(KILLED_FOLDER) else { return };
    let limits = Limits::open(Path::new(&folder)).unwrap();
    let tokens = counted_in(Unit::Tokens, "tokens", 1_000_000_000);
    let requests = [limit("requests", 1_000_000, Window::Day), tokens.clone()];
    let meter = meter(&limits, &tokens);
    let begun = std::time::Instant::now();
    for done in 1_u64.. {
        assert_eq!(limits.charge(&agent("a"), &requests, at(5)).await.unwrap(), Ok(()));
        assert!(meter.spend(1000, at(5)).is_ok());
        println!("done={done} at={};", begun.elapsed().as_millis());
    }
}

const KILLED_FOLDER: &str = "TOLLGATE_TEST_KILLED_STATE_DIR";

#[test]
fn sigkill_loses_no_request_and_no_more_than_a_second_of_tokens() {
    use std::io::BufRead as _;
    let folder = tempfile::tempdir().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "state::tests::child_process_uses_until_it_is_killed", "--nocapture"])
        .env(KILLED_FOLDER, folder.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = io::BufReader::new(child.stdout.take().unwrap()).lines();
    // (how many, when in milliseconds)
    let mut done: Vec<(u64, u64)> = Vec::new();
    let mut killed = false;
    for line in lines.map_while(Result::ok) {
        let Some((_, rest)) = line.split_once("done=") else { continue };
        let Some((count, at)) = rest.split_once(" at=") else { continue };
        let Some((at, _)) = at.split_once(';') else { continue };
        done.push((count.parse().unwrap(), at.parse().unwrap()));
        if !killed && done.last().unwrap().1 > 2500 {
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    let last = *done.last().unwrap();
    assert!(killed, "it ended by itself: {last:?}");
    let a_second_ago = done.iter().rev().find(|(_, at)| at + 1000 < last.1).unwrap().0;
    let database = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    let counted = |unit: &str| {
        let query = "SELECT sum(used) FROM charges WHERE unit = ?1";
        u64::try_from(database.query_row(query, [unit], |row| row.get::<_, i64>(0)).unwrap())
            .unwrap()
    };
    assert!(counted("requests") >= last.0, "{} of {last:?}", counted("requests"));
    let tokens = counted("tokens");
    assert!(tokens >= a_second_ago * 1000, "{tokens} of {a_second_ago} thousand");
    // The control: without a disk nothing of it would be there; and it counts no more than was done.
    assert!(tokens <= (last.0 + 1) * 1000, "{tokens} of {last:?}");
}

#[tokio::test]
async fn the_counters_of_the_former_layout_are_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.db");
    let database = rusqlite::Connection::open(&file).unwrap();
    let former = "CREATE TABLE charges (
            agent TEXT NOT NULL, rule TEXT NOT NULL, window_start INTEGER NOT NULL,
            window_end INTEGER NOT NULL, used INTEGER NOT NULL,
            PRIMARY KEY (agent, rule, window_start, window_end)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX charges_by_end ON charges (window_end);
        INSERT INTO charges VALUES ('a', 'three', 1767225600, 1767312000, 2);
        PRAGMA user_version = 1;";
    database.execute_batch(former).unwrap();
    drop(database);
    let limits = Limits::open(folder.path()).unwrap();
    let three = [limit("three", 3, Window::Day)];
    assert_eq!(limits.charge(&agent("a"), &three, at(5)).await.unwrap(), Ok(()));
    assert!(limits.charge(&agent("a"), &three, at(5)).await.unwrap().is_err());
}

proptest! {
    #[test]
    fn windows_are_aligned_and_contain_their_moment(seconds in 0_u64..=253_402_300_799, nanos in 0_u32..1_000_000_000) {
        let now = Duration::new(seconds, nanos);
        for window in [Window::Minute, Window::Hour, Window::Day] {
            let span = Span::around(window, now).unwrap();
            let length = i64::try_from(window.length().as_secs()).unwrap();
            let moment = i64::try_from(seconds).unwrap();
            prop_assert_eq!(span.start % length, 0);
            prop_assert_eq!(span.end - span.start, length);
            prop_assert!(span.start <= moment && moment < span.end);
            let rest = span.rest(now).unwrap();
            prop_assert!(rest > Duration::ZERO && rest <= window.length());
        }
    }
}
