//! what must survive a restart: the counters of rate limits.
use std::path::Path;
use std::time::SystemTime;
use crate::agent::AgentName;
use crate::policy::{ExhaustedLimit, Limit};

#[derive(Debug, Clone)]
pub struct Limits {}
#[derive(Debug, thiserror::Error)]
pub enum StateError { #[error("stub")] Stub }
impl Limits {
    pub fn open(_state_dir: &Path) -> Result<Self, StateError> { unimplemented!() }
    pub async fn charge(&self, _agent: &AgentName, _limits: &[Limit], _now: SystemTime) -> Result<Result<(), ExhaustedLimit>, StateError> { unimplemented!() }
}
