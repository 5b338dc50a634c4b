//! The closed list of reason codes: one word for the same thing in audit, replies and metrics.

/// Why a request, connection or query ended as it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// An allow rule matched and nothing stricter did.
    AllowedByRule,
    /// The agent's default is allow and nothing stricter matched.
    AllowedByDefault,
    /// A block rule matched.
    BlockedByPolicy,
    /// No allow rule matched and the agent's default is deny.
    BlockedByDefaultPolicy,
    /// A rate limit is used up.
    RateLimited,
    /// The workload has as much of the gateway's means as it may have.
    QuotaExceeded,
    /// The counters or the audit log cannot be written, so that no request that needs them may pass.
    StateUnavailable,
    /// SNI, Host, `:authority`, the proxy request and the synthetic name do not agree.
    DestinationMismatch,
    /// The upstream's address is private, loopback, link-local, metadata or the like.
    BlockedAddress,
    /// The upstream's name has no address.
    UpstreamUnresolvable,
    /// No connection to the upstream.
    UpstreamUnreachable,
    /// The upstream's certificate does not prove its name.
    UpstreamUntrusted,
    /// The upstream's response is malformed.
    UpstreamInvalid,
    /// The upstream's response head did not come in time.
    UpstreamTimeout,
    /// A credential's source failed.
    CredentialUnavailable,
    /// The request is malformed or ambiguous.
    BadRequest,
    /// The gateway is stopping.
    GatewayRestarting,
    /// The kernel recorded no destination for the connection.
    NoFlowRecord,
    /// The first bytes did not come in time.
    FirstBytesTimeout,
    /// The first bytes are no protocol that the gateway speaks.
    UnknownProtocol,
    /// The ClientHello is malformed or too large.
    ClientHelloInvalid,
    /// The agent's TLS handshake with the gateway failed (most often: the client does not trust the CA).
    ClientHandshakeFailed,
    /// The agent closed or aborted before there was anything to decide or while it was answered.
    ClientClosed,
    /// The kernel refused a socket, a datagram or a connection.
    KernelRefused,
    /// A workload stays closed: it cannot be governed, or no agent matches it.
    WorkloadRefused,
    /// A container is governed although something speaks against it, because the operator accepts that.
    ObjectionWaived,
    /// A workload had started before it was closed, and had the open net meanwhile.
    WorkloadWasOpen,
    /// The kernel programs of a workload were not at work; they were put to work again.
    EnforcementBroken,
    /// An interface of the workload cannot be fenced: it is closed, and everything is refused.
    WireUnfenceable,
    /// An interface of the workload may have carried frames before it was fenced.
    WireWasOpen,
    /// The query was answered.
    DnsAnswered,
    /// The name does not exist.
    DnsNxdomain,
    /// The query is malformed or of a kind that is not answered.
    DnsRefused,
}

/// Whose doing an end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// What the agent did or asked for.
    Agent,
    /// The gateway's own state.
    Gateway,
    /// The far end.
    Upstream,
}

impl Reason {
    /// The code as it stands in audit lines, replies and metrics.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::AllowedByRule => "allowed_by_rule",
            Self::AllowedByDefault => "allowed_by_default",
            Self::BlockedByPolicy => "blocked_by_policy",
            Self::BlockedByDefaultPolicy => "blocked_by_default_policy",
            Self::RateLimited => "rate_limited",
            Self::QuotaExceeded => "quota_exceeded",
            Self::StateUnavailable => "state_unavailable",
            Self::DestinationMismatch => "destination_mismatch",
            Self::BlockedAddress => "blocked_address",
            Self::UpstreamUnresolvable => "upstream_unresolvable",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamUntrusted => "upstream_untrusted",
            Self::UpstreamInvalid => "upstream_invalid",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::CredentialUnavailable => "credential_unavailable",
            Self::BadRequest => "bad_request",
            Self::GatewayRestarting => "gateway_restarting",
            Self::NoFlowRecord => "no_flow_record",
            Self::FirstBytesTimeout => "first_bytes_timeout",
            Self::UnknownProtocol => "unknown_protocol",
            Self::ClientHelloInvalid => "client_hello_invalid",
            Self::ClientHandshakeFailed => "client_handshake_failed",
            Self::ClientClosed => "client_closed",
            Self::KernelRefused => "kernel_refused",
            Self::WorkloadRefused => "workload_refused",
            Self::ObjectionWaived => "objection_waived",
            Self::WorkloadWasOpen => "workload_was_open",
            Self::EnforcementBroken => "enforcement_broken",
            Self::WireUnfenceable => "wire_unfenceable",
            Self::WireWasOpen => "wire_was_open",
            Self::DnsAnswered => "dns_answered",
            Self::DnsNxdomain => "dns_nxdomain",
            Self::DnsRefused => "dns_refused",
        }
    }

    /// Whether it belongs into the view of security: an attempt to get out or to deceive the gateway, an upstream that
    /// is not who it should be, or a gateway that cannot do its work. What a rule decides is everyday business.
    #[must_use]
    pub const fn is_security(self) -> bool {
        match self {
            Self::KernelRefused
            | Self::QuotaExceeded
            | Self::NoFlowRecord
            | Self::DestinationMismatch
            | Self::BlockedAddress
            | Self::BadRequest
            | Self::UnknownProtocol
            | Self::ClientHelloInvalid
            | Self::UpstreamUntrusted
            | Self::StateUnavailable
            | Self::WireUnfenceable
            | Self::WorkloadRefused
            | Self::ObjectionWaived
            | Self::WorkloadWasOpen
            | Self::EnforcementBroken
            | Self::WireWasOpen => true,
            Self::AllowedByRule
            | Self::AllowedByDefault
            | Self::BlockedByPolicy
            | Self::BlockedByDefaultPolicy
            | Self::RateLimited
            | Self::UpstreamUnresolvable
            | Self::UpstreamUnreachable
            | Self::UpstreamInvalid
            | Self::UpstreamTimeout
            | Self::CredentialUnavailable
            | Self::GatewayRestarting
            | Self::FirstBytesTimeout
            | Self::ClientHandshakeFailed
            | Self::ClientClosed
            | Self::DnsAnswered
            | Self::DnsNxdomain
            | Self::DnsRefused => false,
        }
    }

    /// Whose doing it is.
    #[must_use]
    pub const fn side(self) -> Side {
        match self {
            Self::AllowedByRule
            | Self::AllowedByDefault
            | Self::BlockedByPolicy
            | Self::BlockedByDefaultPolicy
            | Self::RateLimited
            | Self::QuotaExceeded
            | Self::DestinationMismatch
            | Self::BlockedAddress
            | Self::BadRequest
            | Self::NoFlowRecord
            | Self::FirstBytesTimeout
            | Self::UnknownProtocol
            | Self::ClientHelloInvalid
            | Self::ClientHandshakeFailed
            | Self::ClientClosed
            | Self::KernelRefused
            | Self::WorkloadRefused
            | Self::ObjectionWaived
            | Self::WorkloadWasOpen
            | Self::WireUnfenceable
            | Self::WireWasOpen
            | Self::DnsAnswered
            | Self::DnsNxdomain
            | Self::DnsRefused => Side::Agent,
            Self::StateUnavailable
            | Self::CredentialUnavailable
            | Self::GatewayRestarting
            | Self::EnforcementBroken => Side::Gateway,
            Self::UpstreamUnresolvable
            | Self::UpstreamUnreachable
            | Self::UpstreamUntrusted
            | Self::UpstreamInvalid
            | Self::UpstreamTimeout => Side::Upstream,
        }
    }
}

impl serde::Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}
