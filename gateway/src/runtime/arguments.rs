//! The command line of an OCI runtime (runc, crun), as far as one in front of it has to know it.
//!
//! What is not understood is refused: the real runtime might understand it, and make a container out of it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::slice::Iter;

/// What an engine asks its runtime for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// A new container out of a bundle.
    Create(Bundle),
    /// Anything that makes no container: no matter of ours.
    Other,
    /// Something that makes a container in a way that cannot be governed, or that might; and why.
    Refused(String),
}

/// Where a container's configuration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The file.
    pub configuration: PathBuf,
    /// The container's id.
    pub id: OsString,
}

/// A command line, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What for.
    pub verb: Verb,
    /// Where the engine reads what went wrong, as lines of JSON.
    pub log: Option<PathBuf>,
}

/// Global options of runc, crun and youki that take a value as the next argument.
const GLOBAL_WITH_VALUE: [&str; 9] = [
    "--root",
    "--log",
    "--log-format",
    "--log-level",
    "--cgroup-manager",
    "--criu",
    "--rootless",
    "-r",
    "-l",
];

/// Options of `create` and `run` that take a value as the next argument.
const CREATE_WITH_VALUE: [&str; 9] = [
    "--bundle",
    "-b",
    "--pid-file",
    "--console-socket",
    "--preserve-fds",
    "--config",
    "-f",
    "--pidfd-socket",
    "--user-ns-fd",
];

/// Verbs that make no container.
const WITHOUT_A_CONTAINER: [&str; 19] = [
    "checkpoint",
    "completion",
    "delete",
    "events",
    "exec",
    "features",
    "help",
    "info",
    "kill",
    "list",
    "mounts",
    "pause",
    "ps",
    "resume",
    "spec",
    "start",
    "state",
    "update",
    "version",
];

/// Reads `arguments`, without the program's name. `here` is the working folder: the bundle's default.
#[must_use]
pub fn parse(arguments: &[OsString], here: &Path) -> Asked {
    let mut arguments = arguments.iter();
    let mut log = None;
    let verb = next_word(&mut arguments, &GLOBAL_WITH_VALUE, |option, value| {
        if option == "--log" {
            log = Some(here.join(value));
        }
    });
    let verb = match verb.as_deref().map(OsStr::to_string_lossy).as_deref() {
        // Version or help.
        None => Verb::Other,
        Some("create" | "run") => created(&mut arguments, here),
        Some("restore") => Verb::Refused(
            "a container out of a checkpoint has run before anybody could look at it; start it anew, or with the engine's own runtime".to_owned(),
        ),
        Some(verb) if WITHOUT_A_CONTAINER.contains(&verb) => Verb::Other,
        Some(verb) => Verb::Refused(format!(
            "`{verb}` is no verb of a runtime that is known here, and might make a container; use the engine's own runtime for it"
        )),
    };
    Asked { verb, log }
}

fn created(arguments: &mut Iter<'_, OsString>, here: &Path) -> Verb {
    let (mut folder, mut file) = (here.to_path_buf(), None);
    let mut see = |option: &str, value: &OsStr| match option {
        "--bundle" | "-b" => folder = here.join(value),
        "--config" | "-f" => file = Some(value.to_owned()),
        _ => {}
    };
    let mut words = Vec::new();
    // Options may follow the id; the last one counts, as for the real runtime.
    while let Some(word) = next_word(arguments, &CREATE_WITH_VALUE, &mut see) {
        words.push(word);
    }
    match <[OsString; 1]>::try_from(words) {
        Ok([id]) => {
            let configuration =
                file.map_or_else(|| folder.join("config.json"), |file| folder.join(file));
            Verb::Create(Bundle { configuration, id })
        }
        Err(words) => Verb::Refused(format!(
            "a container is created with one id, but {} words of the command line may be one: {words:?}",
            words.len()
        )),
    }
}

/// The next argument that is no option; options with a value are shown to `see`.
fn next_word(
    arguments: &mut Iter<'_, OsString>,
    with_value: &[&str],
    mut see: impl FnMut(&str, &OsStr),
) -> Option<OsString> {
    while let Some(argument) = arguments.next() {
        let bytes = argument.as_bytes();
        if bytes == b"--" {
            return arguments.next().cloned();
        }
        if !bytes.starts_with(b"-") || bytes == b"-" {
            return Some(argument.clone());
        }
        let at = bytes.iter().position(|byte| *byte == b'=');
        let (name, value) = match at {
            Some(at) => (bytes.get(..at)?, bytes.get(at + 1..).map(OsStr::from_bytes)),
            None => (bytes, None),
        };
        // Both spellings of a long option are known to these runtimes.
        let name = String::from_utf8_lossy(name);
        let known = with_value.iter().find(|known| {
            **known == name || known.strip_prefix('-').is_some_and(|short| short == name)
        });
        if let Some(known) = known {
            match value {
                Some(value) => see(known, value),
                None => see(known, arguments.next()?),
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Asked {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        parse(&arguments, Path::new("/here"))
    }

    fn created(configuration: &str, id: &str) -> Verb {
        Verb::Create(Bundle { configuration: configuration.into(), id: id.into() })
    }

    #[test]
    fn what_engines_ask_for_is_understood_and_the_rest_left_alone() {
        let rows = [
            (
                "--root /r --log /l --log-format json create --bundle /b --pid-file /p c1",
                created("/b/config.json", "c1"),
            ),
            ("--systemd-cgroup create -b /b c1", created("/b/config.json", "c1")),
            (
                "--root=/r create --bundle=/b --console-socket /s c1",
                created("/b/config.json", "c1"),
            ),
            ("-root /r create -bundle /b c1", created("/b/config.json", "c1")),
            ("create c1", created("/here/config.json", "c1")),
            ("create -b below c1", created("/here/below/config.json", "c1")),
            ("create c1 --bundle /b", created("/b/config.json", "c1")),
            ("create -b /b --config /other.json c1", created("/other.json", "c1")),
            ("create -f other.json -b /b c1", created("/b/other.json", "c1")),
            ("run --bundle /b c1", created("/b/config.json", "c1")),
            ("create -- c1", created("/here/config.json", "c1")),
            ("--log-format=json start c1", Verb::Other),
            ("--root create state c1", Verb::Other),
            ("--rootless false delete --force c1", Verb::Other),
            ("exec --process /p c1", Verb::Other),
            ("--version", Verb::Other),
        ];
        for (line, expected) in rows {
            assert_eq!(parsed(line).verb, expected, "{line}");
        }
    }

    #[test]
    fn what_might_make_a_container_in_a_way_that_is_not_understood_is_refused() {
        for line in [
            "create",
            "create --unknown value c1",
            "--unknown value create -b /b c1",
            "restore --image-path /i c1",
            "conjure c1",
        ] {
            assert!(matches!(parsed(line).verb, Verb::Refused(_)), "{line}");
        }
    }

    #[test]
    fn the_log_that_the_engine_reads_is_found() {
        assert_eq!(parsed("--log /l create c1").log, Some(PathBuf::from("/l")));
        assert_eq!(parsed("--log=l create c1").log, Some(PathBuf::from("/here/l")));
        assert_eq!(parsed("create c1").log, None);
    }
}
