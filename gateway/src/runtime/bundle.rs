//! The configuration of a container (OCI runtime specification, `config.json`): what speaks against it, and what is
//! changed in it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::discover::{Capability, Objection, Waiver};

/// A container's configuration, read whole and changed in few places.
#[derive(Debug, Clone)]
pub struct Configuration(Map<String, Value>);

/// What is put into a configuration.
#[derive(Debug, Clone)]
pub struct Additions {
    /// The cgroup, below the root of the hierarchy or in systemd's form, as the configuration has it.
    pub slice: String,
    /// The program that the real runtime starts when the container's namespaces and cgroup stand.
    pub hook: PathBuf,
    /// Its arguments, the program's name first.
    pub hook_arguments: Vec<String>,
    /// Seconds after which the hook counts as failed, and the container with it.
    pub hook_seconds: u32,
}

impl Configuration {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// When it is no JSON object.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text).map(Self)
    }

    /// The text of a `config.json`.
    #[must_use]
    pub fn to_json(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }

    fn at(&self, pointer: &str) -> Option<&Value> {
        let (first, rest) = pointer.trim_start_matches('/').split_once('/').map_or_else(
            || (pointer.trim_start_matches('/'), None),
            |(first, rest)| (first, Some(rest)),
        );
        let value = self.0.get(first)?;
        rest.map_or(Some(value), |rest| value.pointer(&format!("/{rest}")))
    }

    fn list(&self, pointer: &str) -> &[Value] {
        self.at(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// Everything that speaks against governing the container. `is_host` says whether the file of a namespace is the
    /// host's own; `engine_sockets` are the sockets of the engines on this host.
    #[must_use]
    pub fn objections(
        &self,
        is_host: &dyn Fn(&Path) -> bool,
        engine_sockets: &[PathBuf],
    ) -> Vec<Objection> {
        let mut objections = Vec::new();
        let shares = |kind: &str| match self.namespace(kind) {
            None => true,
            Some(path) => path.is_some_and(|path| is_host(&path)),
        };
        if shares("network") {
            objections.push(Objection::HostNetwork);
        }
        let mut add = |waiver, seen: String| objections.push(Objection::Waivable(waiver, seen));
        if shares("mount") {
            add(Waiver::HostMounts, "it shares the host's mount namespace".to_owned());
        }
        if shares("pid") {
            add(Waiver::HostPids, "it shares the host's PID namespace".to_owned());
        }
        if shares("user") {
            for capability in self.capabilities() {
                let waiver = Waiver::Capability(capability);
                let name = waiver.word().to_uppercase().replace('-', "_");
                add(waiver, format!("it has {name}"));
            }
        }
        for (waiver, seen) in self.mount_objections(engine_sockets) {
            add(waiver, seen);
        }
        for device in self.packet_devices() {
            add(Waiver::PacketDevices, format!("it has the device {device}"));
        }
        objections
    }

    /// `None` without a namespace of this kind of its own; `Some(None)` for a new one, `Some(path)` for one that
    /// exists.
    fn namespace(&self, kind: &str) -> Option<Option<PathBuf>> {
        let found = self
            .list("linux/namespaces")
            .iter()
            .find(|namespace| namespace.get("type").and_then(Value::as_str) == Some(kind))?;
        let path = found.get("path").and_then(Value::as_str).filter(|path| !path.is_empty());
        Some(path.map(PathBuf::from))
    }

    fn capabilities(&self) -> Vec<Capability> {
        let sets = ["bounding", "effective", "inheritable", "permitted", "ambient"];
        let named: Vec<&str> = sets
            .iter()
            .flat_map(|set| self.list(&format!("process/capabilities/{set}")))
            .filter_map(Value::as_str)
            .collect();
        Waiver::all()
            .filter_map(|(word, waiver)| match waiver {
                Waiver::Capability(capability) => Some((word, capability)),
                _ => None,
            })
            .filter(|(word, _)| {
                let name = word.to_uppercase().replace('-', "_");
                named.iter().any(|found| found.eq_ignore_ascii_case(&name))
            })
            .map(|(_, capability)| capability)
            .collect()
    }

    fn mount_objections(&self, engine_sockets: &[PathBuf]) -> Vec<(Waiver, String)> {
        let mut found = Vec::new();
        for mount in self.list("mounts") {
            let text = |key: &str| mount.get(key).and_then(Value::as_str).unwrap_or_default();
            let (kind, source, destination) = (text("type"), text("source"), text("destination"));
            let options: Vec<&str> = mount
                .get("options")
                .and_then(Value::as_array)
                .map_or(&[][..], Vec::as_slice)
                .iter()
                .filter_map(Value::as_str)
                .collect();
            let is_bind = kind == "bind" || options.iter().any(|o| *o == "bind" || *o == "rbind");
            let can_write = !options.contains(&"ro");
            let source = Path::new(source);
            if is_bind && engine_sockets.iter().any(|socket| socket.starts_with(source)) {
                let seen = format!(
                    "{} is mounted at {destination}, with the socket of a container engine",
                    source.display()
                );
                found.push((Waiver::EngineSocket, seen));
            }
            let is_kernel = ["cgroup", "cgroup2", "bpf"].contains(&kind)
                || (is_bind && KERNEL_VIEWS.iter().any(|view| source.starts_with(view)));
            if is_kernel && can_write {
                let seen = format!("a view of the kernel can be written at {destination}");
                found.push((Waiver::KernelMounts, seen));
            }
        }
        found
    }

    fn packet_devices(&self) -> Vec<String> {
        let listed = self.list("linux/devices").iter().filter_map(|device| {
            let path = device.get("path")?.as_str()?;
            PACKET_DEVICES.iter().any(|known| path.starts_with(known)).then(|| path.to_owned())
        });
        // All devices at once is what an engine gives to a privileged container.
        let all = self.list("linux/resources/devices").iter().filter_map(|rule| {
            let allows = rule.get("allow").and_then(Value::as_bool) == Some(true);
            let kind = rule.get("type").and_then(Value::as_str).unwrap_or("a");
            let is_whole = rule.get("major").is_none_or(Value::is_null) && kind == "a";
            (allows && is_whole).then(|| "of every kind (privileged)".to_owned())
        });
        listed.chain(all).collect()
    }

    /// Puts the container's cgroup into the slice and the hook in front of its first instruction.
    pub fn add(&mut self, additions: &Additions, id: &str) {
        with_object(&mut self.0, "linux", |linux| {
            let former = linux.get("cgroupsPath").and_then(Value::as_str).unwrap_or_default();
            // systemd's form is slice:prefix:name.
            let path = match former.split(':').collect::<Vec<_>>().as_slice() {
                [_slice, prefix, name] => format!("{}:{prefix}:{name}", additions.slice),
                _ => format!("/{}/{id}", additions.slice),
            };
            linux.insert("cgroupsPath".to_owned(), Value::String(path));
        });
        let hook = json!({
            "path": additions.hook,
            "args": additions.hook_arguments,
            "timeout": additions.hook_seconds,
        });
        with_object(&mut self.0, "hooks", |hooks| {
            match hooks.get_mut("createRuntime").and_then(Value::as_array_mut) {
                // First: what other hooks do then is governed as well.
                Some(list) => list.insert(0, hook),
                None => {
                    hooks.insert("createRuntime".to_owned(), json!([hook]));
                }
            }
        });
    }
}

/// The object at `key`, made where there is none.
fn with_object(
    parent: &mut Map<String, Value>,
    key: &str,
    change: impl FnOnce(&mut Map<String, Value>),
) {
    let mut object = match parent.remove(key) {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    };
    change(&mut object);
    parent.insert(key.to_owned(), Value::Object(object));
}

/// Views of the host's kernel that a bind mount can carry in.
const KERNEL_VIEWS: [&str; 3] = ["/sys/fs/bpf", "/sys/fs/cgroup", "/proc"];

/// Devices that move packets or memory past everything that is governed.
const PACKET_DEVICES: [&str; 8] = [
    "/dev/net/tun",
    "/dev/infiniband",
    "/dev/vfio",
    "/dev/vhost",
    "/dev/vsock",
    "/dev/kvm",
    "/dev/mem",
    "/dev/uio",
];

#[cfg(test)]
mod tests {
    use super::*;

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
        let is_host = |path: &Path| path == Path::new("/proc/1/ns/net");
        let sockets = [PathBuf::from("/run/docker.sock")];
        configuration
            .objections(&is_host, &sockets)
            .iter()
            .map(|objection| match objection {
                Objection::HostNetwork => "host-network",
                Objection::Waivable(waiver, _) => waiver.word(),
            })
            .collect()
    }

    #[test]
    fn an_ordinary_container_can_be_held() {
        assert!(words(&configuration(|_| {})).is_empty());
    }

    #[test]
    fn what_cannot_be_held_is_named() {
        let namespaces = |value: &mut Value, list: Value| value["linux"]["namespaces"] = list;
        type Change = Box<dyn Fn(&mut Value)>;
        let push = |key: &'static str, item: Value| -> Change {
            Box::new(move |value| value[key].as_array_mut().unwrap().push(item.clone()))
        };
        let bind = |source: &str| json!({ "destination": "/x", "type": "bind", "source": source });
        let rows: Vec<(Change, &[&str])> = vec![
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
                Box::new(move |v| {
                    namespaces(v, json!([{ "type": "mount" }, { "type": "network" }]))
                }),
                &["host-pids"],
            ),
            (
                Box::new(|v| {
                    v["process"]["capabilities"]["bounding"] =
                        json!(["CAP_SYS_ADMIN", "CAP_BPF", "CAP_CHOWN"]);
                }),
                &["cap-sys-admin", "cap-bpf"],
            ),
            (push("mounts", bind("/run/docker.sock")), &["engine-socket"]),
            (push("mounts", bind("/run")), &["engine-socket"]),
            (push("mounts", bind("/")), &["engine-socket"]),
            (push("mounts", bind("/sys/fs/cgroup")), &["kernel-mounts"]),
            (push("mounts", bind("/sys/fs/bpf/tollgate")), &["kernel-mounts"]),
            (
                Box::new(|v| v["linux"]["devices"] = json!([{ "path": "/dev/net/tun" }])),
                &["packet-devices"],
            ),
            (
                Box::new(|v| {
                    v["linux"]["resources"]["devices"] =
                        json!([{ "allow": true, "access": "rwm" }]);
                }),
                &["packet-devices"],
            ),
        ];
        for (change, expected) in rows {
            let configuration = configuration(change);
            assert_eq!(words(&configuration), expected, "{}", configuration.to_json());
        }
    }

    #[test]
    fn the_container_moves_into_the_slice_and_the_hook_comes_first() {
        let additions = Additions {
            slice: "tollgate.slice".to_owned(),
            hook: "/usr/bin/tollgate".into(),
            hook_arguments: vec!["tollgate".to_owned(), "__created".to_owned()],
            hook_seconds: 10,
        };
        let mut plain = configuration(|value| {
            value["hooks"] = json!({ "createRuntime": [{ "path": "/other" }], "poststop": [] });
        });
        plain.add(&additions, "c1");
        assert_eq!(plain.at("linux/cgroupsPath").unwrap(), "/tollgate.slice/c1");
        let hooks = plain.list("hooks/createRuntime");
        assert_eq!(hooks[0]["path"], "/usr/bin/tollgate");
        assert_eq!((&hooks[0]["timeout"], &hooks[1]["path"]), (&json!(10), &json!("/other")));

        let mut systemd = configuration(|value| {
            value["linux"]["cgroupsPath"] = json!("system.slice:docker:c1");
        });
        systemd.add(&additions, "c1");
        assert_eq!(systemd.at("linux/cgroupsPath").unwrap(), "tollgate.slice:docker:c1");
        assert_eq!(systemd.list("hooks/createRuntime").len(), 1);
    }
}
