//! Host patterns: one host, or every name below a domain.

use std::fmt;

use crate::net::{Host, HostError, HostName};

/// Which hosts a rule or credential is about.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// Exactly this name or address.
    Exact(Host),
    /// `*.domain`: every name with one or more labels in front of the domain, never the domain itself.
    Below(HostName),
}

/// Text that is no host pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostPatternError {
    /// `https://host`.
    #[error("a host pattern has no scheme")]
    Scheme,
    /// `host:443`.
    #[error("a host pattern has no port")]
    Port,
    /// `host/path`.
    #[error("a host pattern has no path")]
    Path,
    /// `*`.
    #[error("`*` alone is no host pattern")]
    Everything,
    /// `a.*.example`, `a*.example`.
    #[error("`*` may stand only as the whole first label of a host pattern")]
    InnerWildcard,
    /// `*.com`, `*.co.uk`, `*.github.io`: the names below belong to everybody.
    #[error("`*.{suffix}` would match names that anybody can register")]
    PublicSuffix {
        /// The domain behind `*.`.
        suffix: HostName,
    },
    /// The rest is not a host.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// How narrow a host pattern is; the greater, the narrower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostSpecificity {
    exact: bool,
    labels: usize,
}

// === impl HostPattern ===

impl HostPattern {
    /// Parses a pattern as it stands in the configuration.
    ///
    /// # Errors
    /// When it has more than a host in it, or a wildcard that is not a whole first label above a domain that
    /// somebody owns.
    pub fn parse(text: &str) -> Result<Self, HostPatternError> {
        if text.contains("://") {
            return Err(HostPatternError::Scheme);
        }
        if text.contains(['/', '?', '#']) {
            return Err(HostPatternError::Path);
        }
        if text == "*" {
            return Err(HostPatternError::Everything);
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Exact(Host::from_ip(address)));
        }
        let behind_brackets = text.rsplit(']').next().unwrap_or(text);
        if behind_brackets.contains(':') {
            return Err(HostPatternError::Port);
        }
        let Some(domain) = text.strip_prefix("*.") else {
            if text.contains('*') {
                return Err(HostPatternError::InnerWildcard);
            }
            return Ok(Self::Exact(Host::parse(text)?));
        };
        if domain.contains('*') {
            return Err(HostPatternError::InnerWildcard);
        }
        let domain = HostName::parse(domain)?;
        if is_public_suffix(&domain) {
            return Err(HostPatternError::PublicSuffix { suffix: domain });
        }
        Ok(Self::Below(domain))
    }

    /// Whether `host` is one of those that the pattern means.
    #[must_use]
    pub fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Exact(exact), host) => exact == host,
            (Self::Below(domain), Host::Name(name)) => is_below(name.as_str(), domain.as_str()),
            (Self::Below(_), Host::Ip(_)) => false,
        }
    }

    pub(super) fn specificity(&self) -> HostSpecificity {
        match self {
            Self::Exact(_) => HostSpecificity { exact: true, labels: 0 },
            Self::Below(domain) => {
                HostSpecificity { exact: false, labels: domain.as_str().split('.').count() }
            }
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => host.fmt(f),
            Self::Below(domain) => write!(f, "*.{domain}"),
        }
    }
}

impl fmt::Debug for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Both are canonical, so that bytes can be compared; the dot keeps `notexample.com` out of `*.example.com`.
fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain)
        .and_then(|front| front.strip_suffix('.'))
        .is_some_and(|labels| !labels.is_empty())
}

/// Whether nobody in particular owns `domain`: the private part of the list (hosting domains) counts too, and so
/// does every top-level domain that the list does not know.
fn is_public_suffix(domain: &HostName) -> bool {
    // The list is written in U-labels.
    let (unicode, _errors) = idna::domain_to_unicode(domain.as_str());
    psl::suffix_str(&unicode).is_some_and(|suffix| suffix == unicode)
}
