//! The command line of an OCI runtime, as far as one in front of it has to know it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// What an engine asks its runtime for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// A new container out of a bundle.
    Create(Bundle),
    /// The first instruction of a container that was created.
    Start(OsString),
    /// Anything else: no matter of ours.
    Other,
}

/// Where a container's configuration is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// The folder with `config.json`.
    pub folder: PathBuf,
    /// The container's id.
    pub id: OsString,
}

/// Global options of runc and crun that take a value as the next argument.
const GLOBAL_WITH_VALUE: [&str; 5] =
    ["--root", "--log", "--log-format", "--log-level", "--cgroup-manager"];

/// Options of `create` and `run` that take a value as the next argument.
const CREATE_WITH_VALUE: [&str; 7] =
    ["--bundle", "-b", "--pid-file", "--console-socket", "--preserve-fds", "--config", "-f"];

/// Reads `arguments`, without the program's name. `here` is the working folder: the bundle's default.
#[must_use]
pub fn parse(arguments: &[OsString], here: PathBuf) -> Verb {
    let mut arguments = arguments.iter();
    let Some(verb) = next_word(&mut arguments, &GLOBAL_WITH_VALUE, |_, _| {}) else {
        return Verb::Other;
    };
    match verb.as_bytes() {
        b"create" | b"run" => {
            let mut folder = here;
            let id = next_word(&mut arguments, &CREATE_WITH_VALUE, |option, value| {
                if option == "--bundle" || option == "-b" {
                    folder = PathBuf::from(value);
                }
            });
            // Options may follow the id; the last one counts, as for the real runtime.
            let Some(id) = id else { return Verb::Other };
            let rest = next_word(&mut arguments, &CREATE_WITH_VALUE, |option, value| {
                if option == "--bundle" || option == "-b" {
                    folder = PathBuf::from(value);
                }
            });
            // Two words that are no options: no runtime takes that.
            if rest.is_some() { Verb::Other } else { Verb::Create(Bundle { folder, id }) }
        }
        b"start" => next_word(&mut arguments, &[], |_, _| {}).map_or(Verb::Other, Verb::Start),
        _ => Verb::Other,
    }
}

/// The next argument that is no option; options with a value are shown to `see`.
fn next_word(
    arguments: &mut impl Iterator<Item = &OsString>,
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

    fn parsed(line: &str) -> Verb {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        parse(&arguments, PathBuf::from("/here"))
    }

    fn created(folder: &str, id: &str) -> Verb {
        Verb::Create(Bundle { folder: folder.into(), id: id.into() })
    }

    #[test]
    fn what_engines_ask_for_is_understood_and_the_rest_left_alone() {
        let rows = [
            (
                "--root /r --log /l --log-format json create --bundle /b --pid-file /p c1",
                created("/b", "c1"),
            ),
            ("--systemd-cgroup create -b /b c1", created("/b", "c1")),
            ("--root=/r create --bundle=/b --console-socket /s c1", created("/b", "c1")),
            ("-root /r create -bundle /b c1", created("/b", "c1")),
            ("create c1", created("/here", "c1")),
            ("create c1 --bundle /b", created("/b", "c1")),
            ("run --bundle /b c1", created("/b", "c1")),
            ("--log-format=json start c1", Verb::Start("c1".into())),
            ("--root create state c1", Verb::Other),
            ("delete --force c1", Verb::Other),
            ("exec --process /p c1", Verb::Other),
            ("create", Verb::Other),
            ("--version", Verb::Other),
        ];
        for (line, expected) in rows {
            assert_eq!(parsed(line), expected, "{line}");
        }
    }
}
