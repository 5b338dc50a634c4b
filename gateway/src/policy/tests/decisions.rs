use super::*;

const POLICY: &str = r#"
[[agent]]
name = "mail"
[[agent]]
name = "child"
parent = "mail"
[[agent]]
name = "grandchild"
parent = "child"
default = "allow"
[[agent]]
name = "open"
default = "allow"
[[agent]]
name = "other"

[[credential]]
name = "gmail"
source = { file = "/secret" }
hosts = ["gmail.example.com"]
paths = ["/gmail/*"]
inject = { header = "Authorization", format = "Bearer {value}" }
agents = ["mail"]
[[credential]]
name = "gmail-send"
source = { file = "/secret" }
hosts = ["gmail.example.com"]
paths = ["/gmail/send"]
inject = { header = "authorization", format = "Bearer {value}" }
agents = ["mail"]
[[credential]]
name = "wide"
source = { file = "/secret" }
hosts = ["*.example.com"]
inject = { header = "Authorization", format = "Wide {value}" }
agents = ["mail", "open"]
[[credential]]
name = "key"
source = { env = "KEY" }
hosts = ["gmail.example.com"]
inject = { header = "X-Key", format = "{value}" }
agents = ["mail"]
[[credential]]
name = "ungranted"
source = { env = "KEY" }
hosts = ["*.example.com"]
inject = { header = "X-Other", format = "{value}" }
[[credential]]
name = "plain"
source = { env = "KEY" }
hosts = ["plain.example.com"]
inject = { header = "X-Plain", format = "{value}" }
allow_plaintext = true
agents = ["open"]
[[credential]]
name = "special port"
source = { env = "KEY" }
hosts = ["plain.example.com"]
ports = [8443]
inject = { header = "X-Port", format = "{value}" }
agents = ["open"]

[[rule]]
name = "read mail"
agents = ["mail"]
hosts = ["gmail.example.com"]
methods = ["get"]
action = "allow"
[[rule]]
name = "send mail"
agents = ["mail"]
hosts = ["gmail.example.com"]
methods = ["POST"]
paths = ["/gmail/send"]
action = "allow"
[[rule]]
name = "no admin"
hosts = ["gmail.example.com", "*.example.com"]
paths = ["/admin/*"]
action = "block"
[[rule]]
name = "encoded"
paths = ["/at%40sign"]
action = "block"
[[rule]]
name = "never"
hosts = ["never.example.com"]
action = "block"
[[rule]]
name = "docs"
agents = ["mail", "other"]
hosts = ["*.docs.example.com"]
paths = ["/public/*"]
action = "allow"
[[rule]]
name = "high port"
agents = ["other"]
hosts = ["port.example.com"]
ports = [8443, 9443]
action = "allow"
[[rule]]
name = "internal"
agents = ["other"]
hosts = ["10.0.0.7", "internal.example.com"]
action = "allow"
allow_private = true
[[rule]]
name = "internal again"
agents = ["other"]
hosts = ["internal.example.com"]
action = "allow"
[[rule]]
name = "switched off"
agents = ["other"]
hosts = ["off.example.com"]
action = "allow"
enabled = false
[[rule]]
name = "budget"
agents = ["mail"]
methods = ["POST"]
action = "rate_limit"
limit = 10
window = "hour"
[[rule]]
name = "send budget"
agents = ["mail"]
hosts = ["gmail.example.com", "*.example.com"]
paths = ["/gmail/send"]
action = "rate_limit"
limit = 2
window = "minute"
"#;

/// Agent, request, readings beside the path that is sent, and what is decided.
type Row = (&'static str, &'static str, &'static [&'static str], &'static str);

const DECISIONS: &[Row] = &[
    // Allow rules, their conditions, and the default.
    ("mail", "GET https://gmail.example.com/", &[], "allow read mail [wide key]"),
    ("mail", "GET https://gmail.example.com/other", &[], "allow read mail [wide key]"),
    ("mail", "HEAD https://gmail.example.com/", &[], "deny"),
    ("mail", "get https://gmail.example.com/", &[], "deny"),
    ("mail", "DELETE https://gmail.example.com/", &[], "deny"),
    ("mail", "GET https://www.example.com/", &[], "deny"),
    ("mail", "GET https://gmail.example.com.evil.example/", &[], "deny"),
    ("mail", "GET http://gmail.example.com/", &[], "allow read mail"),
    ("mail", "GET https://gmail.example.com:8443/", &[], "allow read mail"),
    ("other", "GET https://gmail.example.com/", &[], "deny"),
    ("nobody", "GET https://gmail.example.com/", &[], "unknown"),
    ("open", "GET https://anything.example.net/", &[], "allow by-default"),
    ("open", "BREW https://192.0.2.9/", &[], "allow by-default"),
    // Block beats everything, for every agent.
    ("mail", "GET https://gmail.example.com/admin", &[], "block no admin"),
    ("mail", "GET https://gmail.example.com/admin/x", &[], "block no admin"),
    ("open", "GET https://www.example.com/admin/x", &[], "block no admin"),
    ("open", "GET https://www.example.com/administrator", &[], "allow by-default [wide]"),
    ("open", "GET https://example.com/admin/x", &[], "allow by-default"),
    ("open", "GET https://never.example.com/", &[], "block never"),
    ("open", "GET https://never.example.com/admin/", &[], "block no admin"),
    // Every reading counts.
    ("mail", "GET https://gmail.example.com//admin", &["/admin"], "block no admin"),
    ("mail", "GET https://gmail.example.com/a;/../admin", &["/a", "/admin"], "block no admin"),
    ("other", "GET https://a.docs.example.com/public/x", &[], "allow docs"),
    ("other", "GET https://a.docs.example.com/public", &["/public/"], "allow docs"),
    ("other", "GET https://a.docs.example.com/public/x", &["/private/x"], "deny"),
    ("other", "GET https://a.docs.example.com//public/x", &["/public/x"], "deny"),
    ("mail", "GET https://gmail.example.com/gmail/x", &["/x"], "allow read mail [wide key]"),
    ("open", "GET https://www.example.com/at%40sign", &["/at@sign"], "block encoded"),
    ("open", "GET https://www.example.com/at@sign", &[], "block encoded"),
    // Limits count when any reading matches, and allow nothing.
    (
        "mail",
        "POST https://gmail.example.com/gmail/send",
        &[],
        "metered budget+send budget send mail [gmail-send key]",
    ),
    ("mail", "POST https://gmail.example.com/other", &[], "deny"),
    ("mail", "POST https://gmail.example.com/admin", &[], "block no admin"),
    (
        "mail",
        "GET https://gmail.example.com/gmail/send",
        &[],
        "metered send budget read mail [gmail-send key]",
    ),
    (
        "mail",
        "GET https://gmail.example.com/gmail/send/",
        &["/gmail/send"],
        "metered send budget read mail [gmail key]",
    ),
    // Ports.
    ("other", "GET https://port.example.com:8443/", &[], "allow high port"),
    ("other", "GET http://port.example.com:9443/", &[], "allow high port"),
    ("other", "GET https://port.example.com/", &[], "deny"),
    // Private addresses.
    ("other", "GET https://10.0.0.7/", &[], "allow internal private"),
    ("other", "GET http://[::ffff:10.0.0.7]/", &[], "allow internal private"),
    ("other", "GET https://10.0.0.8/", &[], "deny"),
    ("other", "GET https://internal.example.com/", &[], "allow internal private"),
    ("open", "GET https://10.0.0.7/", &[], "allow by-default"),
    // A rule that is switched off.
    ("other", "GET https://off.example.com/", &[], "deny"),
    // Children have the rules and grants of their ancestors, with their own default.
    ("child", "GET https://gmail.example.com/gmail/x", &[], "allow read mail [gmail key]"),
    (
        "child",
        "POST https://gmail.example.com/gmail/send",
        &[],
        "metered budget+send budget send mail [gmail-send key]",
    ),
    ("child", "GET https://www.example.com/", &[], "deny"),
    ("grandchild", "GET https://gmail.example.com/gmail/x", &[], "allow read mail [gmail key]"),
    ("grandchild", "POST https://elsewhere.example.net/", &[], "metered budget by-default"),
    ("grandchild", "GET https://gmail.example.com/admin", &[], "block no admin"),
    // Credentials: the narrower path, then the narrower host; only on their hosts, paths, ports and schemes.
    ("mail", "GET https://gmail.example.com/gmail", &[], "allow read mail [gmail key]"),
    ("mail", "GET https://gmail.example.com/gmailx", &[], "allow read mail [wide key]"),
    ("mail", "GET https://a.docs.example.com/public/", &[], "allow docs [wide]"),
    ("open", "GET https://plain.example.com/", &[], "allow by-default [wide plain]"),
    ("open", "GET http://plain.example.com/", &[], "allow by-default [plain]"),
    ("open", "GET https://plain.example.com:8443/", &[], "allow by-default [special port]"),
    ("open", "GET http://plain.example.com:8443/", &[], "allow by-default"),
    ("open", "GET https://example.com/", &[], "allow by-default"),
];

#[test]
fn the_strictest_matching_rule_decides() {
    let policy = policy(POLICY);
    for (name, line, readings, expected) in DECISIONS {
        let verdict = decide(&policy, &agent(name), &request(line, readings), NOW);
        assert_eq!(said(verdict), *expected, "{name} {line} {readings:?}");
    }
}

#[test]
fn a_name_is_permitted_if_some_request_to_it_could_be() {
    let policy = policy(POLICY);
    let rows = [
        ("mail", "gmail.example.com", NameVerdict::Permitted),
        ("mail", "GMAIL.example.com.", NameVerdict::Permitted),
        ("mail", "www.example.com", NameVerdict::Denied),
        ("mail", "x.docs.example.com", NameVerdict::Permitted),
        ("mail", "docs.example.com", NameVerdict::Denied),
        ("child", "gmail.example.com", NameVerdict::Permitted),
        ("other", "gmail.example.com", NameVerdict::Denied),
        ("other", "off.example.com", NameVerdict::Denied),
        ("other", "port.example.com", NameVerdict::Permitted),
        ("open", "anything.example.net", NameVerdict::Permitted),
        ("open", "www.example.com", NameVerdict::Permitted),
        ("open", "never.example.com", NameVerdict::Denied),
        ("nobody", "gmail.example.com", NameVerdict::Denied),
    ];
    for (name, host, expected) in rows {
        let host = HostName::parse(host).unwrap();
        assert_eq!(decide_name(&policy, &agent(name), &host, NOW), expected, "{name} {host}");
    }
}

#[test]
fn a_request_without_readings_is_matched_as_it_is_sent() {
    let policy = policy(POLICY);
    let mut head = request("GET https://a.docs.example.com/private", &[]);
    head.path.readings.clear();
    assert_eq!(said(decide(&policy, &agent("other"), &head, NOW)), "deny");
    let mut head = request("GET https://gmail.example.com/admin", &[]);
    head.path.readings.clear();
    assert_eq!(said(decide(&policy, &agent("mail"), &head, NOW)), "block no admin");
}

#[test]
fn an_exhausted_limit_gives_no_permit() {
    let policy = policy(POLICY);
    let head = request("POST https://gmail.example.com/gmail/send", &[]);
    let Verdict::Metered(metered) = decide(&policy, &agent("mail"), &head, NOW) else {
        panic!("not metered")
    };
    let limit = metered.limits()[0].clone();
    let budget = Budget {
        limit: 10,
        unit: Unit::Requests,
        window: Window::Hour,
        algorithm: Algorithm::Fixed,
    };
    assert_eq!(limit.budget, budget);
    let exhausted = ExhaustedLimit { limit, retry_after: Window::Hour.length() };
    assert_eq!(metered.settle(Err(exhausted.clone())).unwrap_err(), exhausted);
}

#[test]
fn a_permit_names_what_was_asked_for() {
    let policy = policy(POLICY);
    let head = request("GET https://gmail.example.com/gmail/x", &[]);
    let Verdict::Allow(permit) = decide(&policy, &agent("child"), &head, NOW) else {
        panic!("not allowed")
    };
    assert_eq!(permit.agent(), &agent("child"));
    assert_eq!(permit.destination(), &head.destination);
}

proptest! {
    #[test]
    fn the_order_of_rules_changes_no_decision(
        order in Just((0..6).collect::<Vec<usize>>()).prop_shuffle(),
        path in "(/[ab]{0,2}){1,3}",
        method in "GET|POST",
    ) {
        let rules = [
            "name = \"0\"\npaths = [\"/a/*\"]\naction = \"block\"",
            "name = \"1\"\npaths = [\"/a*\"]\naction = \"allow\"",
            "name = \"2\"\nhosts = [\"*.x.example\"]\naction = \"allow\"\nallow_private = true",
            "name = \"3\"\nhosts = [\"h.x.example\"]\nmethods = [\"POST\"]\npaths = [\"/*/b\"]\naction = \"block\"",
            "name = \"4\"\nmethods = [\"POST\"]\naction = \"rate_limit\"\nlimit = 1\nwindow = \"day\"",
            "name = \"5\"\nhosts = [\"h.x.example\"]\npaths = [\"/b*\"]\naction = \"rate_limit\"\nlimit = 1\nwindow = \"day\"",
        ];
        let text = |order: &[usize]| {
            let rules: Vec<_> = order.iter().map(|i| format!("[[rule]]\n{}\n", rules[*i])).collect();
            format!("[[agent]]\nname = \"a\"\n{}", rules.concat())
        };
        let kind = |verdict: Verdict| match verdict {
            Verdict::Metered(metered) => {
                let mut limits: Vec<_> = metered.limits().iter().map(|l| l.rule.as_str().to_owned()).collect();
                limits.sort();
                let private = metered.settle(Ok(())).unwrap().allow_private();
                format!("metered {limits:?} {private}")
            }
            Verdict::Allow(permit) => format!("allow {}", permit.allow_private()),
            Verdict::Block { .. } => "block".to_owned(),
            Verdict::DefaultDeny => "deny".to_owned(),
            Verdict::UnknownAgent => "unknown".to_owned(),
        };
        let head = request(&format!("{method} https://h.x.example{path}"), &[]);
        let sorted: Vec<usize> = (0..6).collect();
        let expected = kind(decide(&policy(&text(&sorted)), &agent("a"), &head, NOW));
        prop_assert_eq!(kind(decide(&policy(&text(&order)), &agent("a"), &head, NOW)), expected);
    }
}
