use std::ffi::OsString;
use std::fs;

use super::*;

const AGENT: &str = "[[agent]]\nname = \"a\"\n";

const CREDENTIAL: &str = "[[credential]]\nname = \"c\"\nsource = { file = \"secret\" }\nhosts = [\"c.example.com\"]\n\
                          inject = { header = \"A\", format = \"{value}\" }\n";

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    folder
}

fn load(folder: &tempfile::TempDir) -> Result<Config, String> {
    let shown = |errors: ConfigErrors| {
        errors.to_string().replace(&format!("{}/", folder.path().display()), "")
    };
    Config::load(&folder.path().join("t.toml")).map_err(shown)
}

#[test]
fn parts_are_read_beside_the_file() {
    let folder = folder(&[
        ("t.toml", AGENT),
        (
            "policy.d/20-rules.toml",
            "[[rule]]\nname = \"r\"\nagents = [\"b\"]\naction = \"allow\"\n",
        ),
        ("policy.d/10-agents.toml", "[[agent]]\nname = \"b\"\nparent = \"a\"\n"),
        ("policy.d/.editor.toml", "nonsense"),
        ("policy.d/notes.txt", "nonsense"),
    ]);
    let config = load(&folder).unwrap();
    let names: Vec<_> = config.policy.agents().map(|agent| agent.name.to_string()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(config.policy.rule_count(), 1);
}

#[test]
fn mistakes_of_all_files_are_told_together() {
    let folder = folder(&[
        ("t.toml", "[dns]\ndenied = 1\n[[rule]]\nname = \"r\"\naction = \"allow\"\n"),
        ("policy.d/a.toml", "[gateway]\nport = 1\n"),
        ("policy.d/b.toml", "[[rule]]\nname = \"r\"\naction = \"allow\"\n"),
    ]);
    let errors = load(&folder).unwrap_err();
    let lines: Vec<_> = errors.lines().filter(|line| !line.starts_with(' ')).collect();
    let expected = [
        "t.toml:2:10: `denied` must be a string, not an integer",
        "policy.d/a.toml:1:2: `[gateway]` cannot stand in a part of the policy",
        "policy.d/b.toml:2:8: the rule `r` exists already",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_credential_that_cannot_be_read_is_told_with_its_remedy() {
    let files = [("t.toml", format!("{AGENT}{CREDENTIAL}"))];
    let folder = folder(&[(files[0].0, &files[0].1)]);
    let errors = load(&folder).unwrap_err();
    assert!(
        errors
            .starts_with("t.toml:5:1: the credential `c` cannot be read from secret: No such file"),
        "{errors}"
    );
    assert!(errors.contains("help: write the secret into that file"), "{errors}");

    let skipping = Config::load_with(&folder.path().join("t.toml"), SourceCheck::Skip);
    assert!(skipping.is_ok());

    fs::write(folder.path().join("secret"), "").unwrap();
    assert!(load(&folder).unwrap_err().contains("it is empty"));
    let unfit = [
        ("\n".to_owned(), "it is empty"),
        ("one\ntwo\n".to_owned(), "it is not one line"),
        ("s".repeat(16 * 1024 + 1), "it has more than 16384 bytes"),
    ];
    for (content, message) in unfit {
        fs::write(folder.path().join("secret"), content).unwrap();
        assert!(load(&folder).unwrap_err().contains(message), "{message}");
    }
    fs::write(folder.path().join("secret"), "hunter2\r\n").unwrap();
    load(&folder).unwrap();
    fs::remove_file(folder.path().join("secret")).unwrap();
    fs::create_dir(folder.path().join("secret")).unwrap();
    assert!(load(&folder).unwrap_err().contains("cannot be read"));
}

#[test]
fn a_variable_is_asked_for_only_where_it_can_be() {
    let text = CREDENTIAL.replace("{ file = \"secret\" }", "{ env = \"C\" }");
    let folder = folder(&[("t.toml", &text)]);
    let path = folder.path().join("t.toml");
    load(&folder).unwrap();
    let unset = Config::load_with(&path, SourceCheck::FilesAndEnvironment(&|_| None)).unwrap_err();
    assert!(
        unset
            .to_string()
            .contains("the credential `c` cannot be read: the variable `C` is not set")
    );
    let read = |name: &str| (name == "C").then(|| OsString::from("hunter2"));
    Config::load_with(&path, SourceCheck::FilesAndEnvironment(&read)).unwrap();
}

#[test]
fn relative_paths_begin_in_the_folder_of_their_file() {
    let folder = folder(&[
        ("t.toml", AGENT),
        ("policy.d/c.toml", CREDENTIAL),
        ("policy.d/secret", "hunter2"),
    ]);
    let config = load(&folder).unwrap();
    let source = &config.policy.credentials().next().unwrap().source;
    assert_eq!(*source, SourceSpec::File(folder.path().join("policy.d/secret")));
}

#[test]
fn roots_that_cannot_be_read_are_refused() {
    let folder = folder(&[("t.toml", "[upstream]\nca_files = [\"roots.pem\"]\n")]);
    let errors = load(&folder).unwrap_err();
    assert!(errors.starts_with("t.toml:2:13: the roots in roots.pem cannot be read"), "{errors}");
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let folder = folder(&[("x.toml", "")]);
    assert!(load(&folder).unwrap_err().starts_with("t.toml:1:1: cannot be read: No such file"));
    fs::write(folder.path().join("t.toml"), [b'#', b'\n', b'#', 0xFF]).unwrap();
    fs::create_dir_all(folder.path().join("policy.d/folder.toml")).unwrap();
    let errors = load(&folder).unwrap_err();
    assert!(errors.starts_with("t.toml:2:2: not valid UTF-8"), "{errors}");
    assert!(
        errors.contains("policy.d/folder.toml:1:1: cannot be read: Is a directory"),
        "{errors}"
    );
    fs::write(folder.path().join("t.toml"), " ".repeat(5 * 1024 * 1024)).unwrap();
    assert!(load(&folder).unwrap_err().contains("it is larger than"));
}
