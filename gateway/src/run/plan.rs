//! What init has to do, written down by Tollgate and read by the first process of the workload.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::mounts::{self, Mounts};
use super::user::User;
use super::{Asked, Request};
use crate::capture::Cgroup;
use crate::config::Config;
use crate::policy::{CredentialSpec, SourceSpec};
use crate::trust;

/// Everything that init needs to know. Holds no secret.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Writing `0` to it moves the writer into the workload's cgroup.
    pub(super) cgroup_procs: PathBuf,
    /// What is mounted before the command starts.
    pub(super) mounts: Mounts,
    /// As whom the command runs; absent: as the caller.
    pub(super) user: Option<User>,
    /// The command and its arguments.
    pub(super) command: Vec<OsString>,
    /// Its whole environment.
    pub(super) environment: Vec<(OsString, OsString)>,
    /// Its working directory.
    pub(super) working_directory: PathBuf,
    /// Numbers of the signals that are blocked in it.
    pub(super) blocked_signals: Vec<i32>,
    /// Its soft limit of open files.
    pub(super) open_files: u64,
}

impl Plan {
    pub(super) fn new(asked: &Asked<'_>, cgroup: &Cgroup) -> anyhow::Result<Self> {
        let Asked { request, config, ca_pem, user, search, signals, open_files } = asked;
        let working_directory = std::env::current_dir().context("the working directory is gone")?;
        let bundle = trust::bundle::merged(&trust::bundle::system_bundles(), ca_pem)?;
        Ok(Self {
            cgroup_procs: cgroup.path().join("cgroup.procs"),
            mounts: Mounts {
                ca: (*ca_pem).to_owned(),
                bundle,
                bundle_targets: trust::bundle::system_bundles(),
                masks: masks(config),
                resolv_conf: mounts::resolv_conf(search),
            },
            environment: environment(request, config, user.as_ref()),
            user: user.clone(),
            command: request.command.clone(),
            working_directory,
            blocked_signals: signals.blocked_before(),
            open_files: *open_files,
        })
    }
}

/// What the command must not reach: the CA's key, counters, other agents' records, credentials, host services.
fn masks(config: &Config) -> Vec<PathBuf> {
    let mut masks: Vec<PathBuf> = config
        .policy
        .credentials()
        .filter_map(|credential| match &credential.source {
            SourceSpec::File(path) => Some(path.clone()),
            SourceSpec::Env(_) => None,
        })
        .collect();
    // It may also be a pipe or a terminal, which shows nobody what went through it.
    if config.gateway.audit.is_file() {
        masks.push(config.gateway.audit.clone());
    }
    masks.push(config.gateway.state_dir.clone());
    masks.extend(mounts::OWN_DIRECTORIES.iter().map(PathBuf::from));
    masks.extend(mounts::HOST_SOCKETS.iter().map(PathBuf::from));
    masks
}

/// What stands where a client insists on a key: harmless, and overwritten at the place of injection.
pub(crate) fn placeholder(credential: &CredentialSpec) -> String {
    format!("tollgate-placeholder-{}", credential.name.as_str())
}

/// The caller's environment without what holds credentials, with what makes clients trust the CA, and with the
/// identity of the user that the command runs as.
fn environment(
    request: &Request,
    config: &Config,
    user: Option<&User>,
) -> Vec<(OsString, OsString)> {
    let holds_credential = |name: &OsString| {
        config.policy.credentials().any(|credential| match &credential.source {
            SourceSpec::Env(variable) => name == variable.as_str(),
            SourceSpec::File(_) => false,
        })
    };
    let mut added: Vec<(OsString, OsString)> =
        trust::environment::variables(mounts::BUNDLE.as_ref(), mounts::CA.as_ref())
            .into_iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value)))
            .collect();
    for credential in config.policy.credentials_of(&request.agent) {
        if let Some(variable) = &credential.env {
            added.push((variable.into(), placeholder(credential).into()));
        }
    }
    if let Some(user) = user {
        added.push(("USER".into(), user.name.clone().into()));
        added.push(("LOGNAME".into(), user.name.clone().into()));
        added.push(("HOME".into(), user.home.clone().into()));
    }
    let mut environment: Vec<(OsString, OsString)> = request
        .environment
        .iter()
        .filter(|(name, _)| {
            !holds_credential(name) && !added.iter().any(|(other, _)| other == name)
        })
        .cloned()
        .collect();
    environment.append(&mut added);
    environment
}
