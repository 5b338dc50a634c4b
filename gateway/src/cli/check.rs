//! `tollgate check`: every mistake of a configuration, or what it holds.

use std::ffi::OsString;
use std::path::Path;
use std::time::SystemTime;

use super::Printed;
use crate::config::{Config, SourceCheck};

/// Checks `path` and everything that it points at. `read_env` reads a variable of the environment, for credentials
/// that come from there.
pub fn check(path: &Path, read_env: &dyn Fn(&str) -> Option<OsString>) -> Printed {
    match Config::load_with(path, SourceCheck::FilesAndEnvironment(read_env)) {
        Ok(config) => {
            let policy = &config.policy;
            let agents = counted(policy.agents().len(), "agent");
            let credentials = counted(policy.credentials().len(), "credential");
            let rules = counted(policy.rule_count(), "rule");
            let mut text = format!("OK: {agents}, {credentials}, {rules}\n");
            for rule in policy.expired_rules(SystemTime::now()) {
                text += &format!("note: the rule `{rule}` has expired and does nothing\n");
            }
            Printed::success(text)
        }
        Err(errors) => Printed::failure(format!("{errors}\n")),
    }
}

fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn checked(text: &str, value: Option<&str>) -> Printed {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.toml");
        fs::write(&path, text).unwrap();
        let mut printed = check(&path, &|_name| value.map(OsString::from));
        printed.text = printed.text.replace(&format!("{}/", folder.path().display()), "");
        printed
    }

    const TEXT: &str = "[[agent]]\nname = \"a\"\n[[credential]]\nname = \"c\"\nsource = { env = \"C\" }\n\
                        hosts = [\"c.example.com\"]\ninject = { header = \"A\", format = \"{value}\" }\n";

    #[test]
    fn a_good_configuration_is_counted() {
        let printed = checked(TEXT, Some("hunter2"));
        assert_eq!(printed, Printed::success("OK: 1 agent, 1 credential, 0 rules\n".to_owned()));
    }

    #[test]
    fn a_rule_that_has_expired_is_told_and_no_mistake() {
        let rule = |expires: &str| {
            format!("[[rule]]\nname = \"r\"\naction = \"block\"\nexpires = {expires}\n")
        };
        let printed = checked(&rule("2026-01-01T00:00:00Z"), None);
        let expected = "OK: 0 agents, 0 credentials, 1 rule\n\
                        note: the rule `r` has expired and does nothing\n";
        assert_eq!(printed, Printed::success(expected.to_owned()));
        let printed = checked(&rule("9999-01-01T00:00:00Z"), None);
        assert!(!printed.text.contains("note"), "{}", printed.text);
    }

    #[test]
    fn every_mistake_is_printed_and_the_command_fails() {
        let printed = checked(&format!("{TEXT}env = \"-\"\n[dns]\nx = 1\n"), None);
        let expected = "\
t.toml:5:1: the credential `c` cannot be read: the variable `C` is not set
  help: set it in the gateway's environment
t.toml:8:7: `env` is not the name of an environment variable
  help: use letters, digits and `_`, for example `env = \"GITHUB_TOKEN\"`
t.toml:10:1: unknown key `x` in [dns]
  help: known here: denied
";
        assert_eq!(printed, Printed::failure(expected.to_owned()));
    }

    #[test]
    fn the_shipped_configuration_is_right_and_has_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/tollgate.toml");
        let shipped =
            Config::load_with(&path, SourceCheck::Skip).unwrap_or_else(|errors| panic!("{errors}"));
        let bare = Config::parse(&path, "").unwrap();
        assert_eq!(format!("{:?}", shipped.gateway), format!("{:?}", bare.gateway));
        assert_eq!(format!("{:?}", shipped.dns), format!("{:?}", bare.dns));
        assert_eq!(format!("{:?}", shipped.discover), format!("{:?}", bare.discover));
        assert_eq!(format!("{:?}", shipped.upstream), format!("{:?}", bare.upstream));

        let text = fs::read_to_string(&path).unwrap();
        let example = text.split_once("# --- example").map(|(_, example)| example).unwrap();
        let uncommented: Vec<_> =
            example.lines().skip(1).filter_map(|line| line.strip_prefix("#|")).collect();
        let example = Config::parse(&path, &uncommented.join("\n"))
            .unwrap_or_else(|errors| panic!("{errors}"));
        assert!(example.policy.rule_count() > 0, "the example has rules");
    }
}
