//! Mistakes, each with its place, collected until there is nothing more to find.

use std::fmt;
use std::path::{Path, PathBuf};

use super::document::Document;

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file it is in.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong. Never quotes a value that could be a secret.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// Everything that is wrong with a configuration. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    diagnostics: Vec<Diagnostic>,
}

/// Where something stands: which document, and how many bytes into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) document: usize,
    pub(super) offset: usize,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// What has been found so far.
#[derive(Debug, Default)]
pub(super) struct Findings {
    found: Vec<Finding>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    place: Place,
    message: String,
    help: Option<String>,
    /// The text is no TOML there: what else is found on that line is a consequence.
    syntax: bool,
}

// === impl ConfigErrors ===

impl ConfigErrors {
    /// The mistakes, in the order of files and lines.
    #[must_use]
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// One mistake that concerns a whole file.
    pub(super) fn of_file(file: &Path, message: String, help: &str) -> Self {
        let file = file.to_owned();
        Self {
            diagnostics: vec![Diagnostic {
                file,
                line: 1,
                column: 1,
                message,
                help: Some(help.to_owned()),
            }],
        }
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, diagnostic) in self.diagnostics.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file.display(), self.line, self.column, self.message)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

// === impl Findings ===

impl Findings {
    /// Notes a mistake with its remedy.
    pub(super) fn add(
        &mut self,
        place: Place,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.found.push(Finding {
            place,
            message: message.into(),
            help: Some(help.into()),
            syntax: false,
        });
    }

    /// Notes that the text is no TOML at `place`.
    pub(super) fn add_syntax(&mut self, place: Place, message: &str) {
        let message = format!("not valid TOML: {message}");
        self.found.push(Finding { place, message, help: None, syntax: true });
    }

    /// All of them in the order of the text, or nothing if nothing was found.
    pub(super) fn into_result(mut self, documents: &[Document]) -> Result<(), ConfigErrors> {
        self.found.sort();
        self.found.dedup();
        let syntax_lines: Vec<_> = self
            .found
            .iter()
            .filter(|finding| finding.syntax)
            .map(|finding| (finding.place.document, line_and_column(documents, finding.place).0))
            .collect();
        let mut diagnostics = Vec::new();
        for finding in self.found {
            let (line, column) = line_and_column(documents, finding.place);
            if !finding.syntax && syntax_lines.contains(&(finding.place.document, line)) {
                continue;
            }
            let file = documents.get(finding.place.document).map(|document| document.file.clone());
            diagnostics.push(Diagnostic {
                file: file.unwrap_or_default(),
                line,
                column,
                message: finding.message,
                help: finding.help,
            });
        }
        if diagnostics.is_empty() { Ok(()) } else { Err(ConfigErrors { diagnostics }) }
    }
}

fn line_and_column(documents: &[Document], place: Place) -> (usize, usize) {
    let text = documents.get(place.document).map_or("", |document| document.text.as_str());
    let before = text.get(..place.offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before.get(line_start..).map_or(0, |line| line.chars().count());
    (before.matches('\n').count() + 1, column + 1)
}
