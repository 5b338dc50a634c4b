//! A request whose destination is proven → policy → credentials → upstream → its answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{ACCEPT_ENCODING, EXPECT, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::ambiguity;
use super::body::Counted;
use super::budget::{Budgeted, ByteBudget, TokenBudget, head_bytes};
use super::destination::{Asked, examine};
use super::exchange::{Answer, Exchange};
use super::head_scan::Sighting;
use super::head_watch::{BodyInFlight, HeadWatch, InFlight};
use super::refuse::Refusal;
use super::rehearsal::would_have;
use super::serve::Connection;
use super::{AgentBodyError, Body, BodyError, RequestHead, fields, tunnel, upgrade};
use crate::audit::Reason;
use crate::gateway::Rules;
use crate::net::{Destination, Scheme};
use crate::policy::{Metered, Permit, Unit, Verdict, decide};
use crate::state::StateError;
use crate::upstream::{Dialect, UpstreamError};

/// What is known of a request besides itself.
pub(super) struct Observed {
    /// The connection's watch, for leaving HTTP.
    pub(super) watch: HeadWatch,
    /// Keeps the connection's timers off.
    pub(super) in_flight: InFlight,
    /// What else was seen of its head.
    pub(super) sighting: Sighting,
}

/// A request that is permitted, on its way out.
struct Permitted {
    permit: Permit,
    rules: Arc<Rules>,
    path_and_query: String,
    head: Parts,
    body: Incoming,
    on_upgrade: Option<OnUpgrade>,
    observed: Observed,
}

/// Answers one request. The agent always gets an answer; what is recorded of it lives in the answer's body.
pub(super) async fn answer(
    connection: Arc<Connection>,
    request: Request<Incoming>,
    observed: Observed,
) -> Response<Body> {
    let (mut head, body) = request.into_parts();
    let on_upgrade = head.extensions.remove::<OnUpgrade>();
    let asked = if connection.stages.lifecycle.draining.is_cancelled() {
        Err(Refusal::GatewayRestarting)
    } else {
        ambiguity::check(&head, observed.sighting)
            .and_then(|()| examine(&connection.arrival, &head))
    };
    if let Ok(Asked::Tunnel { host, port }) = asked {
        observed.watch.release();
        return tunnel::open(&connection, host, port, on_upgrade);
    }
    connection.record.discard();
    let method = head.method.clone();
    let mut exchange = Exchange::open(&connection, &head, observed.in_flight.clone());
    let asked = match asked {
        Ok(asked) => exchange.take_share(&connection.stages.quota).map(|()| asked),
        Err(refusal) => Err(refusal),
    };
    // One request sees one policy and the credentials that belong to it, whatever is reloaded meanwhile.
    let rules = connection.stages.rules.load_full();
    let permitted = match asked {
        Ok(Asked::Forward(asked)) => {
            exchange.set_head(&asked);
            let permitted = permit(&connection, &rules, &asked, &head, &mut exchange).await;
            let is_permitted = permitted.is_ok();
            exchange.set_would_have(would_have(&connection, &rules, &asked, is_permitted).await);
            permitted.map(|permit| (permit, asked.path.to_target()))
        }
        Ok(Asked::Tunnel { .. }) => Err(Refusal::bad_request("CONNECT has no place here")),
        Err(refusal) => Err(refusal),
    };
    let (permit, path_and_query) = match permitted {
        Ok(permitted) => permitted,
        Err(refusal) => {
            drain(&head, body, observed.in_flight.into_body());
            upgrade::decline(on_upgrade);
            return refuse(exchange, &refusal, &method);
        }
    };
    exchange.set_permitted(&permit);
    let permitted = Permitted { permit, rules, path_and_query, head, body, on_upgrade, observed };
    match permitted.forward(&connection, &mut exchange).await {
        Ok(Forwarded::Answer(response)) => {
            response.map(|body| Body::new(Answer::new(body, exchange)))
        }
        Ok(Forwarded::Upgraded(bridge)) => bridge.open(&connection.stages, exchange),
        Err(refusal) => refuse(exchange, &refusal, &method),
    }
}

/// What came back.
enum Forwarded {
    Answer(Response<Body>),
    Upgraded(upgrade::Bridge),
}

fn refuse(mut exchange: Exchange, refusal: &Refusal, method: &Method) -> Response<Body> {
    exchange.set_refused(refusal);
    refusal.response(method)
}

async fn permit(
    connection: &Connection,
    rules: &Rules,
    asked: &RequestHead,
    head: &Parts,
    exchange: &mut Exchange,
) -> Result<Permit, Refusal> {
    let stages = &connection.stages;
    if stages.audit.is_failing() {
        tracing::error!("the audit log cannot be written, so nothing is forwarded");
        return Err(Refusal::StateUnavailable);
    }
    let decided = decide(&rules.policy, &stages.agent.name, asked, SystemTime::now());
    let metered = match decided {
        Verdict::Allow(permit) => return Ok(permit),
        Verdict::Metered(metered) => metered,
        Verdict::Block { rule } => {
            return Err(Refusal::BlockedByPolicy {
                rule,
                method: asked.method.clone(),
                path: asked.path.sent.clone(),
            });
        }
        Verdict::DefaultDeny | Verdict::UnknownAgent => {
            return Err(Refusal::BlockedByDefault {
                method: asked.method.clone(),
                host: asked.destination.host.clone(),
                path: asked.path.sent.clone(),
            });
        }
    };
    charge(connection, metered, head, exchange).await
}

/// Charges the limits of a request, and gives its exchange the meters for what is known later.
async fn charge(
    connection: &Connection,
    metered: Metered,
    head: &Parts,
    exchange: &mut Exchange,
) -> Result<Permit, Refusal> {
    let (stages, agent) = (&connection.stages, &connection.stages.agent.name);
    let unavailable = |error: &StateError| {
        let error: &dyn std::error::Error = error;
        tracing::error!(error, "rate limits cannot be counted");
        Refusal::StateUnavailable
    };
    // Nobody closes the semaphore; without its permit the charge waits its turn with the others.
    let turn = stages.quota.charges.acquire().await.ok();
    let charged = stages.limits.charge(agent, metered.limits(), SystemTime::now()).await;
    drop(turn);
    let meters = |unit| stages.limits.meters(agent, metered.limits(), unit);
    let (bytes, tokens) = (meters(Unit::Bytes), meters(Unit::Tokens));
    let outcome = charged.map_err(|error| unavailable(&error))?;
    let permit = metered.settle(outcome).map_err(Refusal::from)?;
    exchange.tokens = TokenBudget::new(tokens, &head.method);
    exchange.bytes = ByteBudget::new(bytes);
    match (exchange.bytes.spend(head_bytes(head)), exchange.bytes.spent()) {
        (Err(_), Some(spent)) => Err(spent.into()),
        _ => Ok(permit),
    }
}

impl Permitted {
    async fn forward(
        self,
        connection: &Connection,
        exchange: &mut Exchange,
    ) -> Result<Forwarded, Refusal> {
        let Self { permit, rules, path_and_query, mut head, body, on_upgrade, observed } = self;
        let (on_upgrade, unwanted) = if upgrade::asks_for_websocket(&head) {
            (on_upgrade, None)
        } else {
            (None, on_upgrade)
        };
        upgrade::decline(unwanted);
        let dialect = match (&on_upgrade, permit.destination().scheme, head.version) {
            (Some(_), _, _) => Dialect::Http1,
            (None, Scheme::Http, Version::HTTP_2) => Dialect::Http2,
            (None, _, _) => Dialect::Negotiated,
        };
        fields::scrub_request(&mut head.headers);
        // hyper would take GET with a body of unknown length for one without.
        let needs_framing = matches!(head.method, Method::GET | Method::HEAD)
            && !body.is_end_stream()
            && body.size_hint().exact().is_none();
        if needs_framing {
            head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        if on_upgrade.is_some() {
            upgrade::set_request_fields(&mut head.headers);
        }
        if exchange.tokens.is_some() {
            // What the answer cost is read out of it.
            head.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        head.uri = uri(permit.destination(), &path_and_query)?;
        // The gateway's own connections decide the version.
        head.version = Version::HTTP_11;
        let injected = rules.vault.authorize(&permit, &mut head.headers).map_err(|error| {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a credential is not available"
            );
            Refusal::CredentialUnavailable { credential: error.credential().clone() }
        })?;
        exchange.set_credentials(&injected);

        let body = Counted::new(body, exchange.up.clone(), observed.in_flight.into_body())
            .map_err(BodyError::new);
        let body = Budgeted::new(body, exchange.bytes.clone()).map_err(AgentBodyError);
        let request = Request::from_parts(head, Body::new(body));
        exchange.set_handed_over();
        let sent = connection.stages.upstream.send(&permit, request, dialect).await;
        let (response, address) = sent.map_err(|error| refusal_of(&error, exchange))?;
        exchange.set_answer_head(response.status(), response.headers());
        let wanted = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        exchange.set_answered(&permit, response.status(), address);
        match (wanted, on_upgrade) {
            (false, on_upgrade) => {
                upgrade::decline(on_upgrade);
                Ok(Forwarded::Answer(cleaned(response)))
            }
            (true, Some(agent)) if upgrade::is_websocket(response.headers()) => {
                observed.watch.release();
                Ok(Forwarded::Upgraded(upgrade::Bridge::new(agent, response)))
            }
            (true, _) => {
                let host = permit.destination().host.clone();
                Err(refusal_of(&UpstreamError::UnaskedUpgrade { host }, exchange))
            }
        }
    }
}

fn cleaned(mut response: Response<Body>) -> Response<Body> {
    *response.version_mut() = Version::HTTP_11;
    fields::scrub_response(response.headers_mut());
    response
}

fn uri(destination: &Destination, path_and_query: &str) -> Result<Uri, Refusal> {
    Uri::builder()
        .scheme(destination.scheme.as_str())
        .authority(destination.authority())
        .path_and_query(path_and_query)
        .build()
        .map_err(|_invalid| Refusal::bad_request("the target has a character that no URI has"))
}

fn refusal_of(error: &UpstreamError, exchange: &mut Exchange) -> Refusal {
    exchange.set_cause(error);
    if let Some(spent) = exchange.bytes.spent() {
        return spent.into();
    }
    if let UpstreamError::Exhausted { exhausted, .. } = error {
        exchange.set_not_sent();
        return Refusal::QuotaExceeded { exhausted: *exhausted };
    }
    let host = error.host().clone();
    let reason = error.reason();
    if let Reason::BlockedAddress
    | Reason::UpstreamUnresolvable
    | Reason::UpstreamUnreachable
    | Reason::UpstreamUntrusted = reason
    {
        exchange.set_not_sent();
    }
    let message = match reason {
        Reason::BadRequest => return Refusal::bad_request("the body of the request is malformed"),
        Reason::BlockedAddress => return Refusal::BlockedAddress { host },
        Reason::UpstreamUnresolvable => "the host's name has no address",
        Reason::UpstreamUnreachable => "the host cannot be reached",
        Reason::UpstreamUntrusted => "the host's certificate does not prove its name",
        Reason::UpstreamTimeout => "the host did not respond in time",
        Reason::ClientClosed => "the request was aborted",
        _ => "the host sent no well-formed response",
    };
    Refusal::Upstream { reason, host, message }
}

/// Reads what the agent sends of a refused request's body without being asked, so that the refusal is not
/// lost in a reset and the connection can be used again. Nothing is read where the agent waits to be asked.
fn drain(head: &Parts, mut body: Incoming, in_flight: BodyInFlight) {
    if body.is_end_stream() || head.headers.contains_key(EXPECT) {
        return;
    }
    let reading = async move {
        let mut left = DRAINED_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, bytes::Bytes::len);
            match left.checked_sub(bytes) {
                Some(rest) => left = rest,
                None => break,
            }
        }
        drop(in_flight);
    };
    tokio::spawn(tokio::time::timeout(DRAIN_TIMEOUT, reading));
}

/// More than clients send before they look for an answer.
const DRAINED_BYTES_MAX: usize = 1024 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
