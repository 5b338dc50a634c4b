//! What rules decide, and how the agent learns it.

use crate::client::curl;
use crate::common::world::World;

const RULES: &str = r#"
[[agent]]
name = "worker"
[[agent]]
name = "free"
default = "allow"
[[rule]]
name = "read"
agents = ["worker"]
hosts = ["mail.test"]
methods = ["GET", "HEAD", "DELETE"]
action = "allow"
[[rule]]
name = "never delete"
hosts = ["mail.test"]
methods = ["DELETE"]
action = "block"
"#;

#[test]
fn a_block_rule_wins_over_an_allow_rule_and_says_so() {
    let Some(world) = World::new() else { return };
    let mail = world.origin("mail.test");
    world.configure(RULES);
    for agent in ["worker", "free"] {
        let reply = curl(&world, agent, &["-X", "DELETE", "https://mail.test/m/1?why=x"]);
        assert_eq!(reply.status, 403);
        assert_eq!(reply.header("x-should-retry"), Some("false"));
        assert_eq!(reply.header("content-type"), Some("application/json"));
        let json = reply.json();
        assert_eq!(json["error"], "blocked_by_policy");
        assert_eq!(json["rule_name"], "never delete");
        assert_eq!((&json["method"], &json["path"]), (&"DELETE".into(), &"/m/1".into()));
        assert!(json["message"].is_string());
        let record = &world.new_requests(1)[0];
        assert_eq!(record["reason"], "blocked_by_policy");
        assert_eq!(
            (&record["decision"], &record["rule"]),
            (&"block".into(), &"never delete".into())
        );
    }
    assert_eq!(mail.connections(), 0, "a refused request makes no connection");
    // The control: what is not blocked arrives.
    assert_eq!(curl(&world, "worker", &["https://mail.test/m/1"]).status, 200);
    assert_eq!(mail.connections(), 1);
}

#[test]
fn what_no_rule_allows_is_denied_by_default_and_reaches_nobody() {
    let Some(world) = World::new() else { return };
    let (mail, chat) = (world.origin("mail.test"), world.origin("chat.test"));
    world.configure(RULES);
    let rows: [(&[&str], &str, &str); 3] = [
        (&["-d", "x", "https://mail.test/send"], "mail.test", "/send"),
        (&["https://chat.test/"], "chat.test", "/"),
        (&["http://chat.test/"], "chat.test", "/"),
    ];
    for (arguments, host, path) in rows {
        let reply = curl(&world, "worker", arguments);
        assert_eq!((reply.status, reply.error().as_str()), (403, "blocked_by_default_policy"));
        let json = reply.json();
        assert_eq!((&json["host"], &json["path"]), (&host.into(), &path.into()));
        assert_eq!(world.new_requests(1)[0]["reason"], "blocked_by_default_policy");
    }
    assert_eq!(mail.connections() + chat.connections(), 0);
    assert!(!world.names.asked().contains(&"chat.test.".to_owned()), "a denied name was looked up");
    // The control: the same request as an agent that is open by default.
    assert_eq!(curl(&world, "free", &["https://chat.test/"]).status, 200);
    assert_eq!(world.new_requests(1)[0]["reason"], "allowed_by_default");
    assert_eq!(chat.connections(), 1);
}

#[test]
fn a_refusal_to_head_has_no_body() {
    let Some(world) = World::new() else { return };
    world.origin("chat.test");
    world.configure(RULES);
    let reply = curl(&world, "worker", &["-I", "https://chat.test/"]);
    assert_eq!((reply.status, reply.body.as_str()), (403, ""));
}

const LIMITED: &str = r#"
[[agent]]
name = "research"
default = "allow"
[[agent]]
name = "other"
default = "allow"
[[rule]]
name = "budget"
agents = ["research", "other"]
hosts = ["papers.test"]
action = "rate_limit"
limit = 5
window = "day"
"#;

#[test]
fn a_used_up_limit_answers_429_and_survives_the_end_of_the_run() {
    let Some(world) = World::new() else { return };
    let papers = world.origin("papers.test");
    world.configure(LIMITED);
    for _ in 0..5 {
        assert_eq!(curl(&world, "research", &["https://papers.test/"]).status, 200);
    }
    let reply = curl(&world, "research", &["https://papers.test/"]);
    assert_eq!((reply.status, reply.error().as_str()), (429, "rate_limited"));
    let json = reply.json();
    assert_eq!((&json["limit"], &json["window"]), (&5.into(), &"day".into()));
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=86_400).contains(&seconds), "{seconds}");
    assert_eq!(reply.header("x-should-retry"), None, "to try again later is of use");
    assert_eq!(papers.seen().len(), 5);
    // The counter is the agent's own.
    assert_eq!(curl(&world, "other", &["https://papers.test/"]).status, 200);
    let records = world.new_requests(7);
    assert_eq!(
        (&records[5]["reason"], &records[5]["rule"]),
        (&"rate_limited".into(), &"budget".into())
    );
}

#[test]
fn two_runs_at_once_share_one_counter() {
    let Some(world) = World::new() else { return };
    let papers = world.origin("papers.test");
    world.configure(LIMITED);
    let ten = r#"for i in 1 2 3 4 5 6 7 8 9 10; do
        curl -s -o /dev/null -w '%{http_code}\n' https://papers.test/ &
    done; wait"#;
    let runs = [0, 1].map(|_| world.start("research", &["sh", "-c", ten]));
    let mut statuses: Vec<String> = Vec::new();
    for run in runs {
        statuses.extend(run.wait().ok().lines().map(str::to_owned));
    }
    let passed = statuses.iter().filter(|status| *status == "200").count();
    let limited = statuses.iter().filter(|status| *status == "429").count();
    assert_eq!((passed, limited, papers.seen().len()), (5, 15, 5), "{statuses:?}");
}

#[test]
fn a_request_that_something_stricter_refuses_does_not_count() {
    let Some(world) = World::new() else { return };
    let papers = world.origin("papers.test");
    let block = "[[rule]]\nname = \"no post\"\nmethods = [\"POST\"]\naction = \"block\"\n";
    world.configure(&format!("{LIMITED}{block}"));
    let many = ["sh", "-c", "for i in 1 2 3 4 5 6; do curl -s -d x https://papers.test/; done"];
    world.run("research", &many).ok();
    for _ in 0..5 {
        assert_eq!(curl(&world, "research", &["https://papers.test/"]).status, 200);
    }
    assert_eq!(papers.seen().len(), 5);
    assert_eq!(curl(&world, "research", &["https://papers.test/"]).status, 429);
}
