//! Budgets: how many requests, bytes and tokens an agent has, whatever it does at once and whoever dies.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use rusqlite::Connection;

use crate::client::{Reply, curl};
use crate::common::origin::ANTHROPIC;
use crate::common::world::World;
use crate::common::{wait_for, wait_until};

const AGENTS: &str = r#"
[[agent]]
name = "worker"
default = "allow"
[[agent]]
name = "free"
default = "allow"
"#;

/// A budget of the worker alone.
fn budget(rest: &str) -> String {
    format!(
        "{AGENTS}[[rule]]\nname = \"budget\"\nagents = [\"worker\"]\naction = \"rate_limit\"\nwindow = \"day\"\n{rest}\n"
    )
}

fn database(world: &World) -> Connection {
    let database = Connection::open(world.path("state/state.db")).unwrap();
    database.busy_timeout(Duration::from_secs(10)).unwrap();
    database
}

fn counted(world: &World, unit: &str) -> u64 {
    let query = "SELECT coalesce(sum(used), 0) FROM charges WHERE unit = ?1";
    let used: i64 = database(world).query_row(query, [unit], |row| row.get(0)).unwrap();
    u64::try_from(used).unwrap()
}

/// A prompt to a model.
#[track_caller]
fn ask(world: &World, agent: &str, options: &[&str], url: &str, body: &str) -> Reply {
    let always = ["-N", "-H", "content-type: application/json", "-d", body, url];
    curl(world, agent, &options.iter().chain(&always).copied().collect::<Vec<_>>())
}

#[test]
fn a_budget_in_tokens_is_used_up_by_answers_streamed_or_whole() {
    let Some(world) = World::new() else { return };
    let model = world.origin("model.test");
    world.configure(&budget("unit = \"tokens\"\nlimit = 250"));
    let rows = [
        ("--http1.1", "/v1/messages", r#"{"stream":true}"#, "message_stop"),
        ("--http2", "/v1/messages", r#"{"stream":true}"#, "message_stop"),
        ("--http1.1", "/v1/chat/completions", r#"{"stream":true}"#, "[DONE]"),
        ("--http2", "/v1/messages", "{}", "Hello"),
        ("--http2", "/v1/chat/completions", "{}", "Hello"),
    ];
    for (number, (version, path, body, end)) in rows.into_iter().enumerate() {
        let url = format!("https://model.test{path}");
        let reply = ask(&world, "worker", &[version], &url, body);
        assert_eq!(reply.status, 200, "{reply:#?}");
        assert!(reply.body.contains(end), "{reply:#?}");
        // The run has ended, and has written everything before.
        assert_eq!(counted(&world, "tokens"), 50 * (u64::try_from(number).unwrap() + 1), "{path}");
    }
    let reply = ask(&world, "worker", &[], "https://model.test/v1/messages", "{}");
    assert_eq!((reply.status, reply.error().as_str()), (429, "rate_limited"));
    assert_eq!(reply.json()["unit"], "tokens");
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=86_400).contains(&seconds), "{seconds}");
    assert_eq!(reply.header("ratelimit-policy"), Some("\"budget\";q=250;w=86400;qu=\"tokens\""));
    assert_eq!(reply.header("ratelimit"), Some(format!("\"budget\";r=0;t={seconds}").as_str()));
    assert_eq!(model.seen().len(), 5, "the refused one reached nobody");
    // The control: who has no budget goes on.
    assert_eq!(ask(&world, "free", &[], "https://model.test/v1/messages", "{}").status, 200);
    let records = world.new_requests(7);
    assert_eq!(
        (&records[5]["decision"], &records[5]["reason"], &records[5]["rule"]),
        (&"block".into(), &"rate_limited".into(), &"budget".into())
    );
}

#[test]
fn an_answer_that_would_be_compressed_comes_plain_where_tokens_are_counted() {
    let Some(world) = World::new() else { return };
    let model = world.origin("model.test");
    world.configure(&budget("unit = \"tokens\"\nlimit = 1000000"));
    for (agent, coding, asked) in [("free", Some("gzip"), "gzip"), ("worker", None, "identity")] {
        let options = ["--compressed", "-H", "accept-encoding: gzip"];
        let reply = ask(&world, agent, &options, "https://model.test/v1/messages", "{}");
        assert_eq!((reply.header("content-encoding"), reply.body.as_str()), (coding, ANTHROPIC));
        assert_eq!(model.seen().last().unwrap().headers["accept-encoding"], asked);
    }
    assert_eq!(counted(&world, "tokens"), 50);
}

#[test]
fn a_thousand_requests_at_once_in_two_runs_never_overshoot() {
    for algorithm in ["fixed", "sliding"] {
        let Some(world) = World::new() else { return };
        let papers = world.origin("papers.test");
        world.configure(&budget(&format!("limit = 100\nalgorithm = {algorithm:?}")));
        let urls = "http://papers.test/[1-500]";
        let many = [
            "curl",
            "-s",
            "-Z",
            "--parallel-max",
            "250",
            "--http1.1",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}\\n",
            urls,
        ];
        let runs = [(); 2].map(|()| world.start("worker", &many));
        let mut statuses: Vec<String> = Vec::new();
        for run in runs {
            statuses.extend(run.wait().ok().lines().map(str::to_owned));
        }
        let count = |wanted: &str| statuses.iter().filter(|status| *status == wanted).count();
        assert_eq!((count("200"), count("429")), (100, 900), "{algorithm}");
        assert_eq!(papers.seen().len(), 100, "{algorithm}");
    }
}

#[test]
fn a_download_ends_with_its_budget_in_bytes() {
    let Some(world) = World::new() else { return };
    world.origin("files.test");
    world.configure(&budget("unit = \"bytes\"\nlimit = 1000000"));
    let get = |agent: &str| {
        let sized = [
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{size_download}",
            "https://files.test/bytes/50000000",
        ];
        let command: Vec<&str> = ["curl"].into_iter().chain(sized).collect();
        let ended = world.run(agent, &command);
        (ended.code, ended.stdout.parse::<u64>().unwrap())
    };
    assert_eq!(get("free"), (Some(0), 50_000_000));
    let (code, size) = get("worker");
    assert_ne!(code, Some(0), "curl knows that something is missing");
    assert!((1..=1_000_000).contains(&size), "{size}");
    let record = &world.new_requests(2)[1];
    assert_eq!((&record["decision"], &record["reason"]), (&"block".into(), &"rate_limited".into()));
    assert_eq!(curl(&world, "worker", &["https://files.test/"]).status, 429);
}

#[test]
fn sigkill_forgets_no_request_and_no_more_than_a_second_of_tokens() {
    let Some(world) = World::new() else { return };
    world.origin("model.test");
    let tokens = "[[rule]]\nname = \"tokens\"\naction = \"rate_limit\"\nwindow = \"day\"\nunit = \"tokens\"\nlimit = 1000000\n";
    world.configure(&format!("{}{tokens}", budget("limit = 5")));
    let url = "https://model.test/v1/messages";
    let script =
        format!("for i in 1 2 3; do curl -s -o /dev/null -d x {url}; done; echo done; sleep 100");
    let mut run = world.start("worker", &["sh", "-c", &script]);
    run.wait_until_printed("done");
    let done = Instant::now();
    wait_until("the tokens are written", || counted(&world, "tokens") == 150);
    assert!(done.elapsed() < Duration::from_secs(1), "after {:?}", done.elapsed());
    kill(run.pid(), Signal::SIGKILL).unwrap();
    wait_until("it is dead", || run.has_ended());
    assert_eq!(counted(&world, "requests"), 3);
    let statuses = [0; 3].map(|_| ask(&world, "worker", &[], url, "{}").status);
    assert_eq!(statuses, [200, 200, 429]);
    assert_eq!(counted(&world, "tokens"), 250);
}

#[test]
fn counters_that_fail_in_the_middle_of_a_run_refuse_what_they_limit() {
    let Some(world) = World::new() else { return };
    let papers = world.origin("papers.test");
    world.configure(&budget("limit = 1000"));
    let go_on = world.path("go-on");
    let script = format!(
        "curl -s -w '%{{http_code}}\\n' -o /dev/null https://papers.test/; \
         while [ ! -e {} ]; do sleep 0.05; done; curl -s -w ' %{{http_code}}' https://papers.test/",
        go_on.display()
    );
    let mut run = world.start("worker", &["sh", "-c", &script]);
    run.wait_until_printed("200\n");
    database(&world).execute_batch("DROP TABLE charges").unwrap();
    fs::write(&go_on, "").unwrap();
    let ended = run.wait();
    assert!(ended.ok().ends_with(" 503"), "{ended:#?}");
    assert!(ended.stdout.contains("\"error\":\"state_unavailable\""), "{ended:#?}");
    assert_eq!(papers.seen().len(), 1);
    let records = wait_for("both are recorded", || {
        let records = world.audit_of("request");
        (records.len() == 2).then_some(records)
    });
    assert_eq!(
        (&records[1]["decision"], &records[1]["reason"]),
        (&"block".into(), &"state_unavailable".into())
    );
    // The control: who is under no limit needs no counters.
    assert_eq!(curl(&world, "free", &["https://papers.test/"]).status, 200);
}
