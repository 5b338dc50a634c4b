use super::*;

#[test]
fn host_patterns_match_what_they_say() {
    let rows = [
        ("api.example.com", "api.example.com", true),
        ("api.example.com", "API.Example.COM", true),
        ("API.EXAMPLE.COM", "api.example.com", true),
        ("api.example.com.", "api.example.com", true),
        ("api.example.com", "api.example.com.", true),
        ("api.example.com", "example.com", false),
        ("api.example.com", "x.api.example.com", false),
        ("api.example.com", "api.example.com.evil.example", false),
        ("api.example.com", "xapi.example.com", false),
        ("*.example.com", "a.example.com", true),
        ("*.example.com", "a.b.example.com", true),
        ("*.EXAMPLE.com", "A.B.example.COM.", true),
        ("*.example.com", "example.com", false),
        ("*.example.com", "notexample.com", false),
        ("*.example.com", "a.example.com.evil.example", false),
        ("*.example.com", "example.com.evil.example", false),
        ("*.example.com", "a.example.org", false),
        ("*.a.example.com", "b.example.com", false),
        ("*.a.example.com", "b.a.example.com", true),
        ("bücher.example", "xn--bcher-kva.example", true),
        ("xn--bcher-kva.example", "BÜCHER.example", true),
        ("*.bücher.example", "shop.xn--bcher-kva.example", true),
        ("192.0.2.1", "192.0.2.1", true),
        ("192.0.2.1", "192.0.2.10", false),
        ("192.0.2.1", "[::ffff:192.0.2.1]", true),
        ("[2001:db8::1]", "[2001:DB8:0::1]", true),
        ("2001:db8::1", "[2001:db8::1]", true),
        ("[2001:db8::1]", "[2001:db8::2]", false),
        ("localhost", "localhost", true),
        ("localhost", "localhost.example", false),
        ("_x.example.com", "_x.example.com", true),
    ];
    for (pattern, host, expected) in rows {
        let parsed = HostPattern::parse(pattern).unwrap();
        assert_eq!(
            parsed.matches(&Host::parse(host).unwrap()),
            expected,
            "{pattern} against {host}"
        );
    }
}

type IsExpected = fn(&HostPatternError) -> bool;

#[test]
fn what_is_no_host_pattern_is_refused() {
    use HostPatternError as E;
    let rows: [(&str, IsExpected); 24] = [
        ("https://example.com", |e| *e == E::Scheme),
        ("http://example.com/a", |e| *e == E::Scheme),
        ("example.com:443", |e| *e == E::Port),
        ("[::1]:443", |e| *e == E::Port),
        ("192.0.2.1:80", |e| *e == E::Port),
        ("*.example.com:443", |e| *e == E::Port),
        ("example.com/a", |e| *e == E::Path),
        ("example.com/", |e| *e == E::Path),
        ("example.com?x", |e| *e == E::Path),
        ("*", |e| *e == E::Everything),
        ("a.*.example.com", |e| *e == E::InnerWildcard),
        ("a*.example.com", |e| *e == E::InnerWildcard),
        ("*a.example.com", |e| *e == E::InnerWildcard),
        ("*.*.example.com", |e| *e == E::InnerWildcard),
        ("example.*", |e| *e == E::InnerWildcard),
        ("*.com", |e| matches!(e, E::PublicSuffix { .. })),
        ("*.CO.uk", |e| matches!(e, E::PublicSuffix { .. })),
        ("*.github.io", |e| matches!(e, E::PublicSuffix { .. })),
        ("*.公司.cn", |e| matches!(e, E::PublicSuffix { .. })),
        ("*.unknown-top-level", |e| matches!(e, E::PublicSuffix { .. })),
        ("", |e| matches!(e, E::Host(_))),
        ("*.", |e| matches!(e, E::Host(_))),
        ("user@example.com", |e| matches!(e, E::Host(_))),
        ("*.192.0.2.1", |e| matches!(e, E::Host(_))),
    ];
    for (text, is_expected) in rows {
        let error = HostPattern::parse(text).unwrap_err();
        assert!(is_expected(&error), "{text:?} gave {error:?}");
    }
}

#[test]
fn a_wildcard_needs_a_domain_that_one_owner_holds() {
    for text in
        ["*.example.com", "*.openai.com", "*.me.github.io", "*.internal.example", "*.x.co.uk"]
    {
        assert!(HostPattern::parse(text).is_ok(), "{text}");
    }
    for text in ["*.x.ck", "*.googleapis.com", "*.cloudfront.net", "*.internal", "*.xn--55qx5d.cn"]
    {
        let parsed = HostPattern::parse(text);
        assert!(matches!(parsed, Err(HostPatternError::PublicSuffix { .. })), "{text} {parsed:?}");
    }
}

#[test]
fn path_patterns_match_what_they_say() {
    let rows = [
        ("/", "/", true),
        ("/", "/a", false),
        ("/a", "/a", true),
        ("/a", "/A", false),
        ("/a", "/a/", false),
        ("/a", "/a/b", false),
        ("/a", "/ab", false),
        ("/a/", "/a/", true),
        ("/a/", "/a", false),
        ("/*", "/", true),
        ("/*", "/a", true),
        ("/*", "/a/b/c", true),
        ("/a/*", "/a", true),
        ("/a/*", "/a/", true),
        ("/a/*", "/a/b", true),
        ("/a/*", "/a/b/c", true),
        ("/a/*", "/ab", false),
        ("/a/*", "/b/a/", false),
        ("/a/*", "/A/b", false),
        ("/a*", "/a", true),
        ("/a*", "/ab", true),
        ("/a*", "/ab/c", true),
        ("/a*", "/a/c", true),
        ("/a*", "/b", false),
        ("/a*", "/", false),
        ("/a/*/c", "/a/b/c", true),
        ("/a/*/c", "/a/b", false),
        ("/a/*/c", "/a/b/b/c", false),
        ("/a/*/c", "/a/b/c/d", false),
        ("/a/*/c", "/a/c", false),
        ("/a/*/c/*", "/a/b/c", true),
        ("/a/*/c/*", "/a/b/c/d/e", true),
        ("/a/*/c/*", "/a/b/d/c", false),
        ("/*/c", "/b/c", true),
        ("/*/c", "/c", false),
        ("/a/x*y", "/a/xy", true),
        ("/a/x*y", "/a/x--y", true),
        ("/a/x*y", "/a/x/y", false),
        ("/a/x*y", "/a/x--z", false),
        ("/a/x*y", "/a/xyz", false),
        ("/a/x*y*z/b", "/a/x1y2z/b", true),
        ("/a/x*y*z/b", "/a/x1y2z3/b", false),
        ("/a/*.json", "/a/b.json", true),
        ("/a/*.json", "/a/.json", true),
        ("/a/*.json", "/a/b/c.json", false),
        ("/a/*b*", "/a/xbx/anything", true),
        ("/a/*b*", "/a/x/b", false),
        ("/a/*aab", "/a/aaaaaab", true),
        ("/v1/models/*:generate", "/v1/models/small:generate", true),
        ("/v1/models/*:generate", "/v1/models/small:delete", false),
        ("/a%41", "/aA", true),
        ("/%7euser", "/~user", true),
        ("/a%c3%a9", "/a%C3%A9", true),
        ("/é", "/%C3%A9", true),
        ("/a b", "/a%20b", true),
        ("/a%20b/*", "/a b/c", true),
        ("/a%40b", "/a@b", false),
        ("/a", "a", false),
        ("/*", "", false),
    ];
    for (pattern, path, expected) in rows {
        let parsed = PathPattern::parse(pattern).unwrap();
        assert_eq!(parsed.matches(path), expected, "{pattern} against {path}");
    }
}

#[test]
fn what_forbids_also_covers_the_decoded_spelling() {
    let rows = [
        ("/%40types/*", "/@types/x", true),
        ("/%40types/*", "/%40types/x", true),
        ("/a%3Ab%20c", "/a:b c", true),
        ("/a%25b", "/a%b", true),
        ("/a%C3%A9%3A", "/a%C3%A9:", true),
        ("/a%3Ab", "/a;b", false),
        ("/a:b", "/a:b", true),
    ];
    for (pattern, path, expected) in rows {
        let parsed = PathPattern::parse(pattern).unwrap();
        assert_eq!(parsed.may_match(path), expected, "{pattern} against {path}");
    }
}

#[test]
fn what_is_no_path_pattern_is_refused() {
    for text in [
        "",
        "a",
        "*",
        "a/*",
        "/a?b",
        "/a#b",
        "/a/**",
        "/**/a",
        "/a/../b",
        "/./a",
        "/a/%2e%2e/b",
        "/a%2Fb",
        "/a%5cb",
        "/%00",
        "/%2a",
        "/a%",
        "/a%4",
        "/a%zz",
        "/a%é",
        "/a\nb",
        "/a\u{7f}",
    ] {
        assert!(PathPattern::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn a_narrower_pattern_is_more_specific() {
    let rows = [
        ("/a/*", "/*"),
        ("/a*", "/*"),
        ("/a/*", "/a*"),
        ("/a/b/*", "/a/*"),
        ("/a/b", "/a/*"),
        ("/a", "/a/*"),
        ("/a/*/c", "/a/*"),
        ("/a/*/c/*", "/a/*"),
        ("/a/b/c", "/a/*/c"),
        ("/a/b*c", "/a/b*"),
    ];
    for (narrow, wide) in rows {
        let (narrow, wide) =
            (PathPattern::parse(narrow).unwrap(), PathPattern::parse(wide).unwrap());
        assert!(narrow.specificity() > wide.specificity(), "{narrow} is not narrower than {wide}");
    }
}

#[test]
fn overlapping_patterns_are_found() {
    let rows = [
        ("/a", "/a", true),
        ("/a", "/b", false),
        ("/a/*", "/a/b/c", true),
        ("/a/*", "/b/*", false),
        ("/a*", "/ab*", true),
        ("/a*", "/b*", false),
        ("/*/b", "/a/*", true),
        ("/*/b", "/a/*/c", false),
        ("/x*y", "/xa*", true),
        ("/x*y", "/*z", false),
        ("/a*b", "/*ab", true),
        ("/a*c*", "/*b", true),
        ("/*a", "/*b", false),
        ("/a/b", "/a", false),
        ("/a/b/*", "/a/*", true),
    ];
    for (a, b, expected) in rows {
        let (one, other) = (PathPattern::parse(a).unwrap(), PathPattern::parse(b).unwrap());
        assert_eq!(one.overlaps(&other), expected, "{a} and {b}");
        assert_eq!(other.overlaps(&one), expected, "{b} and {a}");
    }
}

proptest! {
    #[test]
    fn host_matching_ignores_case_and_a_trailing_dot(
        labels in proptest::collection::vec("[a-z][a-z0-9]{0,6}", 2..5),
        upper in any::<[bool; 8]>(),
        wildcard in any::<bool>(),
    ) {
        let name = format!("{}.example", labels.join("."));
        let shouted: String = name
            .chars()
            .enumerate()
            .map(|(i, c)| if upper[i % 8] { c.to_ascii_uppercase() } else { c })
            .collect();
        let text = if wildcard { format!("*.{}.example", labels[1..].join(".")) } else { name.clone() };
        let pattern = HostPattern::parse(&text).unwrap();
        for spelling in [name, shouted.clone(), format!("{shouted}.")] {
            prop_assert!(pattern.matches(&Host::parse(&spelling).unwrap()), "{} against {}", text, spelling);
            let foreign = format!("{}x", spelling.trim_end_matches('.'));
            prop_assert!(!pattern.matches(&Host::parse(&foreign).unwrap()), "{} against {}", text, foreign);
        }
        let from_shouted = HostPattern::parse(&text.to_ascii_uppercase()).unwrap();
        prop_assert_eq!(&from_shouted, &pattern);
    }

    #[test]
    fn path_matching_agrees_with_a_regular_expression(
        pattern in "(/([ab*]|a\\*|\\*b|a\\*b|ab)?){1,4}",
        path in "(/[ab]{0,3}){1,5}",
    ) {
        prop_assume!(!pattern.contains("**"));
        let parsed = PathPattern::parse(&pattern).unwrap();
        let (body, tail) = match (pattern.strip_suffix("/*"), pattern.strip_suffix('*')) {
            (Some(body), _) => (body, "(/.*)?"),
            (None, Some(body)) => (body, ".*"),
            (None, None) => (pattern.as_str(), ""),
        };
        let expected = regex::Regex::new(&format!("^{}{tail}$", body.replace('*', "[^/]*"))).unwrap();
        prop_assert_eq!(parsed.matches(&path), expected.is_match(&path), "{} against {}", pattern, path);
    }

    #[test]
    fn two_patterns_that_match_one_path_overlap(
        one in "(/([ab*]|a\\*|\\*b|a\\*b|ab)?){1,3}",
        other in "(/([ab*]|a\\*|\\*b|a\\*b|ab)?){1,3}",
        path in "(/[ab]{0,3}){1,3}",
    ) {
        prop_assume!(!one.contains("**") && !other.contains("**"));
        let (one, other) = (PathPattern::parse(&one).unwrap(), PathPattern::parse(&other).unwrap());
        if one.matches(&path) && other.matches(&path) {
            prop_assert!(one.overlaps(&other), "{} and {} both match {}", one, other, path);
        }
    }

    #[test]
    fn parsing_patterns_never_panics(text in "\\PC{0,40}") {
        drop(PathPattern::parse(&text));
        drop(HostPattern::parse(&text));
    }
}
