//! `tollgate ca`: the CA that workloads trust.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use super::Printed;
use crate::config::{Config, SourceCheck};
use crate::terminate::{self, Described};

/// Show the CA that workloads trust, or replace it
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = super::CONFIG, global = true)]
    config: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show file, fingerprint and validity
    Show,
    /// Make a successor, which running containers trust besides the CA at once; after the overlap it takes over, in a
    /// running daemon too
    Rotate {
        /// For how many hours at least both are trusted before the successor signs
        #[arg(long, value_name = "HOURS", default_value_t = OVERLAP_HOURS)]
        overlap_hours: u32,
    },
}

/// A week: most containers are restarted in it, and with them the clients that have read their roots once.
const OVERLAP_HOURS: u32 = 7 * 24;

pub(super) fn main(arguments: &Arguments) -> Printed {
    let config = match Config::load_with(&arguments.config, SourceCheck::Skip) {
        Ok(config) => config,
        Err(errors) => return Printed::failure(format!("{errors}\n")),
    };
    ca(&config.gateway.state_dir, &arguments.verb)
}

fn ca(state_dir: &Path, verb: &Verb) -> Printed {
    let described = match verb {
        Verb::Show => terminate::describe(state_dir),
        Verb::Rotate { overlap_hours } => {
            terminate::rotate(state_dir, Duration::hours(i64::from(*overlap_hours)))
        }
    };
    match described {
        Ok(list) if list.is_empty() => Printed::failure(format!(
            "tollgate: there is no CA in {} yet; it is made by the first `tollgate daemon` or `tollgate run`\n",
            state_dir.display()
        )),
        Ok(list) => Printed::success(text(&list)),
        Err(error) => Printed::failure(format!("tollgate: {:#}\n", anyhow::Error::from(error))),
    }
}

fn text(list: &[Described]) -> String {
    let mut text = String::new();
    for one in list {
        let role = match one.signs_from {
            Some(from) => format!("trusted, signs from {}", shown(from)),
            None if list.len() > 1 && one == list.last().unwrap_or(one) => {
                "trusted, never signs: its time cannot be read".to_owned()
            }
            None => "signs".to_owned(),
        };
        let lines = [
            ("file", one.path.display().to_string()),
            ("use", role),
            ("sha256", one.fingerprint.clone()),
            ("valid", format!("{} to {}", shown(one.not_before), shown(one.not_after))),
        ];
        for (name, value) in lines {
            text.push_str(&format!("{name:<8}{value}\n"));
        }
    }
    text
}

fn shown(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_else(|_no_such_year| "?".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminate::Authority;

    #[test]
    fn a_ca_is_shown_and_replaced_once_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let missing = ca(folder.path(), &Verb::Show);
        assert!(missing.code == 1 && missing.text.contains("no CA"), "{missing:?}");
        drop(Authority::open(folder.path()).unwrap());
        let one = ca(folder.path(), &Verb::Show).text;
        assert_eq!(one.lines().count(), 4, "{one}");
        assert!(one.contains("ca.pem\nuse     signs\nsha256  "), "{one}");
        let rotate = Verb::Rotate { overlap_hours: 1 };
        let both = ca(folder.path(), &rotate);
        assert!(both.code == 0 && both.text.starts_with(&one), "{both:?}");
        assert!(both.text.contains("trusted, signs from 2"), "{both:?}");
        assert_eq!(ca(folder.path(), &rotate).code, 1);
        assert_eq!(ca(folder.path(), &Verb::Show), both);
    }
}
