//! Interfaces that a workload gets while it is governed.

use std::time::{Duration, Instant};

use crate::common::wait_until;
use crate::scene::{Scene, holds};

/// How many interfaces one workload gets.
const INTERFACES: u8 = 24;

/// Sends frames out of every interface that there is, as fast as it can, until the file `stop` exists.
fn sprayer(scene: &Scene) -> String {
    format!(
        "s = packet()
frame = b'\\xff' * 6 + b'\\x02\\x77\\0\\0\\0\\xff' + b'\\x88\\xb5' + b'ESCAPED' + bytes(40)
sent = 0
print('spraying', flush=True)
while not os.path.exists('{}'):
    for index, name in socket.if_nameindex():
        if name != 'lo':
            try:
                s.sendto(frame, (name, 0x88b5)); sent += 1
            except OSError: pass
print('sent', sent)",
        scene.world.path("stop").display()
    )
}

/// Gives the workload interfaces one by one while it sprays. Returns how many frames it could send, and how many the
/// neighbour got.
fn sprayed(scene: &Scene) -> (usize, Vec<Vec<u8>>) {
    let mut sprayer = scene.start(&sprayer(scene));
    sprayer.wait_until_printed("spraying");
    for number in 1..=INTERFACES {
        scene.add_interface(number);
        // An engine has more to do for one than this.
        wait_until("it is fenced", || {
            !scene.is_governed()
                || scene.complaints().matches("fenced interface").count() >= number.into()
        });
    }
    std::fs::write(scene.world.path("stop"), "").unwrap();
    let said = sprayer.wait();
    let sent = said.ok().lines().last().unwrap().strip_prefix("sent ").unwrap().parse().unwrap();
    (sent, scene.escaped())
}

#[test]
fn what_a_workload_sends_through_an_interface_that_appears_reaches_nobody() {
    let Some(free) = Scene::new("") else { return };
    let (sent, escaped) = sprayed(&free);
    assert!(sent > 0 && escaped.len() > usize::from(INTERFACES), "the control: {sent}");
    drop(free);

    let Some(mut scene) = Scene::new("") else { return };
    scene.govern();
    let (sent, escaped) = sprayed(&scene);
    assert!(sent > usize::from(INTERFACES), "{sent}");
    assert_eq!(escaped.len(), 0, "of {sent}\n{}", scene.complaints());
    // Upper bounds: on a busy machine they count frames that the gate has stopped. What left is counted above.
    println!("frames that may have passed: {:?}", scene.records("wire_was_open"));
    assert_eq!(scene.records("wire_unfenceable"), Vec::<String>::new());
}

#[test]
fn what_appears_while_a_workload_is_not_served_is_fenced_at_once_too() {
    const SEND: &str = "
for index, name in socket.if_nameindex():
    if name != 'lo': packet().sendto(b'\\xff' * 6 + mac(name) + b'\\x88\\xb5ESCAPED' + bytes(40), (name, 0))";
    let sent = |scene: &Scene| {
        scene.settle();
        scene.tap.forget();
        scene.inside(SEND);
        scene.escaped().iter().filter(|frame| holds(frame, b"ESCAPED")).count()
    };
    let Some(free) = Scene::new("") else { return };
    (1..=8).for_each(|number| free.add_interface(number));
    assert_eq!(sent(&free), 8, "the control");
    drop(free);

    let Some(mut scene) = Scene::new("") else { return };
    scene.govern();
    let spoiler = scene.spoil();
    let began = Instant::now();
    for number in 1..=8 {
        scene.add_interface(number);
        wait_until("it is fenced", || {
            scene.complaints().matches("peer=\"w").count() >= usize::from(number)
        });
    }
    // It is tried again after 1, 2, 4, 8 and then every 10 seconds, which would be 45 and more for as many.
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(sent(&scene), 0, "{}", scene.complaints());
    assert_eq!(scene.complaints().matches(" governed ").count(), 1, "it was closed all the while");
    drop(spoiler);
    wait_until("it is served again", || scene.complaints().matches(" governed ").count() == 2);
}

#[test]
fn the_fence_follows_an_interface_that_is_deleted_and_made_again() {
    let Some(mut scene) = Scene::new("") else { return };
    scene.add_interface(1);
    scene.govern();
    let send = "packet().sendto(b'\\xff' * 6 + mac('eth1') + b'\\x88\\xb5ESCAPED' + bytes(40), ('eth1', 0))";
    scene.settle();
    scene.tap.forget();
    for _ in 0..5 {
        scene.on_host("link del w1");
        scene.add_interface(1);
        scene.inside(send);
    }
    assert_eq!(scene.escaped(), Vec::<Vec<u8>>::new(), "{}", scene.complaints());
    // Pins of interfaces that are gone do not pile up.
    let pins = || {
        let directory = "/sys/fs/bpf/tollgate";
        let all = std::fs::read_dir(directory).unwrap().flatten();
        let all = all.flat_map(|workload| std::fs::read_dir(workload.path()).unwrap().flatten());
        let names = all.map(|pin| pin.file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("wire-")).count()
    };
    wait_until("only one pair is pinned", || scene.world.host.run(pins) == 2);
    scene.kill_daemon();
    scene.inside(send);
    assert_eq!(scene.escaped(), Vec::<Vec<u8>>::new(), "without a daemon");
    scene.world.host.run(|| std::fs::remove_dir_all("/sys/fs/bpf/tollgate").unwrap());
    scene.inside(send);
    let escaped = scene.escaped().iter().filter(|frame| holds(frame, b"ESCAPED")).count();
    assert_eq!(escaped, 1, "the control: without the pins it arrives");
}
