//! configuration file → checked [`Config`]: every mistake at once, each with file, line and column.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use crate::net::HostName;
use crate::policy::Policy;

/// A whole checked configuration.
#[derive(Debug)]
pub struct Config {
    /// `[gateway]`.
    pub gateway: Gateway,
    /// `[dns]`.
    pub dns: Dns,
    /// `[upstream]`.
    pub upstream: Upstream,
    /// Agents, credentials (without their values) and rules.
    pub policy: Arc<Policy>,
}

/// `[gateway]`: where things are.
#[derive(Debug)]
pub struct Gateway {
    /// Port of the listener inside each workload's network namespace, TCP and UDP.
    pub port: u16,
    /// CA, counters, secret store.
    pub state_dir: PathBuf,
    /// The audit log.
    pub audit: PathBuf,
}

/// `[dns]`.
#[derive(Debug)]
pub struct Dns {
    /// What a denied name is answered with.
    pub denied: DeniedName,
}

/// What a denied name is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeniedName {
    /// A synthetic address, so that HTTP clients get the explanatory refusal.
    Explain,
    /// REFUSED.
    Refuse,
}

/// `[upstream]`: how the gateway reaches the outside.
#[derive(Debug)]
pub struct Upstream {
    /// Roots in addition to the system's.
    pub ca_files: Vec<PathBuf>,
    /// Fixed addresses of names, as in `/etc/hosts`.
    pub hosts: Vec<(HostName, Vec<IpAddr>)>,
    /// DNS servers; the host's own where empty.
    pub resolvers: Vec<SocketAddr>,
}

#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct ConfigErrors {}
impl Config {
    pub fn load(_path: &std::path::Path) -> Result<Self, ConfigErrors> { unimplemented!() }
    pub fn parse(_file_name: &std::path::Path, _text: &str) -> Result<Self, ConfigErrors> { unimplemented!() }
}
