//! The createRuntime hook: has a container armed between the making of its namespaces and its first instruction.
//!
//! The real runtime waits for it, and removes the container when it fails (OCI runtime specification, "Posix-platform
//! Hooks"). It asks for nothing but the arming of one process: the daemon finds cgroup and network of that process
//! itself.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::admin;

/// The argument by which the runtime calls it.
pub const VERB: &str = "hook";

/// How long the daemon may take to judge or arm a container before it is not started.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The runtime tells some hundred bytes, and the container's annotations.
const STATE_MAX_BYTES: u64 = 1024 * 1024;
/// Docker's and Podman's have 64; others are names that people choose.
const ID_MAX_BYTES: usize = 256;

/// What the runtime tells a hook of the container, as far as it matters.
#[derive(Debug, Deserialize)]
struct State {
    id: String,
    /// Its first process, in the runtime's PID namespace.
    pid: i32,
}

/// Reads the container's state and returns when it is armed.
///
/// # Errors
/// When it is not, whatever the reason.
pub fn main(state: &mut impl Read) -> anyhow::Result<()> {
    let State { id, pid } = read(state).context("the runtime does not say which container")?;
    let id = checked_id(&id)?;
    let answer = ask(&format!("/v1/containers/{id}/arm"), &json!({ "pid": pid }))?;
    let is_armed = answer.get("armed").and_then(Value::as_bool) == Some(true);
    anyhow::ensure!(is_armed, "the daemon has not said that the container is governed");
    Ok(())
}

fn read(state: &mut impl Read) -> anyhow::Result<State> {
    let mut text = Vec::new();
    state.take(STATE_MAX_BYTES).read_to_end(&mut text)?;
    let state: State = serde_json::from_slice(&text)?;
    anyhow::ensure!(state.pid > 0, "its process has the number {}", state.pid);
    Ok(state)
}

/// An id that is a part of a path.
pub(super) fn checked_id(id: &str) -> anyhow::Result<&str> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
    if id.is_empty() || id.len() > ID_MAX_BYTES || !id.bytes().all(is_plain) {
        bail!("`{}` is no id of a container", id.escape_debug());
    }
    Ok(id)
}

/// Puts a question to the daemon, and waits for its answer at most [`PATIENCE`].
///
/// # Errors
/// When nobody answers, and when the answer is a refusal: the message is the daemon's.
pub(super) fn ask(path: &str, body: &Value) -> anyhow::Result<Value> {
    let socket = Path::new(admin::SOCKET);
    let answer = admin::ask(socket, Method::POST, path, Some(body), PATIENCE).context(
        "the container is not started, because nobody would govern it; start the daemon, or the container with the engine's own runtime",
    )?;
    if answer.status == StatusCode::OK {
        return Ok(answer.body);
    }
    let why = answer.body.get("error").and_then(Value::as_str);
    bail!("{}", why.unwrap_or("the daemon refuses it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_without_a_process_is_refused_before_anybody_is_asked() {
        for (text, expected) in [
            ("", "does not say which"),
            (r#"{"id":"c1"}"#, "does not say which"),
            (r#"{"id":"c1","pid":0,"status":"creating"}"#, "does not say which"),
            (r#"{"id":"../status","pid":1}"#, "is no id of a container"),
            (r#"{"id":"","pid":1}"#, "is no id of a container"),
        ] {
            let error = format!("{:#}", main(&mut text.as_bytes()).unwrap_err());
            assert!(error.contains(expected), "{text}: {error}");
        }
        let state = read(&mut r#"{"ociVersion":"1.0.2","id":"c1","pid":7}"#.as_bytes()).unwrap();
        assert_eq!((state.id.as_str(), state.pid), ("c1", 7));
    }
}
