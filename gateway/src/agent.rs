//! Who a governed workload is.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::audit::Tally;

/// The name of an agent as the policy writes it: `[a-z0-9-]{1,50}`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentName(Arc<str>);

/// A name that is no agent name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not an agent name: 1 to 50 of the characters a-z, 0-9 and `-`")]
pub struct AgentNameError {
    name: String,
}

impl AgentName {
    /// Parses `name`.
    ///
    /// # Errors
    /// When it is empty, longer than 50 bytes, or has a character outside `[a-z0-9-]`.
    pub fn parse(name: &str) -> Result<Self, AgentNameError> {
        let well_formed = (1..=AGENT_NAME_MAX_BYTES).contains(&name.len())
            && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if well_formed {
            Ok(Self(Arc::from(name)))
        } else {
            Err(AgentNameError { name: name.chars().take(80).collect() })
        }
    }

    /// Stands for the agent where nobody knows it: no policy has it, so that everything is denied to it.
    #[must_use]
    pub fn unknown() -> Self {
        Self(Arc::from("unknown agent"))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Longest agent name, in bytes: it stands in file names and audit lines.
const AGENT_NAME_MAX_BYTES: usize = 50;

/// What an engine calls a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerNames {
    /// The engine's id, 64 hexadecimal digits.
    pub id: String,
    /// Its name, without the slash that the API puts before it.
    pub name: String,
    /// The image as it was asked for.
    pub image: String,
}

impl fmt::Display for ContainerNames {
    /// Name and short id: how people know a container.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.id.get(..12).unwrap_or(&self.id))
    }
}

/// One governed workload: a container, a cgroup, or one `tollgate run`.
#[derive(Debug, Clone)]
pub struct Agent {
    /// The policy's name for it.
    pub name: AgentName,
    /// What the operator knows the workload by: `run-4711`, a container name.
    pub workload: String,
    /// What an engine calls it, where one tells of it.
    pub container: Option<Arc<ContainerNames>>,
    /// The kernel's id of its cgroup (the inode number of the cgroup directory).
    pub cgroup_id: u64,
    /// The kernel's cookie of its network namespace (`SO_NETNS_COOKIE`): its identity, as no agent can forge it.
    pub netns_cookie: u64,
    /// What it has done so far.
    pub tally: Arc<Tally>,
}
