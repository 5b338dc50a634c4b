//! Vectors 46 and 47: what comes in from outside.

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::common::running::Ended;
use crate::common::wait_for;
use crate::layers::Layer::{Egress, Ingress, Wire};
use crate::layers::State;
use crate::workload::Rights;
use crate::world::{GATEWAY, OWN, World};

const PROGRAM: &str = "escapes/inbound.py";
const PORT: u16 = 7100;
const VARIABLES: [(&str, &str); 1] = [("PORT", "7100")];
const COMMAND: &[u8] = b"command-from-outside";
/// How long a connection is tried that is not to succeed.
const SHORT: Duration = Duration::from_secs(1);

/// What a neighbour on the bridge gets when it connects.
fn connect(address: &str) -> Option<String> {
    let to = SocketAddr::new(address.parse().unwrap(), PORT);
    let mut connection = TcpStream::connect_timeout(&to, SHORT).ok()?;
    connection.set_read_timeout(Some(SHORT)).unwrap();
    let mut text = [0; 100];
    let read = connection.read(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text[..read]).into_owned())
}

fn tell(address: &str) {
    let family = if address.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(family).unwrap();
    let to = SocketAddr::new(address.parse().unwrap(), PORT);
    let _told = socket.send_to(COMMAND, to).is_ok();
}

/// A server in the workload, and what both sides have heard of each other.
fn served(state: State) -> Option<(Vec<Option<String>>, Ended)> {
    let world = World::new(state)?;
    let mut server = world.start_as(Rights::Nobody, &VARIABLES, PROGRAM, &["serve"]);
    server.wait_until_printed("ready");
    let mut heard: Vec<Option<String>> =
        OWN.iter().map(|own| world.outside.run(move || connect(own))).collect();
    // From the host itself, by the bridge.
    heard.push(world.host.run(|| connect(OWN[0])));
    for own in OWN {
        world.outside.run(move || tell(own));
        world.host.run(move || tell(own));
    }
    if state == State::Off {
        wait_for("all four datagrams", || {
            (server.stdout().matches("told").count() == 4).then_some(())
        });
    } else {
        world.assert_nothing_arrived(&format!("connections from outside in {state:?}"));
    }
    world.start_as(Rights::Nobody, &VARIABLES, PROGRAM, &["end"]).wait().ok();
    Some((heard, server.wait()))
}

/// Vector 46.
#[test]
fn nobody_outside_reaches_a_server_in_the_workload() {
    let Some((heard, said)) = served(State::Off) else { return };
    assert_eq!(heard, vec![Some("escape:secret".to_owned()); 3], "the control: {said:#?}");
    let Some((heard, said)) = served(State::Governed) else { return };
    assert_eq!(heard, vec![None; 3], "{said:#?}");
    assert_eq!(said.ok(), "ready\n");
}

/// Vector 46: the workload's answer cannot leave, though it hears what is said without one.
#[test]
fn the_egress_fence_alone_keeps_a_server_from_answering() {
    let Some((heard, said)) = served(State::Only(&[Egress])) else { return };
    assert_eq!(heard, vec![None; 3], "{said:#?}");
    assert!(!said.ok().contains("accepted"), "{said:#?}");
    assert!(said.stdout.contains("told command-from-outside"), "{said:#?}");
}

/// Vector 46.
#[test]
fn the_ingress_fence_and_the_wire_fence_alone_keep_everything_from_a_server() {
    for state in [State::Only(&[Ingress]), State::Only(&[Wire])] {
        let Some((heard, said)) = served(state) else { return };
        assert_eq!(heard, vec![None; 3], "{state:?}: {said:#?}");
        assert_eq!(said.ok(), "ready\n", "{state:?}");
    }
}

/// Vector 47: what a process sees without asking anybody is a way to command it.
#[test]
fn a_process_that_only_watches_its_device_sees_nothing_from_outside() {
    for (state, sees) in [
        (State::Off, true),
        (State::GovernedBut(&[Wire]), true),
        (State::Governed, false),
        (State::Only(&[Wire]), false),
    ] {
        let Some(world) = World::new(state) else { return };
        let mut watcher = world.start_as(Rights::Docker, &VARIABLES, PROGRAM, &["watch"]);
        watcher.wait_until_printed("ready");
        for own in OWN {
            world.outside.run(move || tell(own));
        }
        world.host.run(|| tell(OWN[0]));
        assert_ne!(GATEWAY, OWN);
        if sees {
            watcher.wait_until_printed("seen\nseen\nseen");
        }
        world.start_as(Rights::Docker, &VARIABLES, PROGRAM, &["end"]).wait().ok();
        assert_eq!(watcher.wait().ok().contains("seen"), sees, "{state:?}");
    }
}
