//! What holds for every set of rules and every request.

use super::conformance::arrived;
use super::*;

/// One `[[rule]]` without its name.
fn a_rule(action: impl Strategy<Value = &'static str>) -> impl Strategy<Value = String> {
    let conditions = (
        prop_oneof![
            Just(""),
            Just("hosts = ['h.x.example']\n"),
            Just("hosts = ['*.x.example']\n"),
            Just("hosts = ['*.x.example', 'h.x.example', 'h.x.example']\n"),
            Just("hosts = ['o.y.example', '192.0.2.1']\n"),
        ],
        prop_oneof![Just(""), Just("methods = ['GET']\n"), Just("methods = ['POST', 'BREW']\n"),],
        prop_oneof![
            3 => Just(String::new()),
            5 => "(/([ab*]|a\\*|\\*b|%3A)?){1,3}".prop_map(|path| format!("paths = ['{path}']\n")),
        ],
        prop_oneof![
            4 => Just(""),
            1 => Just("ports = [8443]\n"),
            1 => Just("protocol = 'https'\n"),
        ],
        prop_oneof![
            4 => Just(""),
            1 => Just("agents = ['parent']\n"),
            1 => Just("agents = ['child', 'parent']\n"),
            1 => Just("agents = ['other']\n"),
        ],
        prop_oneof![
            5 => Just(""),
            1 => Just("hours = ['00:00-12:00']\n"),
            1 => Just("expires = 1970-01-01T00:00:00Z\n"),
        ],
    );
    (action, conditions).prop_map(|(action, (hosts, methods, paths, ways, agents, times))| {
        format!("action = {action}\n{hosts}{methods}{paths}{ways}{agents}{times}")
            .replace("['**", "['/a*")
    })
}

fn any_action() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        Just("'allow'"),
        Just("'allow'"),
        Just("'allow'\nallow_private = true"),
        Just("'block'"),
        Just("'rate_limit'\nlimit = 1\nwindow = 'day'"),
    ]
}

fn rules(count: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<String>> {
    let rules = proptest::collection::vec(a_rule(any_action()), count);
    rules.prop_filter("`**` is no wildcard", |rules| rules.iter().all(|rule| !rule.contains("**")))
}

fn a_request() -> impl Strategy<Value = RequestHead> {
    let line = (
        "GET|POST|BREW",
        "https?",
        "h.x.example|g.h.x.example|o.y.example|192.0.2.1",
        "|:8443",
        "/[ab;:./]{0,6}(%3[aB])?[ab/]{0,3}",
    );
    let line = line.prop_map(|(method, scheme, host, port, path)| {
        format!("{method} {scheme}://{host}{port}{path}")
    });
    line.prop_filter_map("no request", |line| arrived(&line).ok())
}

/// A policy of numbered rules for the agent `child`, whose default is `default`.
fn policy_of(default: &str, rules: &[String], also: &str) -> std::sync::Arc<Policy> {
    let mut text = format!(
        "[[agent]]\nname = 'parent'\n[[agent]]\nname = 'other'\n\
         [[agent]]\nname = 'child'\nparent = 'parent'\ndefault = '{default}'\n"
    );
    for (number, rule) in rules.iter().enumerate() {
        text += &format!("[[rule]]\nname = '{number}'\n{rule}");
    }
    policy(&(text + also))
}

/// What becomes of a request, without the names of rules: the lower, the stricter.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Refused,
    Counted { private: bool },
    Permitted { private: bool },
}

fn outcome(verdict: Verdict) -> Outcome {
    match verdict {
        Verdict::Allow(permit) => Outcome::Permitted { private: permit.allow_private() },
        Verdict::Metered(metered) => {
            let permit = metered.settle(Ok(())).unwrap();
            Outcome::Counted { private: permit.allow_private() }
        }
        Verdict::Block { .. } | Verdict::DefaultDeny | Verdict::UnknownAgent => Outcome::Refused,
    }
}

fn decided(policy: &Policy, head: &RequestHead) -> Verdict {
    decide(policy, &agent("child"), head, NOW)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn strictest_wins_is_commutative(
        (rules, shuffled) in rules(0..8).prop_flat_map(|rules| (Just(rules.clone()), Just(rules).prop_shuffle())),
        default in "allow|deny",
        head in a_request(),
    ) {
        let one = outcome(decided(&policy_of(&default, &rules, ""), &head));
        let other = outcome(decided(&policy_of(&default, &shuffled, ""), &head));
        prop_assert_eq!(one, other, "{:?} and {:?}", rules, shuffled);
    }

    #[test]
    fn strictest_wins_is_idempotent(rules in rules(0..6), default in "allow|deny", head in a_request()) {
        let once = decided(&policy_of(&default, &rules, ""), &head);
        let twice = decided(&policy_of(&default, &[rules.clone(), rules.clone()].concat(), ""), &head);
        prop_assert_eq!(outcome(once), outcome(twice), "{:?}", rules);
    }

    #[test]
    fn a_further_rule_that_forbids_never_permits_more(
        rules in rules(0..6),
        more in a_rule(prop_oneof![Just("'block'"), Just("'rate_limit'\nlimit = 1\nwindow = 'day'")]),
        default in "allow|deny",
        head in a_request(),
    ) {
        prop_assume!(!more.contains("**"));
        let before = outcome(decided(&policy_of(&default, &rules, ""), &head));
        let after = [rules.clone(), vec![more.clone()]].concat();
        let after = outcome(decided(&policy_of(&default, &after, ""), &head));
        prop_assert!(after <= before, "{:?} became {:?} with {} beside {:?}", before, after, more, rules);
    }

    #[test]
    fn a_further_rule_that_allows_never_refuses_more(
        rules in rules(0..6),
        more in a_rule(prop_oneof![Just("'allow'"), Just("'allow'\nallow_private = true")]),
        default in "allow|deny",
        head in a_request(),
    ) {
        prop_assume!(!more.contains("**"));
        let before = outcome(decided(&policy_of(&default, &rules, ""), &head));
        let after = [rules.clone(), vec![more.clone()]].concat();
        let after = outcome(decided(&policy_of(&default, &after, ""), &head));
        prop_assert!(after >= before, "{:?} became {:?} with {} beside {:?}", before, after, more, rules);
    }

    #[test]
    fn shadow_changes_nothing_and_says_what_it_would_change(
        rules in rules(0..5),
        shadow in rules(1..5),
        default in "allow|deny",
        head in a_request(),
    ) {
        let named = |mode: &str| -> String {
            let entries = shadow.iter().enumerate();
            entries.map(|(i, rule)| format!("[[rule]]\nname = 's{i}'\nmode = '{mode}'\n{rule}")).collect()
        };
        let without = policy_of(&default, &rules, "");
        let watched = policy_of(&default, &rules, &named("shadow"));
        let enforced = policy_of(&default, &rules, &named("enforce"));
        let real = outcome(decided(&without, &head));
        prop_assert_eq!(said(decided(&watched, &head)), said(decided(&without, &head)));
        let host = HostName::parse("h.x.example").unwrap();
        let child = agent("child");
        prop_assert_eq!(
            decide_name(&watched, &child, &host, NOW),
            decide_name(&without, &child, &host, NOW)
        );
        prop_assert_eq!(rehearse(&without, &child, &head, NOW), None);
        let would_be = decided(&enforced, &head);
        match rehearse(&watched, &child, &head, NOW) {
            None => {
                let counts = |outcome: &Outcome| matches!(outcome, Outcome::Counted { .. });
                let would_be = outcome(would_be);
                prop_assert_eq!(real == Outcome::Refused, would_be == Outcome::Refused);
                prop_assert!(counts(&real) || !counts(&would_be), "{:?}", shadow);
            }
            Some(WouldHave::Block { rule }) => {
                prop_assert_ne!(real, Outcome::Refused);
                prop_assert_eq!(said(would_be), format!("block {rule}"));
            }
            Some(WouldHave::Allow { .. }) => {
                prop_assert_eq!(real, Outcome::Refused);
                prop_assert_ne!(outcome(would_be), Outcome::Refused);
            }
            Some(WouldHave::Count { limits }) => {
                prop_assert_ne!(real, Outcome::Refused);
                let Verdict::Metered(metered) = would_be else { panic!("{would_be:?} is not counted") };
                prop_assert!(limits.iter().all(|limit| metered.limits().contains(limit)));
            }
        }
    }

    #[test]
    fn a_re_encoded_request_is_the_same_request(
        labels in proptest::collection::vec("[a-z]([a-z0-9-]{0,5}[a-z0-9])?", 1..4),
        path in "(/[a-z~._:@-]{0,4}(%20|%3A|%C3%A9)?){1,4}",
        port in prop_oneof![Just(""), Just(":443"), Just(":8443")],
        choices in proptest::collection::vec(any::<u8>(), 64),
    ) {
        let host = format!("{}.example", labels.join("."));
        let path: String = path.split('/').skip(1).map(|s| format!("/{}", s.trim_matches('.'))).collect();
        let plain = arrived(&format!("GET https://{host}{port}{path}")).unwrap();
        let line = format!("GET https://{}{}", re_encoded_authority(&host, port, &choices), re_encoded_path(&path, &choices));
        prop_assert_eq!(arrived(&line), Ok(plain), "{}", line);
    }

    #[test]
    fn an_address_is_the_same_host_in_every_form(bits in any::<u128>(), zeros in any::<[bool; 8]>(), choices in proptest::collection::vec(any::<u8>(), 48)) {
        let mut groups = bits.to_be_bytes().chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect::<Vec<_>>();
        for (group, zero) in groups.iter_mut().zip(zeros) {
            *group = if zero { 0 } else { *group };
        }
        let groups: [u16; 8] = groups.try_into().unwrap();
        let plain = arrived(&format!("GET https://[{}]/", std::net::Ipv6Addr::from(groups))).unwrap();
        let long: Vec<_> = groups.iter().zip(&choices).map(|(group, choice)| match choice % 3 {
            0 => format!("{group:x}"),
            1 => format!("{group:04X}"),
            _ => format!("{group:03x}"),
        }).collect();
        let [.., high, low] = groups;
        let dotted = format!("{}:{}", long[..6].join(":"), std::net::Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
        for form in [long.join(":"), dotted] {
            prop_assert_eq!(arrived(&format!("GET https://[{form}]:443/")), Ok(plain.clone()), "{}", form);
        }
    }

    #[test]
    fn a_name_of_another_script_is_its_a_label(label in "[a-zäöüßéñçøåжщяπωλ日本語]{1,12}", upper in any::<bool>()) {
        prop_assume!(!label.is_ascii());
        let name = format!("{label}.example");
        let spelled = if upper && !label.contains('ß') { name.to_uppercase() } else { name.clone() };
        let Ok(pattern) = HostPattern::parse(&spelled) else { return Ok(()) };
        let a_label = Host::parse(&name).unwrap().to_string();
        prop_assert!(a_label.is_ascii());
        let asked = arrived(&format!("GET https://{}/", a_label.to_uppercase())).unwrap();
        prop_assert!(pattern.matches(&asked.destination.host));
    }

    #[test]
    fn the_index_finds_what_the_patterns_match(
        patterns in proptest::collection::vec("(\\*\\.)?([ab]\\.){0,3}x\\.example|192\\.0\\.2\\.[12]", 1..12),
        host in "([abc]\\.){0,4}x\\.example|192\\.0\\.2\\.[123]",
    ) {
        let patterns: Vec<_> = patterns.iter().map(|text| HostPattern::parse(text).unwrap()).collect();
        let host = Host::parse(&host).unwrap();
        let mut index = index::HostIndex::default();
        for (position, pattern) in (0..).zip(&patterns) {
            index.insert(Some(std::slice::from_ref(pattern)), position);
        }
        let mut found: Vec<_> = index.positions(&host).collect();
        found.sort_unstable();
        let expected: Vec<_> = (0..).zip(&patterns).filter(|(_, pattern)| pattern.matches(&host)).map(|(i, _)| i).collect();
        prop_assert_eq!(found, expected);
    }
}

/// The host in other letters, with or without what goes without saying.
fn re_encoded_authority(host: &str, port: &str, choices: &[u8]) -> String {
    let spelled = host.chars().zip(choices).map(|(character, choice)| {
        if choice & 1 == 0 { character.to_ascii_uppercase() } else { character }
    });
    let dot = if choices[0] & 2 == 0 { "." } else { "" };
    let port = match port {
        "" | ":443" if choices[0] & 4 == 0 => ":443",
        "" | ":443" => "",
        other => other,
    };
    spelled.collect::<String>() + dot + port
}

/// The path with encodings that need not be, and with detours.
fn re_encoded_path(path: &str, choices: &[u8]) -> String {
    let mut out = String::new();
    let mut choices = choices.iter().cycle();
    let mut characters = path.chars();
    while let Some(character) = characters.next() {
        let choice = choices.next().unwrap();
        match character {
            '/' => {
                out.push_str(["/", "/./", "/zz/../", "/%2e/", "/zz/.%2E/"][usize::from(choice % 5)])
            }
            '%' => {
                let digits: String = characters.by_ref().take(2).collect();
                let digits = if choice & 1 == 0 { digits.to_lowercase() } else { digits };
                out.push_str(&format!("%{digits}"));
            }
            character
                if choice & 3 == 0
                    && (character.is_ascii_alphanumeric() || "-._~".contains(character)) =>
            {
                out.push_str(&format!("%{:02x}", u32::from(character)));
            }
            character => out.push(character),
        }
    }
    out
}

#[test]
fn a_rule_in_shadow_would_change_something_once_it_is_enforced() {
    let rule = |mode: &str| format!("[[rule]]\nname = 's'\naction = 'block'\nmode = '{mode}'\n");
    let head = arrived("GET https://h.x.example/").unwrap();
    let watched = policy_of("allow", &[], &rule("shadow"));
    assert_eq!(said(decided(&watched, &head)), "allow by-default");
    assert_eq!(said(decided(&policy_of("allow", &[], &rule("enforce")), &head)), "block s");
    let would_have = rehearse(&watched, &agent("child"), &head, NOW);
    assert_eq!(would_have, Some(WouldHave::Block { rule: RuleName::parse("s").unwrap() }));
    // A rule that is switched off does not even do that.
    let off = policy_of("allow", &[], &(rule("shadow") + "enabled = false\n"));
    assert_eq!(rehearse(&off, &agent("child"), &head, NOW), None);
}

proptest! {
    #[test]
    fn the_sieve_lets_every_rule_through_that_matches(
        pattern in "(/([ab*]|a\\*|\\*b|ab|%3A|é)?){1,4}|/(a/){7,9}[ab]",
        others in "GET|POST|BREW",
        path in "(/[ab;:]{0,3}){1,5}/?|/(a/){7,9}[ab]",
        method in "GET|POST|BREW|MKCOL",
    ) {
        prop_assume!(!pattern.contains("**"));
        let rule = |conditions: &str| format!("[[rule]]\nname = 'r'\naction = 'block'\n{conditions}");
        let conditions = format!("paths = ['{pattern}']\nmethods = ['{others}']\n");
        let head = arrived(&format!("{method} https://h.x.example{path}")).unwrap();
        let found = said(decided(&policy_of("allow", &[], &rule(&conditions)), &head));
        // What the pattern itself says of each reading.
        let pattern = PathPattern::parse(&pattern).unwrap();
        let expected = method == others && head.path.readings.iter().any(|reading| pattern.may_match(reading));
        prop_assert_eq!(found == "block r", expected, "{} {} {}", others, pattern, path);
    }
}
