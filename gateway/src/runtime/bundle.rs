//! The configuration of a container (OCI runtime specification, `config.json`): where it will be, and what is changed
//! in it.

pub mod objections;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::capture::SLICE;

/// A container's configuration, read whole and changed in few places.
#[derive(Debug, Clone)]
pub struct Configuration(Map<String, Value>);

/// What is put into a configuration.
#[derive(Debug, Clone, Default)]
pub struct Additions {
    /// The program that the real runtime starts when the container's namespaces and cgroup stand, and its arguments.
    pub hook: PathBuf,
    /// Variables of its first process, in place of those of the same name.
    pub environment: Vec<(String, String)>,
    /// Variables that it gets where it has none of the same name.
    pub defaults: Vec<(String, String)>,
    /// Files or folders that it sees read-only: where they are on the host, and where it sees them.
    pub mounts: Vec<(PathBuf, PathBuf)>,
}

/// Seconds after which the real runtime ends the hook, and fails the container. The hook itself gives up before.
const HOOK_SECONDS: u64 = super::hook::PATIENCE.as_secs() + 5;

/// Where engines put containers when nobody names a parent: Docker's and Podman's, as cgroupfs and as systemd have it.
const ENGINES_OWN: [&str; 5] =
    ["docker", "system.slice", "libpod_parent", "machine.slice", "buildkit"];

impl Configuration {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// When it is no JSON object.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text).map(Self)
    }

    /// One that was read already. `None` when it is no object.
    #[must_use]
    pub fn of(value: Value) -> Option<Self> {
        if let Value::Object(object) = value { Some(Self(object)) } else { None }
    }

    /// The configuration as JSON.
    #[must_use]
    pub fn into_json(self) -> Value {
        Value::Object(self.0)
    }

    fn at(&self, pointer: &str) -> Option<&Value> {
        let mut parts = pointer.split('/');
        let first = self.0.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.get(part))
    }

    fn list(&self, pointer: &str) -> &[Value] {
        self.at(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    fn cgroups_path(&self) -> &str {
        self.at("linux/cgroupsPath").and_then(Value::as_str).unwrap_or_default()
    }

    /// Puts the container `id` into Tollgate's slice, unless the operator has named a parent for it. The path keeps the
    /// form of the engine's cgroup driver.
    pub fn place(&mut self, id: &str) {
        let path = match *self.cgroups_path().split(':').collect::<Vec<_>>().as_slice() {
            // systemd's form is slice:prefix:name. No slice is the engine's own as well.
            [slice, prefix, name] if slice.is_empty() || is_engines_own(slice) => {
                format!("{SLICE}:{prefix}:{name}")
            }
            [""] => format!("/{SLICE}/{id}"),
            [path] if is_engines_own(path) => {
                let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
                format!("/{SLICE}/{name}")
            }
            _ => return,
        };
        with_object(&mut self.0, "linux", |linux| {
            linux.insert("cgroupsPath".to_owned(), Value::String(path));
        });
    }

    /// Where the container's cgroup will be below the root of the hierarchy, as far as the configuration says it.
    #[must_use]
    pub fn cgroup(&self) -> PathBuf {
        let path = self.cgroups_path();
        match *path.split(':').collect::<Vec<_>>().as_slice() {
            [slice, prefix, name] => {
                let unit = if prefix.is_empty() {
                    format!("{name}.scope")
                } else {
                    format!("{prefix}-{name}.scope")
                };
                slice_path(slice).join(unit)
            }
            _ => Path::new("/").join(path.trim_start_matches('/')),
        }
    }

    /// Puts in what makes the container a governed one.
    pub fn add(&mut self, additions: &Additions) {
        let hook = json!({
            "path": additions.hook,
            "args": [super::NAME, super::hook::VERB],
            "timeout": HOOK_SECONDS,
        });
        with_object(&mut self.0, "hooks", |hooks| {
            match hooks.get_mut("createRuntime").and_then(Value::as_array_mut) {
                // First: what other hooks do then is governed as well.
                Some(list) => list.insert(0, hook),
                None => {
                    hooks.insert("createRuntime".to_owned(), json!([hook]));
                }
            }
        });
        with_object(&mut self.0, "process", |process| {
            with_list(process, "env", |list| {
                set_variables(list, &additions.environment);
                add_variables(list, &additions.defaults);
            });
        });
        with_list(&mut self.0, "mounts", |list| {
            list.extend(additions.mounts.iter().map(|(source, destination)| {
                json!({
                    "type": "bind",
                    "source": source,
                    "destination": destination,
                    "options": ["bind", "ro", "nosuid", "nodev", "noexec", "rprivate"],
                })
            }));
        });
    }
}

fn is_engines_own(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    ENGINES_OWN.contains(&first)
}

/// The cgroup of a slice of systemd's (systemd.slice(5)): `a-b.slice` is below `a.slice`.
fn slice_path(slice: &str) -> PathBuf {
    let mut path = PathBuf::from("/");
    let Some(name) = slice.strip_suffix(".slice").filter(|name| *name != "-") else { return path };
    for (at, _) in name.match_indices('-').chain([(name.len(), "")]) {
        path.push(format!("{}.slice", name.get(..at).unwrap_or_default()));
    }
    path
}

fn set_variables(list: &mut Vec<Value>, variables: &[(String, String)]) {
    list.retain(|entry| !variables.iter().any(|(name, _)| name_of(entry) == Some(name)));
    add_variables(list, variables);
}

/// Those that are not there.
fn add_variables(list: &mut Vec<Value>, variables: &[(String, String)]) {
    for (name, value) in variables {
        if !list.iter().any(|entry| name_of(entry) == Some(name)) {
            list.push(Value::String(format!("{name}={value}")));
        }
    }
}

fn name_of(entry: &Value) -> Option<&str> {
    entry.as_str()?.split('=').next()
}

/// The object at `key`, made where there is none.
fn with_object(
    parent: &mut Map<String, Value>,
    key: &str,
    change: impl FnOnce(&mut Map<String, Value>),
) {
    let value = parent.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    if let Some(object) = value.as_object_mut() {
        change(object);
    }
}

/// The list at `key`, made where there is none.
fn with_list(parent: &mut Map<String, Value>, key: &str, change: impl FnOnce(&mut Vec<Value>)) {
    let value = parent.entry(key).or_insert(Value::Null);
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    if let Some(list) = value.as_array_mut() {
        change(list);
    }
}

#[cfg(test)]
mod tests;
