//! (policy, agent, request head) → [`Verdict`]. Pure: no I/O, no clock, not async.
use std::time::Duration;
use crate::agent::AgentName;
use crate::audit::Reason;
use crate::http::RequestHead;
use crate::net::{Destination, HostName};

#[derive(Debug)]
pub struct Policy {}
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RuleName(std::sync::Arc<str>);
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CredentialName(std::sync::Arc<str>);
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Window { Minute, Hour, Day }
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit { pub rule: RuleName, pub limit: u32, pub window: Window }
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExhaustedLimit { pub rule: RuleName, pub limit: u32, pub window: Window, pub retry_after: Duration }
#[derive(Debug)]
pub struct Permit { agent: AgentName, destination: Destination }
#[derive(Debug)]
pub struct Metered {}
#[derive(Debug)]
pub enum Verdict { Allow(Permit), Metered(Metered), Block { rule: RuleName }, DefaultDeny, UnknownAgent }
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameVerdict { Permitted, Denied }
#[derive(Debug)]
pub struct CredentialSpec { pub name: CredentialName, pub source: SourceSpec, pub inject: Injection, pub env: Option<String> }
#[derive(Debug)]
pub enum SourceSpec { File(std::path::PathBuf), Env(String) }
#[derive(Debug)]
pub enum Injection { Header { name: ::http::HeaderName, format: String } }

pub fn decide(_policy: &Policy, _agent: &AgentName, _head: &RequestHead) -> Verdict { unimplemented!() }
pub fn decide_name(_policy: &Policy, _agent: &AgentName, _host: &HostName) -> NameVerdict { unimplemented!() }
impl RuleName { pub fn as_str(&self) -> &str { &self.0 } }
impl CredentialName { pub fn as_str(&self) -> &str { &self.0 } }
impl Policy {
    pub fn has_agent(&self, _agent: &AgentName) -> bool { unimplemented!() }
    pub fn credentials(&self) -> impl Iterator<Item = &CredentialSpec> { std::iter::empty() }
}
impl Metered {
    pub fn limits(&self) -> &[Limit] { unimplemented!() }
    pub fn settle(self, _outcome: Result<(), ExhaustedLimit>) -> Result<Permit, ExhaustedLimit> { unimplemented!() }
}
impl Permit {
    pub fn agent(&self) -> &AgentName { &self.agent }
    pub fn destination(&self) -> &Destination { &self.destination }
    pub fn rule(&self) -> Option<&RuleName> { unimplemented!() }
    pub fn reason(&self) -> Reason { unimplemented!() }
    pub fn allow_private(&self) -> bool { unimplemented!() }
    pub fn credentials(&self) -> &[CredentialName] { unimplemented!() }
}
