//! Host → a TLS configuration with a certificate for exactly that host: cached, bounded, made once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use moka::sync::Cache;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose,
    SanType,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, version};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use super::authority::{Authority, random_serial};
use super::key::EcKey;
use super::{ALPN_HTTP1, ALPN_HTTP1_0, ALPN_HTTP2};
use crate::bucket::Bucket;
use crate::gateway::{Exhausted, What};
use crate::net::Host;

/// Why no certificate could be made for a host.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The workload has asked for too many names in a short time.
    #[error(transparent)]
    TooMany(Exhausted),
    /// Key generation failed for want of randomness.
    #[error("the system gives no randomness for a key")]
    Random,
    /// Signing failed.
    #[error("the certificate could not be signed")]
    Sign {
        /// What the library says.
        #[source]
        source: rcgen::Error,
    },
    /// The TLS library takes no such key or configuration.
    #[error("the TLS configuration could not be made")]
    Config {
        /// What the library says.
        #[source]
        source: rustls::Error,
    },
}

/// The certificates of hosts that one workload asked for lately. Another one's are not touched, however many names
/// this one walks through.
pub(super) struct Leaves {
    authority: Arc<ArcSwap<Authority>>,
    /// What it may still have made.
    mints: Bucket,
    provider: Arc<CryptoProvider>,
    cache: Cache<Host, Leaf>,
    /// One for all hosts: the library itself resumes a session only under the server name that it was made with.
    sessions: Arc<dyn StoresServerSessions>,
    /// None where the system gives no randomness; then sessions are resumed from `sessions` alone.
    tickets: Option<Arc<dyn ProducesTickets>>,
    /// How many certificates were made.
    minted: AtomicU64,
}

#[derive(Clone)]
struct Leaf {
    config: Arc<ServerConfig>,
    /// Whose signature it bears: another CA may have taken its place since.
    authority: Arc<Authority>,
    /// From when to when the certificate is presented, by the wall clock: the cache's own clock stands still while
    /// the host is suspended.
    fresh: (OffsetDateTime, OffsetDateTime),
}

impl Leaves {
    pub(super) fn new(authority: Arc<ArcSwap<Authority>>) -> Self {
        let tickets = match provider::Ticketer::new() {
            Ok(tickets) => Some(tickets),
            Err(error) => {
                tracing::warn!(%error, "TLS sessions are resumed without tickets");
                None
            }
        };
        Self {
            authority,
            mints: Bucket::new(MINT_INTERVAL, MINT_BURST),
            provider: Arc::new(provider::default_provider()),
            cache: Cache::builder()
                .max_capacity(LEAVES_MAX)
                .time_to_live(LEAF_PRESENTED_FOR.unsigned_abs())
                .build(),
            sessions: ServerSessionMemoryCache::new(SESSIONS_MAX),
            tickets,
            minted: AtomicU64::new(0),
        }
    }

    /// The configuration for `host`. However many ask at the same time, one makes it and the others wait: some
    /// hundred microseconds, so that this does not have to leave the task's thread.
    pub(super) fn server_config(&self, host: &Host) -> Result<Arc<ServerConfig>, Arc<MintError>> {
        self.server_config_at(host, OffsetDateTime::now_utc())
    }

    fn server_config_at(
        &self,
        host: &Host,
        now: OffsetDateTime,
    ) -> Result<Arc<ServerConfig>, Arc<MintError>> {
        if let Some(leaf) = self.cache.get(host) {
            if leaf.is_fresh(now) && Arc::ptr_eq(&leaf.authority, &self.authority.load()) {
                return Ok(leaf.config);
            }
            self.cache.invalidate(host);
        }
        self.cache.try_get_with_by_ref(host, || self.mint(host, now)).map(|leaf| leaf.config)
    }

    fn mint(&self, host: &Host, now: OffsetDateTime) -> Result<Leaf, MintError> {
        if !self.mints.take(Instant::now()) {
            let limit = usize::try_from(MINT_BURST).unwrap_or(usize::MAX);
            return Err(MintError::TooMany(Exhausted { what: What::Certificates, limit }));
        }
        self.minted.fetch_add(1, Ordering::Relaxed);
        let authority = self.authority.load_full();
        let params = leaf_params(host, now, authority.not_after())?;
        let key = EcKey::generate().map_err(|_unspecified| MintError::Random)?;
        let certificate =
            authority.sign(&params, &key).map_err(|source| MintError::Sign { source })?;
        let pkcs8 = key.to_pkcs8().map_err(|_unspecified| MintError::Random)?;
        let signing = provider::sign::any_ecdsa_type(&PrivateKeyDer::Pkcs8(
            PrivatePkcs8KeyDer::from(pkcs8.as_ref()),
        ))
        .map_err(|source| MintError::Config { source })?;
        let certified = CertifiedKey::new(vec![certificate.der().clone()], signing);
        certified.keys_match().map_err(|source| MintError::Config { source })?;
        let config = self.config(certified).map_err(|source| MintError::Config { source })?;
        let fresh = (params.not_before, now + LEAF_PRESENTED_FOR);
        Ok(Leaf { config: Arc::new(config), authority, fresh })
    }

    fn config(&self, certified: CertifiedKey) -> Result<ServerConfig, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = [ALPN_HTTP2, ALPN_HTTP1, ALPN_HTTP1_0].map(<[u8]>::to_vec).into();
        config.session_storage = Arc::clone(&self.sessions);
        if let Some(tickets) = &self.tickets {
            config.ticketer = Arc::clone(tickets);
        }
        Ok(config)
    }

    #[cfg(test)]
    pub(super) fn minted(&self) -> u64 {
        self.minted.load(Ordering::Relaxed)
    }
}

impl Leaf {
    fn is_fresh(&self, now: OffsetDateTime) -> bool {
        (self.fresh.0..self.fresh.1).contains(&now)
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaves")
            .field("authority", &self.authority)
            .field("cached", &self.cache.entry_count())
            .field("minted", &self.minted.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

fn leaf_params(
    host: &Host,
    now: OffsetDateTime,
    ca_not_after: OffsetDateTime,
) -> Result<CertificateParams, MintError> {
    let (text, name) = match host {
        Host::Name(name) => {
            let text = name.as_str().to_owned();
            let name = text.clone().try_into().map_err(|source| MintError::Sign { source })?;
            (text, SanType::DnsName(name))
        }
        Host::Ip(address) => (address.to_string(), SanType::IpAddress(*address)),
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let subject =
        if text.len() <= COMMON_NAME_MAX_BYTES { text.as_str() } else { LONG_NAME_SUBJECT };
    params.distinguished_name.push(DnType::CommonName, subject);
    params.subject_alt_names = vec![name];
    params.serial_number = Some(random_serial().map_err(|_unspecified| MintError::Random)?);
    params.not_before = now - LEAF_BACKDATED;
    params.not_after = (now + LEAF_VALIDITY).min(ca_not_after);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Python's strict verification refuses certificates without it.
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Clients that look at the validity's length accept this one, and a certificate that leaks is soon worthless.
const LEAF_VALIDITY: Duration = Duration::hours(24);
/// For containers and virtual machines whose clock is behind.
const LEAF_BACKDATED: Duration = Duration::hours(1);
/// Long before the end of the validity: a connection made at the last moment still has half of it.
const LEAF_PRESENTED_FOR: Duration = Duration::hours(12);
/// Certificates for new names at once: more hosts than a web page names.
const MINT_BURST: u32 = 256;
/// Then ten a second: one takes some hundred microseconds of a processor.
const MINT_INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);
/// Per workload. One costs about 4 KiB; an agent that walks through names pushes out its own.
const LEAVES_MAX: u64 = 1024;
/// Per workload, of TLS 1.2 clients without tickets; one session costs some hundred bytes.
const SESSIONS_MAX: usize = 1024;
/// RFC 5280 appendix A.1, ub-common-name.
const COMMON_NAME_MAX_BYTES: usize = 64;
/// Clients match the alternative name only; the subject just must not be empty.
const LONG_NAME_SUBJECT: &str = "Tollgate";

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves() -> (tempfile::TempDir, Leaves) {
        let directory = tempfile::tempdir().expect("directory");
        let authority = Authority::open(directory.path()).expect("authority");
        (directory, Leaves::new(Arc::new(ArcSwap::from_pointee(authority))))
    }

    #[test]
    fn a_certificate_is_presented_for_half_a_day_by_the_wall_clock() {
        let (_directory, leaves) = leaves();
        let host = Host::parse("api.example.com").expect("host");
        let start = OffsetDateTime::now_utc();
        let rows = [
            (Duration::ZERO, 1),
            (Duration::minutes(719), 1),
            // The host was suspended.
            (Duration::minutes(721), 2),
            // The clock was set back, to before the certificate is valid.
            (Duration::hours(-2), 3),
        ];
        for (later, minted) in rows {
            leaves.server_config_at(&host, start + later).expect("configuration");
            assert_eq!(leaves.minted(), minted, "{later}");
        }
    }

    #[test]
    fn what_another_ca_has_signed_is_presented_no_more_once_it_is_replaced() {
        let directory = tempfile::tempdir().expect("directory");
        let open = || Authority::open(directory.path()).expect("authority");
        let authority = Arc::new(ArcSwap::from_pointee(open()));
        let leaves = Leaves::new(Arc::clone(&authority));
        let host = Host::parse("api.example.com").expect("host");
        for (minted, is_replaced) in [(1, false), (1, true), (2, false)] {
            leaves.server_config(&host).expect("configuration");
            assert_eq!(leaves.minted(), minted);
            if is_replaced {
                authority.store(Arc::new(open()));
            }
        }
    }

    #[test]
    fn a_workload_that_walks_through_names_is_refused_new_ones_and_keeps_those_it_has() {
        let directory = tempfile::tempdir().expect("directory");
        let authority = Authority::open(directory.path()).expect("authority");
        let authority = Arc::new(ArcSwap::from_pointee(authority));
        let (flooded, other) = (Leaves::new(Arc::clone(&authority)), Leaves::new(authority));
        let known = Host::parse("api.example.com").expect("host");
        flooded.server_config(&known).expect("configuration");
        other.server_config(&known).expect("configuration");
        let refused = (0..2 * MINT_BURST)
            .map(|n| Host::parse(&format!("n{n}.example")).expect("host"))
            .filter(|host| {
                let outcome = flooded.server_config(host);
                matches!(outcome, Err(error) if matches!(*error, MintError::TooMany(_)))
            })
            .count();
        assert!(refused > 0, "a burst passes, no more");
        let minted = (flooded.minted(), other.minted());
        flooded.server_config(&known).expect("what it has it keeps");
        other.server_config(&known).expect("what another one has stays");
        assert_eq!((flooded.minted(), other.minted()), minted);
        other
            .server_config(&Host::parse("new.example").expect("host"))
            .expect("and it gets new ones");
    }

    #[test]
    fn a_certificate_does_not_outlive_the_ca() {
        let now = OffsetDateTime::now_utc();
        let host = Host::parse("api.example.com").expect("host");
        let soon = now + Duration::hours(3);
        assert_eq!(leaf_params(&host, now, soon).expect("parameters").not_after, soon);
        let late = now + Duration::days(300);
        let not_after = leaf_params(&host, now, late).expect("parameters").not_after;
        assert_eq!(not_after, now + LEAF_VALIDITY);
    }

    #[test]
    fn names_and_addresses_have_certificates_of_their_own() {
        let (_directory, leaves) = leaves();
        for text in ["a.example", "b.example", "192.0.2.1", "[2001:db8::1]", "_srv.a.example"] {
            let host = Host::parse(text).expect("host");
            leaves.server_config(&host).expect("configuration");
            leaves.server_config(&host).expect("configuration");
        }
        assert_eq!(leaves.minted(), 5);
    }
}
