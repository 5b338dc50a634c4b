use super::*;

const POLICY: &str = r#"
[[agent]]
name = "mail"
[[credential]]
name = "gmail"
source = { file = "/nowhere" }
hosts = ["gmail.example.com"]
inject = { header = "Authorization", format = "Bearer {value}" }
agents = ["mail"]
[[credential]]
name = "key"
source = { file = "/nowhere" }
hosts = ["gmail.example.com"]
inject = { header = "X-Key", format = "{value}" }
agents = ["mail"]
[[rule]]
name = "read"
hosts = ["gmail.example.com"]
action = "allow"
[[rule]]
name = "no admin"
paths = ["/admin/*"]
action = "block"
[[rule]]
name = "budget"
methods = ["POST"]
action = "rate_limit"
limit = 5
window = "hour"
"#;

fn told_about(agent: &str, method: &str, url: &str, json: bool) -> String {
    let policy = Config::parse(Path::new("t.toml"), POLICY).unwrap().policy;
    let (destination, target) = destination_and_target(url).unwrap();
    let path = RequestPath { sent: target.clone(), query: None, readings: vec![target] };
    let head = RequestHead { method: super::method(method).unwrap(), destination, path };
    told(&policy, &AgentName::parse(agent).unwrap(), &head, SystemTime::now(), json)
}

#[test]
fn the_answer_for_people_says_what_decides() {
    let expected = "\
request     POST https://gmail.example.com:8443/a by mail
decision    allow
reason      allowed_by_rule
rule        read
credential  -
limit       5 requests per hour, fixed (budget)
";
    assert_eq!(told_about("mail", "post", "https://GMAIL.example.com:8443/a", false), expected);
    let expected = "\
request     GET http://a.example/ by nobody
decision    block
reason      blocked_by_default_policy
rule        -
credential  -
note        the configuration has no agent `nobody`: everything is closed to it
";
    assert_eq!(told_about("nobody", "GET", "http://a.example", false), expected);
}

#[test]
fn what_is_refused_before_policy_is_asked_is_a_bad_request() {
    let told = told_about("mail", "TRACE", "https://gmail.example.com/", false);
    assert!(told.contains("decision    block\nreason      bad_request\n"), "{told}");
    assert!(told.ends_with("note        the gateway answers TRACE with 405\n"), "{told}");
}

#[test]
fn the_answer_for_programs_has_the_words_of_the_audit_log() {
    let rows = [
        (
            "GET",
            "https://gmail.example.com/a",
            r#"{"credential":"gmail, key","decision":"allow","limits":[],"reason":"allowed_by_rule","rule":"read"}"#,
        ),
        (
            "GET",
            "https://gmail.example.com/admin",
            r#"{"credential":null,"decision":"block","limits":[],"reason":"blocked_by_policy","rule":"no admin"}"#,
        ),
        (
            "POST",
            "http://gmail.example.com/",
            r#"{"credential":null,"decision":"allow","limits":[{"algorithm":"fixed","limit":5,"rule":"budget","unit":"requests","window":"hour"}],"reason":"allowed_by_rule","rule":"read"}"#,
        ),
        (
            "trace",
            "https://gmail.example.com/",
            r#"{"credential":null,"decision":"block","limits":[],"reason":"bad_request","rule":null,"note":"the gateway answers TRACE with 405"}"#,
        ),
        (
            "GET",
            "https://other.example/",
            r#"{"credential":null,"decision":"block","limits":[],"reason":"blocked_by_default_policy","rule":null}"#,
        ),
    ];
    for (method, url, expected) in rows {
        let told = told_about("mail", method, url, true);
        let same = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(same(&told), same(expected), "{method} {url}");
    }
}

#[test]
fn urls_are_taken_apart_as_clients_do() {
    let rows = [
        ("https://A.example", "https://a.example", "/"),
        ("HTTP://a.example:80/x?y=/z#f", "http://a.example", "/x?y=/z"),
        ("https://a.example?x", "https://a.example", "/?x"),
        ("https://[2001:DB8::1]:8443/", "https://[2001:db8::1]:8443", "/"),
        ("https://[2001:db8::1]", "https://[2001:db8::1]", "/"),
        ("https://192.0.2.1:443/a", "https://192.0.2.1", "/a"),
    ];
    for (url, destination, target) in rows {
        let (found, rest) = destination_and_target(url).unwrap();
        assert_eq!((found.to_string().as_str(), rest.as_str()), (destination, target), "{url}");
    }
    for url in [
        "a.example/x",
        "ftp://a.example/",
        "https://",
        "https://a.example:x/",
        "https://a.example:0/",
        "https://a.example:65536/",
        "https://user@a.example/",
        "https://a b/",
        "https://[::1/",
        "https:///x",
    ] {
        assert!(destination_and_target(url).is_err(), "{url}");
    }
}

#[test]
fn a_wrong_question_is_told_from_a_wrong_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.toml");
    std::fs::write(&path, POLICY).unwrap();
    let ask = |agent: &str, method: &str, url: &str| Question {
        agent: agent.to_owned(),
        method: method.to_owned(),
        url: url.to_owned(),
        json: false,
        at: None,
    };
    assert_eq!(explain(&path, &ask("Mail", "GET", "https://a.example/")).code, 2);
    assert_eq!(explain(&path, &ask("mail", "G T", "https://a.example/")).code, 2);
    assert_eq!(explain(&path, &ask("mail", "GET", "a.example")).code, 2);
    std::fs::write(&path, "x = 1").unwrap();
    assert_eq!(explain(&path, &ask("mail", "GET", "https://a.example/")).code, 1);
}

#[test]
fn an_address_that_the_gateway_would_not_dial_is_not_called_allowed() {
    let text = r#"
[[agent]]
name = "free"
default = "allow"
[[rule]]
name = "lab"
hosts = ["192.168.7.7"]
action = "allow"
allow_private = true
[[rule]]
name = "budget"
methods = ["POST"]
action = "rate_limit"
limit = 5
window = "hour"
[[rule]]
name = "closed lab"
hosts = ["192.168.7.8"]
action = "allow"
"#;
    let policy = Config::parse(Path::new("t.toml"), text).unwrap().policy;
    let rows = [
        ("GET", "https://127.0.0.1/", "block", "blocked_address", "-"),
        ("POST", "https://127.0.0.1/", "block", "blocked_address", "-"),
        ("GET", "https://[::ffff:169.254.169.254]/", "block", "blocked_address", "-"),
        ("GET", "https://192.168.7.8/", "block", "blocked_address", "closed lab"),
        ("GET", "https://192.168.7.7/", "allow", "allowed_by_rule", "lab"),
        ("GET", "https://192.0.43.8/", "allow", "allowed_by_default", "-"),
    ];
    for (method, url, decision, reason, rule) in rows {
        let question = Question {
            agent: "free".to_owned(),
            method: method.to_owned(),
            url: url.to_owned(),
            json: false,
            at: None,
        };
        let told = answer(&policy, &question).unwrap();
        let expected =
            format!("decision    {decision}\nreason      {reason}\nrule        {rule}\n");
        assert!(told.contains(&expected), "{method} {url}: {told}");
    }
}

#[test]
fn an_agent_that_is_not_configured_is_told_to_programs_too() {
    let told: serde_json::Value =
        serde_json::from_str(&told_about("nobody", "GET", "https://a.example/", true)).unwrap();
    assert_eq!(told["decision"], "block");
    assert_eq!(told["note"], "the configuration has no agent `nobody`: everything is closed to it");
}

const WATCHED: &str = r#"
[[agent]]
name = "a"
[[rule]]
name = "office hours"
hosts = ["a.example.com"]
methods = ["GET"]
action = "allow"
hours = ["09:00-17:00"]
days = ["mon-fri"]
time_zone = "Europe/Berlin"
[[rule]]
name = "freeze"
hosts = ["a.example.com"]
action = "block"
expires = 2026-11-01T00:00:00Z
[[rule]]
name = "soon closed"
hosts = ["a.example.com"]
action = "block"
mode = "shadow"
[[rule]]
name = "soon open"
hosts = ["b.example.com"]
action = "allow"
mode = "shadow"
[[rule]]
name = "soon counted"
hosts = ["c.example.com"]
action = "rate_limit"
limit = 1
window = "day"
mode = "shadow"
[[rule]]
name = "open"
hosts = ["c.example.com"]
action = "allow"
"#;

#[test]
fn rules_in_shadow_and_rules_that_sleep_are_told() {
    let policy = Config::parse(Path::new("t.toml"), WATCHED).unwrap().policy;
    let told = |url: &str, at: &str, json: bool| {
        let question = Question {
            agent: "a".to_owned(),
            method: "GET".to_owned(),
            url: url.to_owned(),
            json,
            at: Some(at.to_owned()),
        };
        answer(&policy, &question).unwrap()
    };
    let expected = "\
request     GET https://a.example.com/ by a
decision    allow
reason      allowed_by_rule
rule        office hours
credential  -
would have  block (in shadow: soon closed)
dormant     freeze: expired
";
    // A Monday, in the offset of whoever asks.
    assert_eq!(told("https://a.example.com/", "2026-11-23T03:00:00-05:00", false), expected);
    let expected = "\
request     GET https://a.example.com/ by a
decision    block
reason      blocked_by_policy
rule        freeze
credential  -
dormant     office hours: not in its hours or on its days
";
    assert_eq!(told("https://a.example.com/", "2026-10-31T09:00:00Z", false), expected);
    let said = told("https://b.example.com/", "2026-11-23T09:00:00Z", false);
    assert!(said.contains("\nwould have  allow (in shadow: soon open)\n"), "{said}");
    let said = told("https://c.example.com/", "2026-11-23T09:00:00Z", false);
    assert!(said.contains("\nwould have  count (in shadow: soon counted)\n"), "{said}");

    let said = told("https://a.example.com/", "2026-11-23T09:00:00Z", true);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap();
    let would_have = serde_json::json!(
        {"decision": "block", "reason": "blocked_by_policy", "rules": ["soon closed"]}
    );
    assert_eq!(json["would_have"], would_have);
    assert_eq!(json["dormant"], serde_json::json!([{"rule": "freeze", "why": "expired"}]));
}

#[test]
fn a_time_is_one_of_rfc_3339() {
    let policy = Config::parse(Path::new("t.toml"), POLICY).unwrap().policy;
    for (at, is_time) in [
        ("2026-11-23T09:00:00Z", true),
        ("2026-11-23T09:00:00.5+01:00", true),
        ("2026-11-23T09:00:00", false),
        ("2026-11-23", false),
        ("now", false),
    ] {
        let question = Question {
            agent: "mail".to_owned(),
            method: "GET".to_owned(),
            url: "https://gmail.example.com/".to_owned(),
            json: false,
            at: Some(at.to_owned()),
        };
        assert_eq!(answer(&policy, &question).is_ok(), is_time, "{at}");
    }
}
