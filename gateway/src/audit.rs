//! Every stage → one record per request, query and refusal of the kernel, and per connection without a request.
//!
//! A record is opened where a thing begins ([`Sink::open`]), filled while it goes on, and written once when the
//! guard is dropped, whatever the way out was. Until somebody decides otherwise it says `block`.

mod executable;
mod kernel;
mod meter;
mod place;
mod reason;
mod record;
mod sink;
mod tally;
mod vector;
mod wires;

pub use kernel::{RefusalAudit, audit_refusals};
pub use reason::{Reason, Side};
pub use record::{Decision, Kind, Process, Record, WouldHave};
pub use sink::{AuditError, Open, Sink, is_deceptive};
pub use tally::Tally;
pub use vector::Vector;
pub use wires::audit_wires;
