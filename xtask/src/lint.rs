//! `cargo xtask lint`: formatting, clippy without a warning, and the rules that neither knows.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::{paths, run};

/// Lines of code (no blank lines, no comments) before the tests. What is longer does more than one thing.
const FILE_LINES: usize = 400;

const MEMBERS: &[&str] = &["gateway", "gateway-ebpf", "xtask"];

/// The verb.
pub(crate) fn run() -> Result<()> {
    run::inherit("cargo fmt --check", &mut run::cargo(["fmt", "--all", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run::inherit("cargo clippy", &mut run::cargo(clippy))?;
    run::announce("the rules of the house");
    house_rules()?;
    dependencies()
}

fn house_rules() -> Result<()> {
    let root = paths::root();
    let mut broken = Vec::new();
    for member in MEMBERS {
        let manifest = fs::read_to_string(root.join(member).join("Cargo.toml"))?;
        if !inherits_lints(&manifest) {
            broken.push(format!("{member}/Cargo.toml: `[lints] workspace = true` is missing"));
        }
        for file in sources(&root.join(member).join("src"))? {
            let text = fs::read_to_string(&file)?;
            let shown = file.strip_prefix(&root).unwrap_or(&file).display().to_string();
            let lines = lines_of_code(&text);
            if lines > FILE_LINES && !is_test(&file) {
                broken.push(format!(
                    "{shown}: {lines} lines of code before the tests, {FILE_LINES} are allowed"
                ));
            }
            if file.file_name().is_some_and(|name| name == "mod.rs") {
                broken.push(format!("{shown}: a module is `x.rs` beside a folder `x`"));
            }
        }
    }
    if !broken.is_empty() {
        bail!("rules of the house:\n  {}", broken.join("\n  "));
    }
    Ok(())
}

fn dependencies() -> Result<()> {
    let Some(deny) = paths::find_program("cargo-deny") else {
        eprintln!("    cargo-deny is not installed: licences, bans and sources are not checked");
        return Ok(());
    };
    let mut command = run::command(deny);
    // Advisories need a database from the network; the other three need the lock file alone.
    command.args(["--locked", "check", "bans", "licenses", "sources"]);
    run::inherit("cargo deny", &mut command)
}

fn inherits_lints(manifest: &str) -> bool {
    let mut lines = manifest.lines().skip_while(|line| line.trim() != "[lints]").skip(1);
    lines.find(|line| !line.trim().is_empty()).is_some_and(|line| line.trim() == "workspace = true")
}

fn lines_of_code(text: &str) -> usize {
    text.lines()
        .map(str::trim)
        .take_while(|line| *line != "#[cfg(test)]")
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .count()
}

/// Tests in files of their own are tests as much as those below `#[cfg(test)]`.
fn is_test(file: &Path) -> bool {
    file.components().any(|part| part.as_os_str() == "tests") || file.ends_with("tests.rs")
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_blank_lines_and_comments_do_not_count_as_code() {
        let text = "//! doc\n\nfn a() {}\n    // why\nfn b() {}\n#[cfg(test)]\nmod tests {}\n";
        assert_eq!(lines_of_code(text), 2);
    }

    #[test]
    fn only_files_of_tests_may_be_long() {
        assert!(is_test(Path::new("gateway/src/dns/tests.rs")));
        assert!(is_test(Path::new("gateway/src/config/tests/mistakes.rs")));
        assert!(!is_test(Path::new("gateway/src/dns/contests.rs")));
    }

    #[test]
    fn a_member_without_the_workspaces_lints_is_seen() {
        assert!(inherits_lints("[package]\n[lints]\n\nworkspace = true\n"));
        assert!(!inherits_lints("[package]\nname = \"x\"\n"));
        assert!(!inherits_lints("[lints]\n[lints.rust]\nworkspace = true\n"));
    }
}
