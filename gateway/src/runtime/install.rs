//! Makes the runtime known to an engine, and unknown again.
//!
//! The engine's configuration is changed as text, in one place: whatever else stands in it, and however it is written,
//! stays as it is.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

mod document;

use document::Document;

/// Under which name the engine knows the runtime.
pub const RUNTIME: &str = "tollgate";

/// What stands in a configuration that has to be made.
const NEW: &str = "{}\n";

/// What is installed where.
#[derive(Debug, Clone)]
pub struct Places {
    /// The engine's configuration.
    pub configuration: PathBuf,
    /// The folder for [`super::NAME`] and [`super::REAL`].
    pub folder: PathBuf,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// The engine's configuration is another one now: the engine has to read it.
    Changed,
    /// It was so before.
    Nothing,
}

/// Installs the runtime in front of `real`, or in front of the runc that is found.
///
/// # Errors
/// When the engine's configuration is not what it should be (it is left as it is), or a file cannot be written.
pub fn install(places: &Places, real: Option<&Path>) -> anyhow::Result<Done> {
    let file = &places.configuration;
    let program = places.folder.join(super::NAME);
    let real = match real {
        Some(real) => not_own(fs::canonicalize(real).with_context(|| real.display().to_string())?)?,
        None => super::real_runtime(&program)?,
    };
    let former = read(file)?;
    let text = former.as_deref().unwrap_or(NEW);
    let document = Document::parse(text).with_context(|| not_json(file))?;
    let changed =
        document.with_runtime(RUNTIME, &program).with_context(|| file.display().to_string())?;
    // The links first: an engine that reads its configuration now finds what it names.
    DirBuilder::new().recursive(true).mode(0o755).create(&places.folder)?;
    link(&std::env::current_exe()?, &program)?;
    link(&real, &places.folder.join(super::REAL))?;
    let Some(changed) = changed else { return Ok(Done::Nothing) };
    if let Some(former) = &former {
        write(&backup(file), former, file)?;
    }
    write(file, &changed, file)?;
    Ok(Done::Changed)
}

/// Undoes [`install`], and nothing that others have changed since.
///
/// # Errors
/// As [`install`]; also when the engine uses the runtime by default.
pub fn uninstall(places: &Places) -> anyhow::Result<Done> {
    let file = &places.configuration;
    let mut done = Done::Nothing;
    if let Some(former) = read(file)? {
        let document = Document::parse(&former).with_context(|| not_json(file))?;
        if document.default_runtime.as_deref() == Some(RUNTIME) {
            bail!(
                "{}: \"default-runtime\" is \"{RUNTIME}\", and no container could start; name another one there first",
                file.display()
            );
        }
        let program = places.folder.join(super::NAME);
        if let Some(changed) = document.without_runtime(RUNTIME, &program) {
            let kept = read(&backup(file))?;
            // Where nobody else has changed anything since, what stood there before stands there again to the byte.
            let is_as_installed =
                Document::parse(kept.as_deref().unwrap_or(NEW)).is_ok_and(|kept| {
                    kept.with_runtime(RUNTIME, &program).is_ok_and(|it| it == Some(former))
                });
            match (is_as_installed, kept) {
                (true, Some(kept)) => write(file, &kept, file)?,
                (true, None) => fs::remove_file(file)?,
                (false, _) => write(file, &changed, file)?,
            }
            done = Done::Changed;
        }
    }
    for name in [super::NAME, super::REAL] {
        absent(fs::remove_file(places.folder.join(name)))?;
    }
    absent(fs::remove_file(backup(file)))?;
    // Whatever else is in there is not ours.
    if let Err(error) = fs::remove_dir(&places.folder) {
        tracing::debug!(%error, "the folder stays");
    }
    Ok(done)
}

/// A runtime that is this program would start itself for ever.
pub(super) fn not_own(real: PathBuf) -> anyhow::Result<PathBuf> {
    let own = fs::canonicalize("/proc/self/exe")?;
    anyhow::ensure!(
        own != real,
        "the real runtime is said to be {}, which is Tollgate itself; say where runc is: tollgate runtime install --real FILE",
        real.display()
    );
    Ok(real)
}

fn not_json(file: &Path) -> String {
    format!(
        "{} is not what an engine reads, and is left as it is; correct it (`python3 -m json.tool FILE` shows the place too)",
        file.display()
    )
}

/// What stood there before.
fn backup(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".before-tollgate");
    file.with_file_name(name)
}

fn read(file: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Whole or not at all, with the rights that `like` has.
fn write(file: &Path, text: &str, like: &Path) -> anyhow::Result<()> {
    let mode = fs::metadata(like).map_or(0o644, |found| found.permissions().mode() & 0o7777);
    // Whoever has made a link of it wants the file behind it changed.
    let file = fs::canonicalize(file).unwrap_or_else(|_new| file.to_owned());
    let part = file.with_extension("tollgate-part");
    let written = || -> io::Result<()> {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        absent(fs::remove_file(&part))?;
        let mut options = OpenOptions::new();
        let mut open = options.write(true).create_new(true).mode(0o600).open(&part)?;
        open.write_all(text.as_bytes())?;
        fs::set_permissions(&part, fs::Permissions::from_mode(mode))?;
        open.sync_all()?;
        fs::rename(&part, &file)
    };
    written().with_context(|| format!("cannot write {}", file.display()))
}

/// Makes `name` lead to `target`, in one step.
fn link(target: &Path, name: &Path) -> anyhow::Result<()> {
    let part = name.with_extension("part");
    let made = || -> io::Result<()> {
        absent(fs::remove_file(&part))?;
        symlink(target, &part)?;
        fs::rename(&part, name)
    };
    made().with_context(|| format!("cannot make the link {}", name.display()))
}

fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
