use super::objections::Facts;
use super::*;
use crate::discover::Objection;

fn configuration(change: impl Fn(&mut Value)) -> Configuration {
    let mut value = json!({
        "process": { "capabilities": { "bounding": ["CAP_CHOWN", "CAP_NET_RAW"] } },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["ro", "nosuid"] },
            { "destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind"] },
        ],
        "linux": {
            "cgroupsPath": "/docker/c1",
            "resources": { "devices": [
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm" },
            ]},
            "namespaces": [
                { "type": "mount" }, { "type": "network" }, { "type": "pid" }, { "type": "ipc" },
            ],
        },
    });
    change(&mut value);
    Configuration::parse(value.to_string().as_bytes()).unwrap()
}

fn words(configuration: &Configuration) -> Vec<&'static str> {
    let facts = Facts {
        is_host: &|path| path == Path::new("/proc/1/ns/net"),
        real: &|path| {
            let below = path.strip_prefix("/var/run").map(|rest| Path::new("/run").join(rest));
            below.unwrap_or_else(|_other| path.to_path_buf())
        },
        engines: &[PathBuf::from("/var/run/an-engine")],
    };
    let objections = configuration.objections(&facts);
    let word = |objection: &Objection| match objection {
        Objection::HostNetwork => "host-network",
        Objection::Waivable(waiver, _) => waiver.word(),
    };
    objections.iter().map(word).collect()
}

#[test]
fn an_ordinary_container_can_be_held() {
    assert!(words(&configuration(|_| {})).is_empty());
}

type Change = Box<dyn Fn(&mut Value)>;

fn mounts_that_cannot_be_held() -> Vec<(Change, &'static [&'static str])> {
    let push = |key: &'static str, item: Value| -> Change {
        Box::new(move |value| value[key].as_array_mut().unwrap().push(item.clone()))
    };
    let bind = |source: &str, options: &[&str]| json!({ "destination": "/x", "type": "bind", "source": source, "options": options });
    vec![
        (push("mounts", bind("/srv/docker.sock", &["bind", "ro"])), &["engine-socket"]),
        (push("mounts", bind("/run/an-engine", &["rbind"])), &["engine-socket"]),
        (push("mounts", bind("/var/run", &["rbind", "ro"])), &["engine-socket"]),
        (push("mounts", bind("/", &["rbind", "ro"])), &["engine-socket", "kernel-mounts"]),
        (push("mounts", bind("/", &["rbind", "rro"])), &["engine-socket"]),
        (push("mounts", bind("/sys", &["rbind", "ro"])), &["kernel-mounts"]),
        (push("mounts", bind("/sys/fs/cgroup", &["rbind"])), &["kernel-mounts"]),
        (push("mounts", bind("/sys/fs/cgroup", &["rbind", "ro"])), &[]),
        (push("mounts", bind("/sys/fs/bpf/tollgate", &[])), &["kernel-mounts"]),
        (push("mounts", json!({ "destination": "/c", "type": "cgroup" })), &["kernel-mounts"]),
    ]
}

#[test]
fn what_cannot_be_held_is_named() {
    let namespaces = |value: &mut Value, list: Value| value["linux"]["namespaces"] = list;
    let others: Vec<(Change, &[&str])> = vec![
        (
            Box::new(move |v| namespaces(v, json!([{ "type": "mount" }, { "type": "pid" }]))),
            &["host-network"],
        ),
        (
            Box::new(move |v| {
                let network = json!({ "type": "network", "path": "/proc/1/ns/net" });
                namespaces(v, json!([{ "type": "mount" }, { "type": "pid" }, network]));
            }),
            &["host-network"],
        ),
        (
            Box::new(move |v| namespaces(v, json!([{ "type": "mount" }, { "type": "network" }]))),
            &["host-pids"],
        ),
        (
            Box::new(|v| {
                v["process"]["capabilities"]["bounding"] =
                    json!(["CAP_SYS_ADMIN", "CAP_BPF", "CAP_CHOWN"]);
            }),
            &["cap-sys-admin", "cap-bpf"],
        ),
        (
            Box::new(|v| v["linux"]["devices"] = json!([{ "path": "/dev/net/tun" }])),
            &["packet-devices"],
        ),
        (
            Box::new(|v| {
                v["linux"]["resources"]["devices"] = json!([{ "allow": true, "access": "rwm" }]);
            }),
            &["packet-devices"],
        ),
        (
            Box::new(|v| {
                v["linux"]["resources"]["devices"] =
                    json!([{ "allow": true, "type": "c", "major": -1, "access": "rwm" }]);
            }),
            &["packet-devices"],
        ),
        (
            Box::new(|v| {
                v["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "mount")
            }),
            &["host-mounts"],
        ),
        (
            Box::new(|v| {
                v["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
                v["process"]["capabilities"]["effective"] = json!(["CAP_SYS_ADMIN"]);
            }),
            &[],
        ),
    ];
    let rows = others.into_iter().chain(mounts_that_cannot_be_held());
    for (change, expected) in rows {
        let configuration = configuration(change);
        assert_eq!(words(&configuration), expected, "{}", configuration.clone().into_json());
    }
}

#[test]
fn the_container_moves_into_the_slice_in_the_form_of_its_driver_unless_a_parent_was_named() {
    let rows = [
        ("/docker/c1", "/tollgate.slice/c1", "/tollgate.slice/c1"),
        ("", "/tollgate.slice/c1", "/tollgate.slice/c1"),
        ("/libpod_parent/libpod-c1", "/tollgate.slice/libpod-c1", "/tollgate.slice/libpod-c1"),
        ("system.slice:docker:c1", "tollgate.slice:docker:c1", "/tollgate.slice/docker-c1.scope"),
        (":docker:c1", "tollgate.slice:docker:c1", "/tollgate.slice/docker-c1.scope"),
        ("/agents/c1", "/agents/c1", "/agents/c1"),
        ("agents/c1", "agents/c1", "/agents/c1"),
        (
            "my-agents.slice:docker:c1",
            "my-agents.slice:docker:c1",
            "/my.slice/my-agents.slice/docker-c1.scope",
        ),
    ];
    for (former, expected, cgroup) in rows {
        let mut placed = configuration(|value| value["linux"]["cgroupsPath"] = json!(former));
        placed.place("c1");
        assert_eq!(placed.cgroups_path(), expected, "{former}");
        assert_eq!(placed.cgroup(), Path::new(cgroup), "{former}");
    }
    let mut bare = Configuration::parse(b"{}").unwrap();
    bare.place("c1");
    assert_eq!(bare.cgroups_path(), "/tollgate.slice/c1");
}

#[test]
fn the_hook_comes_first_and_variables_replace_those_of_the_same_name() {
    let additions = Additions {
        hook: "/lib/tollgate-runtime".into(),
        environment: vec![("KEY".to_owned(), "new".to_owned())],
        defaults: vec![
            ("PATH".to_owned(), "/other".to_owned()),
            ("MORE".to_owned(), "x".to_owned()),
        ],
        mounts: vec![("/host/ca.pem".into(), "/run/tollgate/ca.pem".into())],
    };
    let mut changed = configuration(|value| {
        value["hooks"] = json!({ "createRuntime": [{ "path": "/other" }], "poststop": [] });
        value["process"]["env"] = json!(["PATH=/bin", "KEY=old", "KEYS=x"]);
    });
    changed.add(&additions);
    let hooks = changed.list("hooks/createRuntime");
    assert_eq!(hooks[0]["path"], "/lib/tollgate-runtime");
    assert_eq!(hooks[0]["args"], json!(["tollgate-runtime", "hook"]));
    assert_eq!((&hooks[0]["timeout"], &hooks[1]["path"]), (&json!(15), &json!("/other")));
    assert_eq!(changed.list("process/env"), ["PATH=/bin", "KEYS=x", "KEY=new", "MORE=x"]);
    let mounts = changed.list("mounts");
    assert_eq!((mounts.len(), &mounts[3]["source"]), (4, &json!("/host/ca.pem")));
    assert!(mounts[3]["options"].as_array().unwrap().contains(&json!("ro")));

    let mut bare = Configuration::parse(b"{}").unwrap();
    bare.add(&additions);
    assert_eq!(bare.list("hooks/createRuntime").len(), 1);
    assert_eq!(bare.list("process/env"), ["KEY=new", "PATH=/other", "MORE=x"]);
}

#[test]
fn what_is_not_touched_stays_as_the_engine_wrote_it() {
    let text = br#"{"process":{"rlimits":[{"hard":18446744073709551615,"soft":1.5}]},"x":["\u00e9",null,-1]}"#;
    let mut changed = Configuration::parse(text).unwrap();
    changed.add(&Additions::default());
    let mut value = changed.into_json();
    let object = value.as_object_mut().unwrap();
    object.remove("hooks");
    object.remove("mounts");
    object["process"].as_object_mut().unwrap().remove("env");
    assert_eq!(value, serde_json::from_slice::<Value>(text).unwrap());
    assert!(Configuration::parse(b"[]").is_err());
    assert!(Configuration::of(json!([])).is_none());
}

#[test]
fn a_device_is_known_by_its_numbers_whatever_its_name_and_so_is_the_right_to_use_it() {
    let listed = |minor: u64| {
        let device = json!({ "path": "/dev/x", "type": "c", "major": 10, "minor": minor });
        configuration(|v| v["linux"]["devices"] = json!([device]))
    };
    assert_eq!(words(&listed(229)), [""; 0], "the control");
    assert_eq!(words(&listed(232)), ["packet-devices"]);
    let allowed = |major: i64, minor: i64, access: &str| {
        let rule =
            json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": access });
        configuration(|v| v["linux"]["resources"]["devices"] = json!([rule]))
    };
    assert_eq!(words(&allowed(1, 3, "rwm")), [""; 0], "the control");
    assert_eq!(words(&allowed(10, 232, "m")), [""; 0], "to make one is not to use it");
    for (major, minor) in [(10, 232), (10, -1), (1, 1)] {
        assert_eq!(words(&allowed(major, minor, "rwm")), ["packet-devices"], "{major}:{minor}");
    }
}
