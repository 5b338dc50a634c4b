//! What happens to the wires of a workload, as records.

use std::sync::Arc;

use super::{Kind, Reason, Sink};
use crate::agent::Agent;
use crate::capture::{WireEvent, Wires};

/// Writes a record for each interface that cannot be fenced, and for each that was fenced late, until the watch ends.
pub async fn audit_wires(mut wires: Wires, audit: Sink, agent: Arc<Agent>) {
    while let Some((event, lost)) = wires.next().await {
        let (reason, detail) = match event {
            WireEvent::Fenced { interface, before } => {
                if before.rx_packets == 0 && before.tx_packets == 0 {
                    continue;
                }
                // What the host's end received is what the workload sent.
                let (sent, received) = (before.rx_packets, before.tx_packets);
                let detail = format!(
                    "its interface `{interface}` may have sent {sent} frames and received {received} before it was fenced"
                );
                (Reason::WireWasOpen, detail)
            }
            WireEvent::Unfenceable(unfenceable) => {
                (Reason::WireUnfenceable, unfenceable.to_string())
            }
            WireEvent::Failed(why) => {
                (Reason::WireUnfenceable, format!("its interfaces cannot be looked at: {why}"))
            }
            WireEvent::Restored => {
                tracing::info!(workload = agent.workload, "every interface is fenced again");
                continue;
            }
        };
        tracing::warn!(workload = agent.workload, "{detail}");
        let mut record = audit.open(Kind::Kernel, &agent, reason);
        record.detail = Some(match lost {
            0 => detail,
            lost => format!("{detail} ({lost} earlier events not recorded one by one)"),
        });
    }
}
