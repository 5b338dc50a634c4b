//! What was observed of an attempt → whether its way is closed.
//!
//! Pure. A way counts as closed only where the control has shown that it was open, and only by what is to close it:
//! a second layer that stopped it does not excuse the first.

use nix::errno::Errno;

use super::attempt::Reached;
use super::passes::Seen;
use super::row::{Closer, Row};

/// What is known of one way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was open, and is closed by what is to close it.
    Closed,
    /// It is open, or would be if another layer did not happen to hold it.
    Open(String),
    /// The control did not get through, so nothing is proven either way.
    Unproven(String),
}

impl Verdict {
    /// The word for programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open(_) => "open",
            Self::Unproven(_) => "unproven",
        }
    }

    /// Why it is not closed.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Closed => None,
            Self::Open(why) | Self::Unproven(why) => Some(why),
        }
    }
}

/// Judges one row by its three passes.
pub(super) fn judge(row: &Row, [control, sockets, all]: &[Seen; 3]) -> Verdict {
    if all.outside > 0 {
        return Verdict::Open(format!("{} with everything armed", frames(all.outside)));
    }
    let is_wire = row.closer == Closer::Wire;
    // What comes in is answered by the kernel before the attempt hears of it.
    let may_leave_sockets = is_wire || matches!(row.closer, Closer::Inward | Closer::Deaf);
    if sockets.outside > 0 && !may_leave_sockets {
        return Verdict::Open(format!(
            "{} with the socket programs armed; only the wire fence stops it",
            frames(sockets.outside)
        ));
    }
    if !is_open(row.closer, control) {
        return Verdict::Unproven(match &control.reached.stopped_at {
            Some(_) => format!("not possible here: {}", control.reached),
            None => "nothing arrives even when nothing is armed".to_owned(),
        });
    }
    if row.closer == Closer::Inward && is_open(row.closer, all) {
        return Verdict::Open("it is heard with everything armed".to_owned());
    }
    for seen in [sockets, all] {
        if let Some(why) = is_not_stopped(row.closer, seen) {
            return Verdict::Open(why);
        }
    }
    // What is poked from outside is stopped on its way in, and no answer is made.
    let is_held = all.at_the_fence > 0 || row.poke.is_some();
    if is_wire && (sockets.outside == 0 || !is_held) {
        return Verdict::Unproven(format!(
            "the attempt did not reach the wire fence ({}; {})",
            sockets.reached, all.reached
        ));
    }
    Verdict::Closed
}

/// Whether the way is seen to be open.
pub(super) fn is_open(closer: Closer, seen: &Seen) -> bool {
    match closer {
        Closer::Port | Closer::Local | Closer::Deaf | Closer::Inward => {
            seen.reached.stopped_at.is_none()
        }
        Closer::Record => seen.is_served,
        Closer::Redirect
        | Closer::Connect
        | Closer::Send
        | Closer::Device
        | Closer::Socket
        | Closer::Fence
        | Closer::Listener
        | Closer::Wire => seen.outside > 0,
    }
}

/// Why an armed pass does not show the sign of what is to close the way.
fn is_not_stopped(closer: Closer, seen: &Seen) -> Option<String> {
    if let Some(step) = closer.refuses() {
        let Reached { stopped_at, errno } = &seen.reached;
        let refused = stopped_at.as_deref() == Some(step)
            && closer.says().is_none_or(|says| *errno == Some(says));
        return (!refused)
            .then(|| format!("the {step} is not refused by its hook ({})", seen.reached));
    }
    match closer {
        Closer::Redirect => {
            (!seen.is_served).then(|| format!("it does not reach the gateway ({})", seen.reached))
        }
        Closer::Record => seen.is_served.then(|| "the gateway would serve it".to_owned()),
        _silent => None,
    }
}

fn frames(count: usize) -> String {
    format!("{count} frame{} outside", if count == 1 { "" } else { "s" })
}

impl std::fmt::Display for Reached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.stopped_at, self.errno) {
            (None, _) => f.write_str("done"),
            (Some(step), None) => f.write_str(step),
            (Some(step), Some(errno)) => write!(f, "{step}: {:?}", Errno::from_raw(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::named;
    use super::*;

    fn seen(outside: usize) -> Seen {
        Seen {
            reached: Reached { stopped_at: None, errno: None },
            is_served: false,
            at_the_fence: outside,
            outside,
        }
    }

    fn stopped(step: &str) -> Seen {
        let reached = Reached { stopped_at: Some(step.to_owned()), errno: Some(libc::EPERM) };
        Seen { reached, ..seen(0) }
    }

    fn served() -> Seen {
        Seen { is_served: true, ..seen(0) }
    }

    fn refused() -> Seen {
        let reached =
            Reached { stopped_at: Some("send".to_owned()), errno: Some(libc::ECONNREFUSED) };
        Seen { reached, ..seen(0) }
    }

    fn held() -> Seen {
        Seen { at_the_fence: 1, ..seen(0) }
    }

    fn judged(name: &str, passes: &[Seen; 3]) -> String {
        let verdict = judge(named(name).unwrap().1, passes);
        format!("{} {}", verdict.word(), verdict.why().unwrap_or_default()).trim().to_owned()
    }

    #[test]
    fn a_way_is_closed_only_by_the_layer_that_is_to_close_it_and_after_a_control() {
        let rows = [
            ("tcp4", [seen(1), served(), served()], "closed"),
            (
                "tcp4",
                [seen(0), served(), served()],
                "unproven nothing arrives even when nothing is armed",
            ),
            ("tcp4", [seen(1), seen(0), seen(0)], "open it does not reach the gateway (done)"),
            (
                "tcp4",
                [seen(1), seen(1), served()],
                "open 1 frame outside with the socket programs armed; only the wire fence stops it",
            ),
            ("udp4", [seen(1), refused(), refused()], "closed"),
            (
                "udp4",
                [seen(1), seen(0), refused()],
                "open the send is not refused by its hook (done)",
            ),
            (
                "udp4",
                [seen(1), stopped("send"), refused()],
                "open the send is not refused by its hook (send: EPERM)",
            ),
            ("device-udp", [seen(1), stopped("send"), stopped("send")], "closed"),
            (
                "udplite",
                [seen(1), stopped("send"), stopped("send")],
                "open the socket is not refused by its hook (send: EPERM)",
            ),
            (
                "udplite",
                [stopped("socket"), stopped("socket"), stopped("socket")],
                "unproven not possible here: socket: EPERM",
            ),
            ("pktinfo4", [seen(1), stopped("send"), stopped("send")], "closed"),
            (
                "pktinfo4",
                [seen(1), seen(2), seen(0)],
                "open 2 frames outside with the socket programs armed; only the wire fence stops it",
            ),
        ];
        for (name, passes, expected) in rows {
            assert_eq!(judged(name, &passes), expected, "{name}");
        }
    }

    #[test]
    fn what_no_socket_hook_sees_must_reach_the_wire_fence_and_end_there() {
        let rows = [
            ("packet", [seen(1), seen(1), held()], "closed"),
            (
                "packet",
                [seen(1), seen(1), seen(0)],
                "unproven the attempt did not reach the wire fence (done; done)",
            ),
            ("reset", [seen(1), seen(1), seen(0)], "closed"),
            ("eavesdrop", [seen(0), seen(0), stopped("receive")], "closed"),
            ("eavesdrop", [seen(0), seen(0), seen(0)], "open it is heard with everything armed"),
            ("packet", [seen(1), seen(1), seen(3)], "open 3 frames outside with everything armed"),
            (
                "packet",
                [seen(1), stopped("socket"), stopped("socket")],
                "unproven the attempt did not reach the wire fence (socket: EPERM; socket: EPERM)",
            ),
            ("gateway-port4", [seen(0), stopped("bind"), stopped("bind")], "closed"),
            (
                "gateway-port4",
                [seen(0), seen(0), stopped("bind")],
                "open the bind is not refused by its hook (done)",
            ),
            (
                "gateway-port4",
                [stopped("bind"), stopped("bind"), stopped("bind")],
                "unproven not possible here: bind: EPERM",
            ),
            ("gateway-forged", [served(), seen(0), seen(0)], "closed"),
            ("gateway-forged", [served(), served(), seen(0)], "open the gateway would serve it"),
        ];
        for (name, passes, expected) in rows {
            assert_eq!(judged(name, &passes), expected, "{name}");
        }
    }

    #[test]
    fn a_way_that_the_control_could_not_show_is_still_open_when_frames_get_out() {
        assert_eq!(
            judged("sctp", &[stopped("socket"), seen(1), seen(0)]),
            "open 1 frame outside with the socket programs armed; only the wire fence stops it"
        );
    }
}
