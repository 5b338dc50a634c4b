use super::world::{World, ok};

const RULES: &str = r#"
[[rule]]
name = "reads"
hosts = ["origin.test"]
methods = ["GET"]
action = "allow"
allow_private = true

[[rule]]
name = "no admin"
paths = ["/admin/*"]
action = "block"
mode = "shadow"

[[rule]]
name = "writes"
hosts = ["origin.test"]
methods = ["POST"]
paths = ["/drafts"]
action = "allow"
mode = "shadow"

[[rule]]
name = "two reports"
paths = ["/report"]
action = "rate_limit"
limit = 2
window = "day"
mode = "shadow"
"#;

/// Status and what is recorded of rules in shadow, for each request in turn.
async fn recorded(rules: &str, requests: &[&str]) -> Vec<String> {
    let world = World::new(rules);
    let origin = world.origin(|_| ok("hello")).await;
    for line in requests {
        let request = format!("{line} HTTP/1.1\r\nHost: origin.test:{}\r\n\r\n", origin.port);
        world.ask("origin.test", origin.port, &request).await;
    }
    let records = world.records(requests.len()).await;
    let words = records.iter().map(|record| {
        let would_have = &record["would_have"];
        match would_have["rule"].as_str() {
            Some(rule) => format!(
                "{} {} {} by {rule}",
                record["status"],
                would_have["decision"].as_str().unwrap(),
                would_have["reason"].as_str().unwrap()
            ),
            None => format!("{} {would_have}", record["status"]),
        }
    });
    words.collect()
}

const REQUESTS: [&str; 8] = [
    "GET /a",
    "GET /admin/x",
    "POST /drafts",
    "POST /other",
    "POST /admin/x",
    "GET /report",
    "GET /report",
    "GET /report",
];

#[tokio::test]
async fn a_rule_in_shadow_changes_no_answer_and_the_record_says_what_it_would_have() {
    let expected = [
        "200 null",
        "200 block blocked_by_policy by no admin",
        "403 allow allowed_by_rule by writes",
        "403 null",
        "403 null",
        "200 null",
        "200 null",
        "200 block rate_limited by two reports",
    ];
    assert_eq!(recorded(RULES, &REQUESTS).await, expected);
}

#[tokio::test]
async fn the_same_rules_enforced_do_what_their_shadows_said() {
    let enforced = RULES.replace("mode = \"shadow\"", "mode = \"enforce\"");
    // The origin is private, and the rule that allows writing does not open it.
    let enforced = enforced
        .replace("paths = [\"/drafts\"]\n", "paths = [\"/drafts\"]\nallow_private = true\n");
    let expected = [
        "200 null", "403 null", "200 null", "403 null", "403 null", "200 null", "200 null",
        "429 null",
    ];
    assert_eq!(recorded(&enforced, &REQUESTS).await, expected);
}
