//! The command line from outside: what it prints, where, and with which exit code. What needs a host of its own to go
//! wrong in is privileged.

#[cfg(test)]
#[path = "common/tollgate.rs"]
mod tollgate;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::tollgate::{Finished, Host, TOLLGATE, finish};

    fn tollgate(words: &[&str]) -> Finished {
        finish(Command::new(TOLLGATE).args(words))
    }

    /// A folder with a configuration in it, and the configuration's path.
    fn configured(text: &str) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.toml");
        fs::write(&path, text).unwrap();
        let path = path.to_str().unwrap().to_owned();
        (folder, path)
    }

    const GOOD: &str = "[[agent]]\nname = \"worker\"\n[[rule]]\nname = \"read\"\nagents = [\"worker\"]\n\
                        hosts = [\"api.example.com\"]\nmethods = [\"GET\"]\naction = \"allow\"\n";

    #[test]
    fn check_prints_three_mistakes_with_their_places_and_fails() {
        let (_folder, config) = configured(
            "[gateway]\nprot = 10255\n[[agent]]\nname = \"Worker\"\n[[rule]]\nname = \"read\"\n\
             hosts = [\"https://api.example.com\"]\naction = \"allow\"\n",
        );
        let finished = tollgate(&["check", "--config", &config]);
        assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(1), ""));
        for place in ["2:1: ", "4:8: ", "7:10: "] {
            let start = format!("{config}:{place}");
            assert!(finished.stderr.lines().any(|line| line.starts_with(&start)), "{finished:#?}");
        }
        let remedies = finished.stderr.lines().filter(|line| line.starts_with("  help: ")).count();
        assert_eq!(remedies, 3, "{finished:#?}");
    }

    #[test]
    fn check_of_a_good_configuration_succeeds_on_standard_output() {
        let (_folder, config) = configured(GOOD);
        let finished = tollgate(&["check", "--config", &config]);
        assert_eq!(finished.stderr, "");
        assert_eq!(finished.success(), "OK: 1 agent, 0 credentials, 1 rule\n");
    }

    #[test]
    fn explain_says_the_decision_and_the_rule_to_people_and_to_programs() {
        let (_folder, config) = configured(GOOD);
        let question = ["explain", "--config", &config, "--agent", "worker"];
        let ask = |rest: &[&str]| tollgate(&[&question[..], rest].concat()).success();
        let said = ask(&["GET", "https://api.example.com/v1"]);
        for line in ["decision    allow", "reason      allowed_by_rule", "rule        read"] {
            assert!(said.lines().any(|found| found == line), "{line}: {said}");
        }
        let said = ask(&["DELETE", "https://api.example.com/v1", "--json"]);
        let answer: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert_eq!(answer["decision"], "block");
        assert_eq!(answer["reason"], "blocked_by_default_policy");
        assert_eq!(answer["rule"], serde_json::Value::Null);
    }

    #[test]
    fn a_question_that_cannot_be_answered_is_misuse() {
        let (_folder, config) = configured(GOOD);
        let finished =
            tollgate(&["explain", "--config", &config, "--agent", "worker", "GET", "nowhere"]);
        assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(2), ""));
        assert_eq!(
            finished.stderr,
            "`nowhere` is not a URL of the form http(s)://HOST[:PORT][/PATH], without a user name\n"
        );
    }

    #[test]
    fn help_names_every_verb_and_hides_the_internal_ones() {
        let help = tollgate(&["--help"]).success();
        for verb in ["run", "daemon", "check", "explain", "logs"] {
            assert!(help.lines().any(|line| line.starts_with(&format!("  {verb} "))), "{help}");
        }
        assert!(!help.contains("__"), "{help}");
        assert!(tollgate(&["--version"]).success().starts_with("tollgate "));
    }

    #[test]
    fn misuse_is_told_apart_from_what_a_command_would_return() {
        assert_eq!(tollgate(&["check", "--nonsense"]).status.code(), Some(2));
        for words in [&["run"][..], &["run", "--agent", "worker"], &["run", "--nonsense"]] {
            let finished = tollgate(words);
            assert_eq!(finished.status.code(), Some(125), "{finished:?}");
            assert!(finished.stderr.contains("Usage: tollgate run"), "{finished:?}");
        }
        tollgate(&["run", "--help"]).success();
    }

    #[test]
    fn a_caller_who_is_not_root_is_told_so() {
        let (folder, config) = configured(GOOD);
        let run = ["run", "--agent", "worker", "--config", &config, "--", "true"];
        let finished = if nix::unistd::geteuid().is_root() {
            // Another user may not be able to reach the binary where it was built.
            let copy = folder.path().join("tollgate").to_str().unwrap().to_owned();
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
            finish(Command::new("cp").args([TOLLGATE, &copy])).success();
            let user = ["--reuid=65534", "--regid=65534", "--clear-groups", "--", &copy];
            finish(Command::new("setpriv").args(user).args(run))
        } else {
            tollgate(&run)
        };
        assert_eq!(finished.status.code(), Some(125), "{finished:?}");
        assert_eq!(
            finished.stderr,
            "tollgate: `tollgate run` makes namespaces and loads kernel programs: run it as root (sudo)\n"
        );
    }

    /// Spoils a host with a shell script and returns what `tollgate run` says there.
    fn spoiled(script: &str) -> Option<(Host, Finished)> {
        let host = Host::new("")?;
        host.sh("true").success();
        finish(&mut host.plain(["sh", "-c", script])).success();
        let finished = host.sh("echo started");
        Some((host, finished))
    }

    fn assert_one_line(finished: &Finished, parts: &[&str]) {
        assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(125), ""));
        assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
        for part in parts {
            assert!(finished.stderr.contains(part), "{part} is not in {finished:?}");
        }
    }

    #[test]
    fn without_cgroup_v2_nothing_starts_and_the_remedy_is_named() {
        let script = "awk '/ - cgroup2 /{print $5}' /proc/self/mountinfo | xargs -n1 umount -l";
        let Some((_host, finished)) = spoiled(script) else { return };
        assert_one_line(&finished, &["no cgroup v2 hierarchy is mounted", "mount -t cgroup2"]);
    }

    #[test]
    fn without_btf_nothing_starts_and_the_kernel_option_is_named() {
        let Some((_host, finished)) = spoiled("mount -t tmpfs tmpfs /sys/kernel/btf") else {
            return;
        };
        assert_one_line(&finished, &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"]);
    }

    #[test]
    fn without_a_bpf_file_system_nothing_starts_and_the_remedy_is_named() {
        let script = "umount /sys/fs/bpf && mount -t tmpfs tmpfs /sys/fs";
        let Some((_host, finished)) = spoiled(script) else { return };
        assert_one_line(&finished, &["no BPF file system at /sys/fs/bpf", "mount -t bpf"]);
    }

    #[test]
    fn a_bpf_file_system_that_is_only_not_mounted_is_mounted() {
        let Some((host, finished)) = spoiled("umount /sys/fs/bpf") else { return };
        assert_eq!(finished.success(), "started\n");
        let mounts = finish(&mut host.plain(["cat", "/proc/self/mountinfo"])).success();
        assert!(mounts.contains(" /sys/fs/bpf "), "{mounts}");
    }

    #[test]
    fn a_configuration_that_is_wrong_starts_nothing_and_prints_every_mistake() {
        let Some(host) = Host::new("[dns]\nx = 1\n[upstream]\ny = 2\n") else { return };
        let finished = host.sh("echo started");
        assert_eq!((finished.status.code(), finished.stdout.as_str()), (Some(125), ""));
        for key in ["unknown key `x` in [dns]", "unknown key `y` in [upstream]"] {
            assert!(finished.stderr.contains(key), "{finished:?}");
        }
    }
}
