//! What speaks against a container, said of its configuration before there is a process to look at.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Configuration;
use crate::discover::{ENGINE_SOCKETS, Objection, Waiver, packet_device};

/// What a configuration says only together with the host that it is for.
pub struct Facts<'a> {
    /// Whether the file of a namespace is the host's own.
    pub is_host: &'a dyn Fn(&Path) -> bool,
    /// A path of the host without its links, where it exists.
    pub real: &'a dyn Fn(&Path) -> PathBuf,
    /// The sockets of the engines on this host.
    pub engines: &'a [PathBuf],
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

impl Configuration {
    /// Everything that speaks against governing the container, waived or not.
    #[must_use]
    pub fn objections(&self, facts: &Facts<'_>) -> Vec<Objection> {
        let mut objections = Vec::new();
        let shares = |kind: &str| match self.namespace(kind) {
            None => true,
            Some(path) => path.is_some_and(|path| (facts.is_host)(&path)),
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
        // In a user namespace of its own a capability is one over that namespace, not over the host.
        if shares("user") {
            for (waiver, name) in self.capabilities() {
                add(waiver, format!("it has {name}"));
            }
        }
        for mount in self.list("mounts") {
            for (waiver, seen) in of_mount(mount, facts) {
                add(waiver, seen);
            }
        }
        for device in self.packet_devices() {
            add(Waiver::PacketDevices, format!("it has {device}"));
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

    fn capabilities(&self) -> Vec<(Waiver, String)> {
        let sets = ["bounding", "effective", "inheritable", "permitted", "ambient"];
        let named: Vec<&str> = sets
            .iter()
            .flat_map(|set| self.list(&format!("process/capabilities/{set}")))
            .filter_map(Value::as_str)
            .collect();
        Waiver::all()
            .filter(|(_, waiver)| matches!(waiver, Waiver::Capability(_)))
            .map(|(word, waiver)| (waiver, word.to_uppercase().replace('-', "_")))
            .filter(|(_, name)| named.iter().any(|found| found.eq_ignore_ascii_case(name)))
            .collect()
    }

    fn packet_devices(&self) -> Vec<String> {
        let listed = self.list("linux/devices").iter().filter_map(|device| {
            let path = device.get("path")?.as_str()?;
            let number = |key: &str| device.get(key).and_then(Value::as_u64);
            let is_character = device.get("type").and_then(Value::as_str) != Some("b");
            // By whatever name.
            let is_one = is_character
                && number("major")
                    .is_some_and(|major| packet_device(Some(major), number("minor")).is_some());
            let is_known = is_one || PACKET_DEVICES.iter().any(|known| path.starts_with(known));
            is_known.then(|| format!("the device {path}"))
        });
        // What an engine gives to a privileged container.
        let whole = self.list("linux/resources/devices").iter().any(|rule| {
            let allows = rule.get("allow").and_then(Value::as_bool) == Some(true);
            let is_block = rule.get("type").and_then(Value::as_str) == Some("b");
            // Absent or -1 is every number.
            let every = |key: &str| rule.get(key).and_then(Value::as_i64).is_none_or(|n| n < 0);
            allows && !is_block && every("major")
        });
        // A container that may make devices makes those that it may use.
        let allowed = self.list("linux/resources/devices").iter().filter_map(|rule| {
            let text = |key: &str| rule.get(key).and_then(Value::as_str);
            let allows = rule.get("allow").and_then(Value::as_bool) == Some(true);
            let may_use = text("access").is_none_or(|access| access.contains(['r', 'w']));
            // Absent or -1 is every number.
            let number = |key: &str| rule.get(key).and_then(Value::as_u64);
            let is_one = allows && may_use && text("type") != Some("b");
            let major = number("major").filter(|_| is_one)?;
            // Some engines let every container use this one, which does nothing without a capability that is refused.
            let device =
                packet_device(Some(major), number("minor")).filter(|it| *it != "net/tun")?;
            Some(format!("the right to use the device {device}"))
        });
        listed.chain(allowed).chain(whole.then(|| "every device there is".to_owned())).collect()
    }
}

fn of_mount(mount: &Value, facts: &Facts<'_>) -> Vec<(Waiver, String)> {
    let text = |key: &str| mount.get(key).and_then(Value::as_str).unwrap_or_default();
    let (kind, destination) = (text("type"), text("destination"));
    let options: Vec<&str> = mount
        .get("options")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let has = |option: &str| options.contains(&option);
    let is_bind = kind == "bind" || has("bind") || has("rbind");
    let mut found = Vec::new();
    if !is_bind {
        if ["cgroup", "cgroup2", "bpf"].contains(&kind) && !has("ro") {
            let seen = format!("a {kind} file system can be written at {destination}");
            found.push((Waiver::KernelMounts, seen));
        }
        return found;
    }
    let source = (facts.real)(Path::new(text("source")));
    let shown = source.display();
    let is_socket = |path: &Path| {
        path.file_name().is_some_and(|name| ENGINE_SOCKETS.iter().any(|socket| name == *socket))
    };
    let holds_socket = facts.engines.iter().any(|socket| (facts.real)(socket).starts_with(&source));
    if holds_socket || is_socket(&source) || is_socket(Path::new(destination)) {
        let seen = format!("{shown} is mounted at {destination}, with the socket of an engine");
        found.push((Waiver::EngineSocket, seen));
    }
    let is_view = KERNEL_VIEWS.iter().any(|view| source.starts_with(view));
    // `ro` is said of the topmost mount alone; `rro` of all below it.
    let brings_views =
        has("rbind") && KERNEL_VIEWS.iter().any(|v| Path::new(v).starts_with(&source));
    if (is_view && !has("ro") && !has("rro")) || (brings_views && !is_view && !has("rro")) {
        let seen = format!("{shown} is mounted at {destination}, where the kernel can be written");
        found.push((Waiver::KernelMounts, seen));
    }
    found
}
