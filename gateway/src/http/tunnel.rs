//! CONNECT to the gateway as an explicit proxy: what comes inside is a connection like any other.

use std::pin::Pin;
use std::sync::Arc;

use http::{Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::Body;
use super::refuse::Refusal;
use super::serve::{Connection, ConnectionRecord, Target, serve_stream};
use crate::net::Host;

/// Says yes, and serves what comes through the tunnel. Nothing is decided yet: requests inside are.
pub(super) fn open(
    connection: &Arc<Connection>,
    host: Host,
    port: u16,
    on_upgrade: Option<OnUpgrade>,
) -> Response<Body> {
    let Some(on_upgrade) = on_upgrade else {
        return Refusal::bad_request("the connection cannot become a tunnel")
            .response(&http::Method::CONNECT);
    };
    let quota = &connection.stages.quota;
    let target = Target { host: named(connection, host), port, in_tunnel: true };
    let record = connection.record.of_tunnel(&connection.stages, &connection.process);
    record.set_target(&target);
    let share = match quota.tunnel() {
        Ok(share) => share,
        Err(exhausted) => {
            record.end(exhausted.reason(), &exhausted);
            return Refusal::QuotaExceeded { exhausted }.response(&http::Method::CONNECT);
        }
    };
    let lifecycle = &connection.stages.lifecycle;
    let killed = lifecycle.killed.clone();
    let inner = serve(Arc::clone(connection), target, record, on_upgrade);
    lifecycle.tasks.spawn(quota.lane.run(async move {
        tokio::select! {
            () = killed.cancelled() => {}
            () = inner => {}
        }
        drop(share);
    }));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::OK;
    response
}

/// A client that resolved the name itself got a synthetic address; it means the name.
fn named(connection: &Connection, host: Host) -> Host {
    match host {
        Host::Ip(address) => connection.stages.host_at(address),
        Host::Name(name) => Host::Name(name),
    }
}

/// Boxed, since a connection in a tunnel is served by the same functions as the one around it.
fn serve(
    connection: Arc<Connection>,
    target: Target,
    record: ConnectionRecord,
    on_upgrade: OnUpgrade,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        match on_upgrade.await {
            Ok(upgraded) => {
                let process = connection.process.clone();
                let stages = Arc::clone(&connection.stages);
                serve_stream(stages, target, process, record, TokioIo::new(upgraded)).await;
            }
            Err(error) => tracing::debug!(%error, "a tunnel was given up"),
        }
    })
}
