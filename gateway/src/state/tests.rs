use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::counters::Span;
use super::*;
use crate::policy::{RuleName, Window};

fn agent(name: &str) -> AgentName {
    AgentName::parse(name).unwrap()
}

fn limit(rule: &str, limit: u32, window: Window) -> Limit {
    Limit { rule: RuleName::parse(rule).unwrap(), limit, window }
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
    assert_eq!(exhausted.rule.as_str(), "three");
    assert_eq!((exhausted.limit, exhausted.window), (3, Window::Minute));
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
        assert_eq!(exhausted.rule.as_str(), "narrow");
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
        (exhausted.rule.as_str(), exhausted.retry_after),
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
