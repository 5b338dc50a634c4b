//! Every stage → one record per request, query and refusal of the kernel, and per connection without a request.
//!
//! A record is opened where a thing begins ([`Sink::open`]), filled while it goes on, and written once when the
//! guard is dropped, whatever the way out was. Until somebody decides otherwise it says `block`.

mod kernel;
mod reason;
mod record;
mod sink;
mod wires;

pub use kernel::audit_refusals;
pub use reason::{Reason, Side};
pub use record::{Decision, Kind, Process, Record};
pub use sink::{AuditError, Open, Sink};
pub use wires::audit_wires;
