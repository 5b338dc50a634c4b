//! Files → text: the configuration file and the parts in `policy.d` beside it.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::diagnostic::line_and_column;
use super::{ConfigErrors, Diagnostic};

/// One file and what it may contain.
#[derive(Debug)]
pub(super) struct Document {
    /// As it was named.
    pub(super) file: PathBuf,
    /// Where relative paths in the document begin.
    pub(super) folder: PathBuf,
    pub(super) text: String,
    pub(super) kind: DocumentKind,
}

/// What a file may contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DocumentKind {
    /// Everything.
    Main,
    /// `[[agent]]`, `[[credential]]` and `[[rule]]`.
    Part,
}

/// Reads `path` and every `policy.d/*.toml` beside it, these in the order of their names.
///
/// # Errors
/// Everything that cannot be read. What the rest says is not looked at then: most of it would be consequences.
pub(super) fn read_all(path: &Path) -> Result<Vec<Document>, ConfigErrors> {
    let (parts, mut unreadable) =
        match find_parts(&path.parent().unwrap_or_else(|| Path::new("")).join(PARTS_FOLDER)) {
            Ok(parts) => (parts, Vec::new()),
            Err(diagnostic) => (Vec::new(), vec![diagnostic]),
        };
    let main = std::iter::once((path.to_owned(), DocumentKind::Main));
    let parts = parts.into_iter().map(|part| (part, DocumentKind::Part));
    let mut documents = Vec::new();
    for (file, kind) in main.chain(parts) {
        match read(file, kind) {
            Ok(document) => documents.push(document),
            Err(diagnostic) => unreadable.push(diagnostic),
        }
    }
    if unreadable.is_empty() { Ok(documents) } else { Err(ConfigErrors::unreadable(unreadable)) }
}

fn find_parts(folder: &Path) -> Result<Vec<PathBuf>, Diagnostic> {
    let fails = |error: io::Error| {
        let message = format!("cannot be read: {error}");
        Diagnostic::at_start(folder, message, "make the folder readable, or remove it")
    };
    let entries = match folder.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fails(error)),
    };
    let mut parts = Vec::new();
    for entry in entries {
        let file = entry.map_err(fails)?.path();
        let hidden = file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && file.extension().is_some_and(|extension| extension == "toml") {
            parts.push(file);
        }
    }
    parts.sort();
    Ok(parts)
}

fn read(file: PathBuf, kind: DocumentKind) -> Result<Document, Diagnostic> {
    let fails = |error: &dyn fmt::Display| {
        Diagnostic::at_start(
            &file,
            format!("cannot be read: {error}"),
            "write that file, or name a readable TOML file with --config",
        )
    };
    let mut bytes = Vec::new();
    let opened = File::open(&file).map_err(|error| fails(&error))?;
    opened.take(DOCUMENT_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|error| fails(&error))?;
    if bytes.len() as u64 > DOCUMENT_MAX_BYTES {
        return Err(fails(&format!("it is larger than {DOCUMENT_MAX_BYTES} bytes")));
    }
    let absolute = std::path::absolute(&file).map_err(|error| fails(&error))?;
    let folder = absolute.parent().unwrap_or_else(|| Path::new("/")).to_owned();
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Document { file, folder, text, kind }),
        Err(error) => {
            let valid = String::from_utf8_lossy(
                error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or(&[]),
            );
            let (line, column) = line_and_column(&valid, valid.len());
            let help = Some("write the file in UTF-8".to_owned());
            Err(Diagnostic { file, line, column, message: "not valid UTF-8".to_owned(), help })
        }
    }
}

/// The folder beside the configuration file with further agents, credentials and rules.
const PARTS_FOLDER: &str = "policy.d";

/// Largest configuration file: some ten thousand rules. What is larger is most likely not meant.
const DOCUMENT_MAX_BYTES: u64 = 4 * 1024 * 1024;
