//! Which credentials go into a request.

use super::compile::AgentPolicy;
use super::host_pattern::HostSpecificity;
use super::path_pattern::PathSpecificity;
use super::rule::{Query, one_matches};
use super::{CredentialName, CredentialSpec, HostPattern, Injection, PathPattern, Policy};
use crate::net::{Destination, Scheme};

/// A credential as far as matching needs it.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) name: CredentialName,
    inject: Injection,
    hosts: Vec<HostPattern>,
    paths: Vec<PathPattern>,
    ports: Vec<u16>,
    allow_plaintext: bool,
}

/// How narrowly a credential names a request: the path counts first, then the host.
type GrantSpecificity = (PathSpecificity, HostSpecificity);

/// The credentials for a request: of those that would set the same thing, the one that names it most narrowly.
pub(super) fn credentials(
    policy: &Policy,
    concern: &AgentPolicy,
    query: &Query<'_>,
) -> Vec<CredentialName> {
    let mut chosen: Vec<(&Grant, GrantSpecificity)> = Vec::new();
    for grant in policy.grants(concern) {
        let Some(specificity) = grant.specificity(query) else { continue };
        match chosen.iter_mut().find(|(rival, _)| same_surface(&rival.inject, &grant.inject)) {
            Some(rival) if rival.1 < specificity => *rival = (grant, specificity),
            Some(_narrower) => {}
            None => chosen.push((grant, specificity)),
        }
    }
    chosen.into_iter().map(|(grant, _specificity)| grant.name.clone()).collect()
}

/// What two credentials would both set in one request without one of them being the narrower, if there is such a
/// thing. The configuration refuses it, so that no decision ever has to choose between equals.
pub(crate) fn rivalry(a: &CredentialSpec, b: &CredentialSpec) -> Option<String> {
    let Injection::Header { name, .. } = &a.inject;
    let same_host = a.hosts.iter().any(|host| b.hosts.contains(host));
    let same_port = a.ports.iter().any(|port| b.ports.contains(port));
    let same_path = a.paths.iter().any(|mine| {
        b.paths
            .iter()
            .any(|other| mine.specificity() == other.specificity() && mine.overlaps(other))
    });
    (same_surface(&a.inject, &b.inject) && same_host && same_port && same_path)
        .then(|| format!("the header field `{name}`"))
}

/// Whether two injections would set the same thing.
fn same_surface(a: &Injection, b: &Injection) -> bool {
    let (Injection::Header { name: a, .. }, Injection::Header { name: b, .. }) = (a, b);
    a == b
}

// === impl Grant ===

impl Grant {
    pub(super) fn compile(spec: &CredentialSpec) -> Self {
        Self {
            name: spec.name.clone(),
            inject: spec.inject.clone(),
            hosts: spec.hosts.clone(),
            paths: spec.paths.clone(),
            ports: spec.ports.clone(),
            allow_plaintext: spec.allow_plaintext,
        }
    }

    /// How narrowly it names the request, if it may be used for it.
    fn specificity(&self, query: &Query<'_>) -> Option<GrantSpecificity> {
        let host = self.host_specificity(&query.head.destination)?;
        if !query.readings().all(|path| one_matches(&self.paths, path)) {
            return None;
        }
        // The path that is sent decides, so that two credentials can tie only where their patterns overlap, which
        // the configuration refuses.
        let matching = self.paths.iter().filter(|pattern| pattern.matches(&query.head.path.sent));
        Some((matching.map(PathPattern::specificity).max()?, host))
    }

    fn host_specificity(&self, destination: &Destination) -> Option<HostSpecificity> {
        let carried = match destination.scheme {
            Scheme::Https => true,
            Scheme::Http => self.allow_plaintext,
        };
        if !carried || !self.ports.contains(&destination.port) {
            return None;
        }
        let matching = self.hosts.iter().filter(|pattern| pattern.matches(&destination.host));
        matching.map(HostPattern::specificity).max()
    }
}
