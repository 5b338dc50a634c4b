//! Patterns over names: `*` stands for any part of one name.

/// Whether `name` is as `pattern` says.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(head) else { return false };
    let mut parts = rest.split('*').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return name.ends_with(part);
        }
        let Some(at) = name.find(part) else { return false };
        name = name.get(at + part.len()..).unwrap_or_default();
    }
    false
}

/// Whether `path` is as `pattern` says, name by name: a `*` does not cross a slash.
pub(crate) fn matches_path(pattern: &str, path: &str) -> bool {
    let mut patterns = pattern.trim_matches('/').split('/');
    let mut names = path.trim_matches('/').split('/');
    loop {
        match (patterns.next(), names.next()) {
            (None, None) => return true,
            (Some(pattern), Some(name)) if matches(pattern, name) => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_part_of_one_name() {
        let rows = [
            ("docker", "docker", true),
            ("docker", "docker-1", false),
            ("*", "anything", true),
            ("agent-*.service", "agent-mail.service", true),
            ("agent-*.service", "agent-mail.scope", false),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "acb", false),
            ("*x", "x", true),
            ("ab*ba", "aba", false),
        ];
        for (pattern, name, expected) in rows {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_star_does_not_cross_a_slash() {
        assert!(matches_path("/agents/*", "/agents/mail"));
        assert!(matches_path("agents/*/x", "/agents/mail/x"));
        assert!(!matches_path("/agents/*", "/agents/mail/nested"));
        assert!(!matches_path("/agents/*", "/agents"));
    }
}
