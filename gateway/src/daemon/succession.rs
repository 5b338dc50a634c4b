//! A CA that replaces another takes over without a restart.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use tokio::task::JoinHandle;

use crate::terminate::{Authority, AuthorityError};

/// Watches the CA's files.
pub(super) struct Succession {
    state_dir: PathBuf,
    /// Opening waits for a lock, which nothing else waits for.
    opening: Option<JoinHandle<Result<Authority, AuthorityError>>>,
    /// What was wrong last, which is said once.
    said: Option<String>,
}

impl Succession {
    pub(super) fn of(state_dir: PathBuf) -> Self {
        Self { state_dir, opening: None, said: None }
    }

    /// Where the files are.
    pub(super) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The CA that takes the place of `current`, or is `current` with a successor, once that has been opened. What is
    /// wrong with it is said, and `current` stays.
    pub(super) async fn next(&mut self, current: &Authority) -> Option<Authority> {
        match self.opening.take() {
            Some(opening) if !opening.is_finished() => {
                self.opening = Some(opening);
                None
            }
            Some(opening) => match opening.await {
                Ok(Ok(authority)) => {
                    self.said = None;
                    Some(authority)
                }
                Ok(Err(error)) => {
                    self.say(format!("{:#}", anyhow::Error::from(error)));
                    None
                }
                Err(error) => {
                    self.say(error.to_string());
                    None
                }
            },
            None => {
                if current.is_outdated(&self.state_dir, OffsetDateTime::now_utc()) {
                    let state_dir = self.state_dir.clone();
                    self.opening =
                        Some(tokio::task::spawn_blocking(move || Authority::open(&state_dir)));
                }
                None
            }
        }
    }

    fn say(&mut self, problem: String) {
        if self.said.as_ref() != Some(&problem) {
            tracing::error!("the CA was not opened anew, and goes on as it was: {problem}");
            self.said = Some(problem);
        }
    }
}
