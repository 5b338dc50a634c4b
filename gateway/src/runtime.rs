//! `tollgate-runtime`: an OCI runtime that governs a container before its first instruction, in front of the real one.
//!
//! ```text
//! engine ── create ── tollgate-runtime ── configuration judged and changed by the daemon ── runc create
//!                     first instruction ── armed ── daemon ── tollgate-runtime hook (createRuntime) ──┘
//! ```
//!
//! Only what makes a container is looked into; everything else goes to the real runtime as it came, with a daemon or
//! without. It decides nothing: whose a container is, what speaks against it and what is put into it, the daemon says.
//! What the daemon does not answer, or answers with a refusal, is not created.

pub mod arguments;
pub mod bundle;
pub mod hook;
pub mod install;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::admin;
use arguments::{Bundle, Verb};

/// The name under which the binary is this.
pub const NAME: &str = "tollgate-runtime";

/// Beside the program: a link to the runtime that does the work.
pub const REAL: &str = "real-runtime";

/// Where the real runtime is looked for when nothing says where it is.
const USUAL: [&str; 4] =
    ["/usr/bin/runc", "/usr/sbin/runc", "/usr/local/bin/runc", "/usr/local/sbin/runc"];

/// What the daemon reads, but for what the question says besides.
const CONFIGURATION_MAX_BYTES: u64 = admin::BODY_MAX_BYTES as u64 - 8 * 1024;

/// Does what `program`, the name by which the binary was called, was asked for; becomes the real runtime unless it was
/// called as the hook.
///
/// # Errors
/// When a container must not be made, when the hook fails, and when the real runtime cannot be started.
pub fn main(program: &OsStr, arguments: &[OsString]) -> anyhow::Result<()> {
    if arguments.first().is_some_and(|verb| verb == hook::VERB) {
        return hook::main(&mut std::io::stdin());
    }
    let asked = arguments::parse(arguments, &std::env::current_dir()?);
    let prepared = || -> anyhow::Result<PathBuf> {
        let program = Path::new(program);
        match asked.verb {
            Verb::Create(bundle) => prepare(&bundle, program)?,
            Verb::Refused(why) => bail!("{why}"),
            Verb::Other => {}
        }
        real_runtime(program)
    };
    let real = prepared().inspect_err(|error| {
        if let Some(log) = &asked.log {
            tell_engine(log, error);
        }
    })?;
    let failed = Command::new(&real).args(arguments).exec();
    Err(failed).with_context(|| format!("cannot start the real runtime {}", real.display()))
}

/// Has the container's configuration judged and changed.
fn prepare(bundle: &Bundle, program: &Path) -> anyhow::Result<()> {
    let file = &bundle.configuration;
    let id = bundle.id.to_string_lossy();
    let id = hook::checked_id(&id)?;
    let configuration = read(file).with_context(|| format!("cannot read {}", file.display()))?;
    // A link that outlives an upgrade of the binary, where there is one.
    let own = if program.is_absolute() { program.to_owned() } else { std::env::current_exe()? };
    let body = json!({ "configuration": configuration, "hook": own });
    let mut answer = hook::ask(&format!("/v1/containers/{id}/prepare"), &body)?;
    let changed = answer.get_mut("configuration").map(Value::take).unwrap_or_default();
    anyhow::ensure!(changed.is_object(), "the daemon has not said what the container is to be");
    rewrite(file, &changed).with_context(|| format!("cannot write {}", file.display()))
}

fn read(file: &Path) -> anyhow::Result<Value> {
    let mut text = Vec::new();
    File::open(file)?.take(CONFIGURATION_MAX_BYTES + 1).read_to_end(&mut text)?;
    let is_whole = u64::try_from(text.len()).is_ok_and(|length| length <= CONFIGURATION_MAX_BYTES);
    anyhow::ensure!(is_whole, "it has more than {CONFIGURATION_MAX_BYTES} bytes");
    Ok(serde_json::from_slice(&text)?)
}

/// The real runtime reads the old configuration or the new one, never a part of it.
fn rewrite(file: &Path, configuration: &Value) -> anyhow::Result<()> {
    let mode = fs::metadata(file)?.permissions().mode();
    let part = file.with_extension(format!("tollgate-{}", std::process::id()));
    let mut options = OpenOptions::new();
    let mut written = options.write(true).create_new(true).mode(0o600).open(&part)?;
    let done = written
        .write_all(configuration.to_string().as_bytes())
        .and_then(|()| fs::set_permissions(&part, fs::Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&part, file));
    if done.is_err() {
        fs::remove_file(&part)?;
    }
    Ok(done?)
}

/// The runtime that does the work: what [`install`] has recorded, else runc where it usually is.
fn real_runtime(program: &Path) -> anyhow::Result<PathBuf> {
    let recorded = program.parent().map(|folder| folder.join(REAL));
    if let Some(link) = recorded.filter(|link| link.symlink_metadata().is_ok()) {
        let real = fs::canonicalize(&link).with_context(|| {
            format!(
                "the real runtime, to which {} leads, is not there; install it, or say where it is: tollgate runtime install --real FILE",
                link.display()
            )
        })?;
        return install::not_own(real);
    }
    let usual = USUAL.iter().map(Path::new).find_map(|path| fs::canonicalize(path).ok());
    usual.map_or_else(
        || bail!("there is no runc; say where the real runtime is: tollgate runtime install --real FILE"),
        install::not_own,
    )
}

/// The engine reads the last error out of this file, in the real runtime's words (`--log-format json`).
fn tell_engine(log: &Path, error: &anyhow::Error) {
    let time = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let line = json!({ "level": "error", "msg": format!("tollgate: {error:#}"), "time": time });
    let told = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(log)
        .and_then(|mut log| writeln!(log, "{line}"));
    if let Err(error) = told {
        tracing::warn!(%error, log = %log.display(), "the engine is not told why");
    }
}
