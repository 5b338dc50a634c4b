//! What the kernel programs refused, as records.

use std::sync::Arc;
use std::time::Duration;

use super::{Kind, Reason, Sink};
use crate::agent::Agent;
use crate::capture::{KernelRefusal, Refusals};

/// Writes a record for each refusal of the kernel programs, at most [`REFUSAL_RECORDS_PER_SECOND`].
pub async fn audit_refusals(refusals: Refusals, audit: Sink, agent: Arc<Agent>) {
    let mut window = std::time::Instant::now();
    let mut written = 0_u32;
    let mut suppressed = 0_u32;
    let watched = refusals
        .watch(|refusal| {
            if window.elapsed() >= Duration::from_secs(1) {
                window = std::time::Instant::now();
                written = 0;
            }
            if written >= REFUSAL_RECORDS_PER_SECOND {
                suppressed = suppressed.saturating_add(1);
                return;
            }
            written = written.saturating_add(1);
            record_refusal(&audit, &agent, refusal, std::mem::take(&mut suppressed));
        })
        .await;
    if let Err(error) = watched {
        tracing::error!(%error, "refusals of the kernel are no longer written to the audit log");
    }
}

/// A loop that retries a refused datagram must not fill the disk.
const REFUSAL_RECORDS_PER_SECOND: u32 = 100;

fn record_refusal(audit: &Sink, agent: &Arc<Agent>, refusal: KernelRefusal, suppressed: u32) {
    let mut record = audit.open(Kind::Kernel, agent, Reason::KernelRefused);
    record.process = Some(refusal.process);
    record.scheme = Some(refusal.protocol);
    record.host = refusal.destination.map(|to| to.ip().to_string());
    record.port = refusal.destination.map(|to| to.port());
    record.detail = Some(if suppressed == 0 {
        refusal.why.to_owned()
    } else {
        format!("{} ({suppressed} earlier refusals not recorded one by one)", refusal.why)
    });
}
