use proptest::prelude::*;

use super::*;

#[test]
fn three_mistakes_are_told_with_three_places() {
    let text = r#"
[[agent]]
name = "email-agent"

[[rule]]
name = "read mail"
agents = ["email-agnet"]
hosts = ["https://gmail.googleapis.com"]
metods = ["GET"]
action = "allow"
"#;
    let errors = parse(text).unwrap_err().to_string();
    let expected = "\
t.toml:7:11: there is no agent `email-agnet`
  help: did you mean `email-agent`?
t.toml:8:10: `https://gmail.googleapis.com` is not a host pattern: a host pattern has no scheme
  help: write the host alone, without `https://`
t.toml:9:1: unknown key `metods` in [[rule]]
  help: did you mean `methods`?";
    assert_eq!(errors, expected);
}

#[test]
fn syntax_errors_do_not_hide_other_mistakes() {
    let text = "[gateway]\nport = 1 2\n\n[dns]\ndenied = \"maybe\"\n";
    let errors = refused(text);
    assert!(errors[0].starts_with("2:"), "{errors:?}");
    assert!(errors[0].contains("not valid TOML"), "{errors:?}");
    assert_eq!(errors.last().unwrap(), "5:10: `denied` cannot be \"maybe\"");
}

#[test]
fn columns_count_characters() {
    let errors = refused("[gateway]\n\"é\" = 1\n[[rule]]\nname = \"é\"\naction = \"é\"\n");
    assert_eq!(errors, ["2:1: unknown key `é` in [gateway]", "5:10: `action` cannot be \"é\""]);
    let errors = refused("dns = { denied = \"explain\", é = 1 }");
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[test]
fn mistakes_about_a_network_are_refused_and_it_is_sealed_without_words() {
    let rows = [
        ("network = \"open\"", "`network` cannot be \"open\""),
        ("network = \"neighbours\"", "`network` is \"neighbours\", and there are none"),
        ("neighbours = [\"10.0.0.0/24:5432\"]", "`neighbours` has no effect on a sealed network"),
        (
            "network = \"sealed\"\nneighbours = [\"10.0.0.0/24:5432\"]",
            "`neighbours` has no effect on a sealed network",
        ),
        (
            "network = \"neighbours\"\nneighbours = []",
            "`neighbours` is empty and would match nothing",
        ),
        (
            "network = \"neighbours\"\nneighbours = [\"[fd00::/64]:5432\"]",
            "\"[fd00::/64]:5432\" is no neighbour: IPv6 neighbours are not supported",
        ),
        (
            "network = \"neighbours\"\nneighbours = [\"10.0.0.2:53\"]",
            "\"10.0.0.2:53\" is no neighbour: DNS always goes to the gateway",
        ),
        ("inbound = [0]", "a port is between 1 and 65535"),
        ("inbound = [53]", "port 53 is the gateway's in every workload"),
    ];
    for (keys, expected) in rows {
        let errors = refused(&format!("[[agent]]\nname = \"a\"\n{keys}\n"));
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].ends_with(expected), "{errors:?}");
    }
    let text = "[[agent]]\nname = \"a\"\n[[agent]]\nname = \"b\"\nnetwork = \"neighbours\"\n\
                neighbours = [\"10.0.0.0/24:5432\"]\ninbound = [8080, 80, 80]\n";
    let config = parse(text).unwrap();
    let openings: Vec<_> = config.policy.agents().map(|agent| &agent.openings).collect();
    assert_eq!(*openings[0], crate::net::Openings::default());
    let neighbours = vec!["10.0.0.0/24:5432".parse().unwrap()];
    assert_eq!(*openings[1], crate::net::Openings { neighbours, inbound: vec![80, 8080] });
}

/// A rule whose other keys are right.
fn rule(keys: &str) -> String {
    let action = if keys.contains("action") { "" } else { "action = \"block\"\n" };
    format!("[[rule]]\nname = \"r\"\n{action}{keys}\n")
}

/// Keys of a rule, and what is said about them.
const RULE_MISTAKES: &[(&str, &str)] = &[
    (
        "hosts = [\"*.com\"]",
        "`*.com` is not a host pattern: `*.com` would match names that anybody can register",
    ),
    (
        "hosts = [\"a.*.example.com\"]",
        "is not a host pattern: `*` may stand only as the whole first label",
    ),
    ("hosts = [\"a.example:443\"]", "is not a host pattern: a host pattern has no port"),
    ("hosts = [\"a.example/x\"]", "is not a host pattern: a host pattern has no path"),
    ("hosts = [\"*\"]", "is not a host pattern: `*` alone"),
    ("hosts = []", "`hosts` is empty and would match nothing"),
    ("hosts = \"a.example\"", "`hosts` must be a list, not a string"),
    ("hosts = [1]", "`hosts` must be a string, not an integer"),
    ("paths = [\"a\"]", "`a` is not a path pattern: a path pattern begins with `/`"),
    ("paths = [\"/a/**\"]", "is not a path pattern: `**` is no wildcard"),
    ("paths = [\"/a?b\"]", "is not a path pattern: a path pattern has no query"),
    ("paths = []", "`paths` is empty"),
    ("methods = [\"GE T\"]", "`GE T` is not a method"),
    ("methods = [\"*\"]", "`*` is not a method"),
    ("methods = [\"GTE\"]", "`GTE` is not a known method"),
    ("methods = []", "`methods` is empty"),
    ("agents = []", "`agents` is empty"),
    ("agents = [\"A\"]", "`A` is not an agent name"),
    ("agents = [\"nobody\"]", "there is no agent `nobody`"),
    ("ports = [0]", "a port is between 1 and 65535"),
    ("ports = [65536]", "a port is between 1 and 65535"),
    ("ports = [99999999999999999999]", "a port is between 1 and 65535"),
    ("ports = [\"443\"]", "`ports` must be an integer, not a string"),
    ("ports = []", "`ports` is empty"),
    ("enabled = \"no\"", "`enabled` must be true or false, not a string"),
    ("limit = 5", "`limit` belongs to rate_limit rules only"),
    ("window = \"hour\"", "`window` belongs to rate_limit rules only"),
    ("action = \"allow\"\nlimit = 5", "`limit` belongs to rate_limit rules only"),
    ("action = \"rate_limit\"\nwindow = \"hour\"", "a rate_limit rule needs `limit`"),
    ("action = \"rate_limit\"\nlimit = 5", "a rate_limit rule needs `window`"),
    ("action = \"rate_limit\"\nlimit = 0\nwindow = \"hour\"", "`limit` is between 1 and 1000000"),
    ("action = \"rate_limit\"\nlimit = -1\nwindow = \"hour\"", "`limit` is between 1 and 1000000"),
    (
        "action = \"rate_limit\"\nlimit = 1000001\nwindow = \"hour\"",
        "`limit` is between 1 and 1000000",
    ),
    (
        "action = \"rate_limit\"\nlimit = 1.5\nwindow = \"hour\"",
        "`limit` must be an integer, not a float",
    ),
    ("action = \"rate_limit\"\nlimit = 1\nwindow = \"week\"", "`window` cannot be \"week\""),
    ("unit = \"bytes\"", "`unit` belongs to rate_limit rules only"),
    ("algorithm = \"sliding\"", "`algorithm` belongs to rate_limit rules only"),
    (
        "action = \"rate_limit\"\nlimit = 1\nwindow = \"day\"\nunit = \"token\"",
        "`unit` cannot be \"token\"",
    ),
    (
        "action = \"rate_limit\"\nlimit = 1\nwindow = \"day\"\nalgorithm = \"slide\"",
        "`algorithm` cannot be \"slide\"",
    ),
    (
        "action = \"rate_limit\"\nlimit = 0\nwindow = \"day\"\nunit = \"tokens\"",
        "`limit` is between 1 and 1000000000000",
    ),
    (
        "action = \"rate_limit\"\nlimit = 1000000000001\nwindow = \"day\"\nunit = \"bytes\"",
        "`limit` is between 1 and 1000000000000",
    ),
    ("action = \"rate-limit\"", "`action` cannot be \"rate-limit\""),
    ("action = \"approve\"", "the action `approve` is not supported yet"),
    ("action = \"passthrough\"", "the action `passthrough` is not supported yet"),
    ("action = 1", "`action` must be a string, not an integer"),
    ("mode = \"dry-run\"", "`mode` cannot be \"dry-run\""),
    (
        "action = \"rate_limit\"\nlimit = 1\nwindow = \"day\"\nunit = \"bytes\"\nmode = \"shadow\"",
        "a limit of bytes in shadow is not supported yet",
    ),
    ("mode = true", "`mode` must be a string, not a boolean"),
    ("when = {}", "`when` of [[rule]] is not supported yet"),
    ("protocol = \"tcp\"", "the protocol `tcp` is not supported yet"),
    ("protocol = \"HTTPS\"", "`protocol` cannot be \"HTTPS\""),
    ("protocol = \"ftp\"", "`protocol` cannot be \"ftp\""),
    ("protocol = [\"http\"]", "`protocol` must be a string, not a list"),
    ("expires = \"tomorrow\"", "`tomorrow` is not a date and time of RFC 3339"),
    ("expires = \"2027-01-31\"", "`2027-01-31` is not a date and time of RFC 3339"),
    ("expires = 2027-01-31", "`2027-01-31` is not a date and time of RFC 3339"),
    ("expires = 2027-01-31T18:00:00", "`2027-01-31T18:00:00` is not a date and time"),
    ("expires = \"2027-02-30T18:00:00Z\"", "`2027-02-30T18:00:00Z` is not a date and time"),
    ("expires = \"2027-01-31T18:00:00+01:00[Europe/Berlin]\"", "is not a date and time"),
    ("expires = \"+002027-01-31T18:00:00Z\"", "is not a date and time"),
    ("expires = 1798675200", "`expires` must be a date and time, not an integer"),
    ("hours = []", "`hours` is empty and would match nothing"),
    ("hours = \"09:00-17:00\"", "`hours` must be a list, not a string"),
    ("hours = [\"9-17\"]", "`9-17` is not a span of hours: it is not of the form HH:MM-HH:MM"),
    ("hours = [\"09:00\"]", "`09:00` is not a span of hours: it is not of the form"),
    ("hours = [\"09:60-17:00\"]", "`09:60-17:00` is not a span of hours"),
    ("hours = [\"24:00-06:00\"]", "`24:00-06:00` is not a span of hours"),
    ("hours = [\"00:00-24:01\"]", "`00:00-24:01` is not a span of hours"),
    ("hours = [\"+9:00-17:00\"]", "`+9:00-17:00` is not a span of hours"),
    ("hours = [\"09:00-09:00\"]", "is not a span of hours: it begins and ends at the same minute"),
    ("days = []", "`days` is empty and would match nothing"),
    ("days = [\"monday\"]", "`monday` is neither a day of the week nor a span of them"),
    ("days = [\"mon-\"]", "`mon-` is neither"),
    ("days = [\"mon-wed-fri\"]", "`mon-wed-fri` is neither"),
    ("days = [1]", "`days` must be a string, not an integer"),
    ("time_zone = \"UTC\"", "`time_zone` has no effect without `hours` or `days`"),
    ("days = [\"mon\"]\ntime_zone = \"Europe/Berlinn\"", "there is no time zone `Europe/Berlinn`"),
    ("days = [\"mon\"]\ntime_zone = \"CET/../../etc/passwd\"", "there is no time zone"),
    ("days = [\"mon\"]\ntime_zone = \"local\"", "there is no time zone `local`"),
    ("allow_private = true", "`allow_private` belongs to allow rules only"),
    ("host = [\"a.example\"]", "unknown key `host` in [[rule]]"),
    ("whatever = 1", "unknown key `whatever` in [[rule]]"),
];

#[test]
fn mistakes_of_rules_are_refused() {
    for (keys, expected) in RULE_MISTAKES {
        let errors = refused(&rule(keys));
        assert_eq!(errors.len(), 1, "{keys} gave {errors:?}");
        assert!(errors[0].contains(expected), "{keys} gave {errors:?}");
    }
    assert_eq!(refused("[[rule]]\naction = \"allow\""), ["1:1: [[rule]] has no `name`"]);
    assert_eq!(refused("[[rule]]\nname = \"r\""), ["1:1: [[rule]] has no `action`"]);
    assert_eq!(refused("[rule]\nname = \"r\""), ["1:1: `rule` must be a list of tables"]);
    assert_eq!(refused("[[rule]]\nname = \" r\"\naction = \"allow\"").len(), 1);
}

/// What people read when they are wrong about a rule, whole: each mistake with its place and its remedy.
#[test]
fn the_words_about_mistakes_of_rules_are_these() {
    let whole = RULE_MISTAKES.iter().map(|(keys, _expected)| *keys);
    let words = whole.map(|keys| match parse(&rule(keys)) {
        Ok(_config) => panic!("{keys} is accepted"),
        Err(errors) => format!("{keys}\n{errors}\n"),
    });
    insta::assert_snapshot!(words.collect::<Vec<_>>().join("\n"));
}

/// A credential whose other keys are right, granted to the agent `a`.
fn credential(replaced: &str, keys: &str) -> String {
    let usual = [
        ("name", "name = \"c\""),
        ("source", "source = { env = \"C\" }"),
        ("hosts", "hosts = [\"c.example.com\"]"),
        ("inject", "inject = { header = \"Authorization\", format = \"Bearer {value}\" }"),
        ("agents", "agents = [\"a\"]"),
    ];
    let lines: Vec<_> =
        usual.iter().filter(|(key, _)| *key != replaced).map(|(_, line)| *line).collect();
    format!("[[credential]]\n{}\n{keys}\n", lines.join("\n"))
}

/// What is left out, what stands there instead, and what is said about it.
const CREDENTIAL_MISTAKES: &[(&str, &str, &str)] = &[
    ("name", "", "[[credential]] has no `name`"),
    ("name", "name = \"\"", "a name has 1 to 100 characters"),
    ("source", "", "[[credential]] has no `source`"),
    ("source", "source = \"hunter2\"", "`source` must be a table, not a string"),
    ("source", "source = {}", "`source` names no source"),
    ("source", "source = { file = \"/a\", env = \"A\" }", "`source` names two sources"),
    ("source", "source = { file = \"\" }", "`file` is not a path"),
    ("source", "source = { env = \"1A\" }", "`env` is not the name of an environment variable"),
    ("source", "source = { env = \"\" }", "`env` is not the name of an environment variable"),
    ("source", "source = { command = [\"x\"] }", "`command` of `source` is not supported yet"),
    ("source", "source = { store = \"x\" }", "`store` of `source` is not supported yet"),
    ("source", "source = { env = \"A\", value = \"hunter2\" }", "unknown key `value` in `source`"),
    ("hosts", "", "[[credential]] has no `hosts`"),
    ("hosts", "hosts = []", "`hosts` is empty"),
    ("hosts", "hosts = [\"*.co.uk\"]", "is not a host pattern"),
    ("inject", "", "[[credential]] has no `inject`"),
    ("inject", "inject = { header = \"A\" }", "`inject` has no `format`"),
    ("inject", "inject = { format = \"{value}\" }", "`inject` names no `header`"),
    ("inject", "inject = { header = \"A\", format = \"hunter2\" }", "`format` has no `{value}`"),
    (
        "inject",
        "inject = { header = \"A\", format = \"{value}\\n\" }",
        "`format` is not a valid field value",
    ),
    (
        "inject",
        "inject = { header = \"A\", format = \" {value}\" }",
        "`format` is not a valid field value",
    ),
    (
        "inject",
        "inject = { header = \"A\", format = \"é{value}\" }",
        "`format` is not a valid field value",
    ),
    (
        "inject",
        "inject = { header = \"A B\", format = \"{value}\" }",
        "`A B` is not the name of a header field",
    ),
    (
        "inject",
        "inject = { header = \"Host\", format = \"{value}\" }",
        "the header field `host` cannot carry",
    ),
    (
        "inject",
        "inject = { query = \"key\", format = \"{value}\" }",
        "`query` of `inject` is not supported yet",
    ),
    ("inject", "inject = { path = \"/bot{value}/\" }", "`path` of `inject` is not supported yet"),
    (
        "inject",
        "inject = { basic = { username = \"git\" } }",
        "`basic` of `inject` is not supported yet",
    ),
    ("inject", "inject = { type = \"aws\" }", "`type` of `inject` is not supported yet"),
    ("agents", "agents = [\"b\"]", "there is no agent `b`"),
    ("", "paths = [\"x\"]", "is not a path pattern"),
    ("", "env = \"A-B\"", "`env` is not the name of an environment variable"),
    ("", "allow_plaintext = 1", "`allow_plaintext` must be true or false, not an integer"),
    ("", "port = 443", "unknown key `port` in [[credential]]"),
];

#[test]
fn mistakes_of_credentials_are_refused() {
    for (replaced, keys, expected) in CREDENTIAL_MISTAKES {
        let text = format!("[[agent]]\nname = \"a\"\n{}", credential(replaced, keys));
        let errors = refused(&text);
        assert_eq!(errors.len(), 1, "{keys} gave {errors:?}");
        assert!(errors[0].contains(expected), "{keys} gave {errors:?}");
        assert!(
            !parse(&text).unwrap_err().to_string().contains("hunter2"),
            "a secret is quoted: {errors:?}"
        );
    }
}

#[test]
fn mistakes_of_agents_and_sections_are_refused() {
    let rows = [
        ("[[agent]]\ndefault = \"deny\"", "1:1: [[agent]] has no `name`"),
        ("[[agent]]\nname = \"A b\"", "2:8: `A b` is not an agent name"),
        ("[[agent]]\nname = \"a\"\ndefault = \"ask\"", "3:11: `default` cannot be \"ask\""),
        ("[[agent]]\nname = \"a\"\nparent = \"b\"", "3:10: there is no agent `b`"),
        ("[[agent]]\nname = \"a\"\nmatch = {}", "3:9: `match` has no condition"),
        ("[[agent]]\nname = \"a\"\nmatch = { container = \"\" }", "`container` cannot be \"\""),
        (
            "[[agent]]\nname = \"a\"\nmatch = { label = { x = \"y\" }, cgroup = \"/a\" }",
            "unknown key `label` in `match`",
        ),
        (
            "[[agent]]\nname = \"a\"\nmatch = { labels = { x = 1 }, cgroup = \"/a\" }",
            "`labels` must be a string",
        ),
        ("[[agent]]\nname = \"a\"\n[[agent]]\nname = \"a\"", "4:8: the agent `a` exists already"),
        ("[gateway]\nport = 0", "2:8: the port is between 1 and 65535"),
        ("[gateway]\nport = 53", "2:8: the port is between 1 and 65535"),
        ("[gateway]\nprot = 1", "2:1: unknown key `prot` in [gateway]"),
        ("[gateway]\nstate_dir = 1", "2:13: `state_dir` must be a string"),
        ("gateway = 1", "1:11: `gateway` must be a table, not an integer"),
        ("[dns]\ndenied = true", "2:10: `denied` must be a string"),
        (
            "[upstream]\nresolvers = [\"192.0.2.1\"]",
            "2:14: `192.0.2.1` is not the address and port of a DNS server",
        ),
        (
            "[upstream.hosts]\n\"*.a.example\" = [\"10.0.0.1\"]",
            "2:1: `*.a.example` is neither a host name",
        ),
        (
            "[upstream.hosts]\n\"a.example\" = \"10.0.0.1\"",
            "2:15: `\"name\"` must be a list of addresses",
        ),
        ("[upstream.hosts]\n\"a.example\" = []", "2:15: the list of addresses is empty"),
        (
            "[upstream.hosts]\n\"a.example\" = [\"b.example\"]",
            "2:16: `b.example` is not an IP address",
        ),
        (
            "[upstream.hosts]\n\"a.example\" = [\"::1\"]\n\"A.example\" = [\"::1\"]",
            "`a.example` stands twice",
        ),
        ("[state]\nurl = \"redis://a\"", "1:2: `state` of the file is not supported yet"),
        ("[rules]\n", "1:2: unknown key `rules` in the file"),
    ];
    for (text, expected) in rows {
        let errors = refused(text);
        assert_eq!(errors.len(), 1, "{text} gave {errors:?}");
        assert!(errors[0].contains(expected), "{text} gave {errors:?}");
    }
}

#[test]
fn parents_in_a_circle_are_refused() {
    let text = "[[agent]]\nname = \"a\"\nparent = \"b\"\n[[agent]]\nname = \"b\"\nparent = \"c\"\n\
                [[agent]]\nname = \"c\"\nparent = \"b\"\n[[agent]]\nname = \"d\"\nparent = \"d\"\n";
    let expected = [
        "6:10: `b` would descend from itself (b → c)",
        "9:10: `c` would descend from itself (c → b)",
        "12:10: `d` would descend from itself (d)",
    ];
    assert_eq!(refused(text), expected);
}

#[test]
fn names_are_unique_among_their_kind() {
    let text = format!("{}{}{}", rule(""), rule(""), "[[agent]]\nname = \"r\"\n");
    assert_eq!(refused(&text), ["6:8: the rule `r` exists already"]);
    let text = format!(
        "[[agent]]\nname = \"a\"\n{}{}",
        credential("agents", ""),
        credential("agents", "")
    );
    assert_eq!(refused(&text), ["10:8: the credential `c` exists already"]);
}

#[test]
fn two_credentials_that_would_set_the_same_thing_are_refused() {
    let agents = "[[agent]]\nname = \"a\"\n[[agent]]\nname = \"b\"\nparent = \"a\"\n[[agent]]\nname = \"z\"\n";
    let two = |first: &str, second: &str| {
        let entry = |name: &str, keys: &str| {
            let mut text =
                format!("[[credential]]\nname = \"{name}\"\nsource = {{ env = \"X\" }}\n{keys}\n");
            for (key, usual) in [
                ("hosts", "hosts = [\"h.example.com\"]"),
                ("inject", "inject = { header = \"A\", format = \"{value}\" }"),
                ("agents", "agents = [\"a\"]"),
            ] {
                if !keys.contains(key) {
                    text += usual;
                    text += "\n";
                }
            }
            text
        };
        format!("{agents}{}{}", entry("one", first), entry("two", second))
    };
    let rivals = [
        ("", ""),
        ("", "agents = [\"b\"]"),
        ("", "inject = { header = \"a\", format = \"x {value}\" }"),
        ("", "paths = [\"/*\"]"),
        ("paths = [\"/a/*\"]", "paths = [\"/b\", \"/a/*\"]"),
        ("paths = [\"/x*y\"]", "paths = [\"/x*z\", \"/x*y\"]"),
        ("hosts = [\"*.example.com\"]", "hosts = [\"x.example.com\", \"*.EXAMPLE.com\"]"),
    ];
    for (first, second) in rivals {
        let text = two(first, second);
        let errors = refused(&text);
        assert_eq!(errors.len(), 1, "{first} / {second}: {errors:?}");
        let expected = "`two` and `one` would both set the header field `a` for the agent";
        assert!(errors[0].contains(expected), "{first} / {second}: {errors:?}");
    }
    let peaceful = [
        ("", "agents = [\"z\"]"),
        ("", "agents = []"),
        ("", "inject = { header = \"B\", format = \"{value}\" }"),
        ("", "hosts = [\"*.example.com\"]"),
        ("", "hosts = [\"g.example.com\"]"),
        ("", "paths = [\"/a/*\"]"),
        ("paths = [\"/b/*\"]", "paths = [\"/a/*\"]"),
        ("paths = [\"/a*c\"]", "paths = [\"/ab*\"]"),
        ("", "ports = [8443]"),
    ];
    for (first, second) in peaceful {
        accepted(&two(first, second));
    }
    let same_variable = two("env = \"T\"", "env = \"T\"\nhosts = [\"g.example.com\"]");
    let errors = refused(&same_variable);
    assert!(errors[0].contains("would both set the variable `T` for the agent `a`"), "{errors:?}");
}

proptest! {
    #[test]
    fn a_damaged_file_never_panics(cut in 0_usize..WHOLE.len(), length in 0_usize..40, noise in "[\\[\\]{}=\".,a1\\n# ]{0,12}") {
        let end = (cut + length).min(WHOLE.len());
        let damaged = format!("{}{noise}{}", &WHOLE[..cut], &WHOLE[end..]);
        if let Err(errors) = parse(&damaged) {
            prop_assert!(!errors.diagnostics().is_empty());
            for diagnostic in errors.diagnostics() {
                prop_assert!(diagnostic.line <= damaged.matches('\n').count() + 1);
            }
        }
    }
}
