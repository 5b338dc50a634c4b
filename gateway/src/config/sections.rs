//! `[gateway]`, `[dns]`, `[discover]` and `[upstream]`.

use std::collections::HashSet;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use super::diagnostic::{Findings, Located};
use super::reader::{Table, as_string, nearest, shown, wrong_type};
use super::{DeniedName, Discover, Dns, Gateway, Upstream};
use crate::discover::Waiver;
use crate::net::HostName;
use toml::de::DeValue;

/// `[gateway]`, with every default where the section or a key is absent.
pub(super) fn gateway(
    findings: &mut Findings,
    section: Option<Table<'_>>,
    folder: &Path,
) -> Gateway {
    let mut gateway = Gateway::default();
    let Some(mut section) = section else { return gateway };
    if let Some(port) = section.integer(findings, "port") {
        match u16::try_from(port.value) {
            Ok(number) if number > 0 && number != DNS_PORT => gateway.way.port = number,
            Ok(_) | Err(_) => {
                let help = format!("for example `port = {}`", gateway.way.port);
                findings.add(port.place, "the port is between 1 and 65535, and not 53 (DNS)", help);
            }
        }
    }
    if let Some(rate) = section.integer(findings, "connects_per_second") {
        match u32::try_from(rate.value).ok().and_then(NonZeroU32::new) {
            Some(number) if number <= CONNECTS_PER_SECOND_MAX => {
                gateway.way.connects_per_second = number;
            }
            Some(_) | None => {
                let message = format!("the rate is between 1 and {CONNECTS_PER_SECOND_MAX}");
                let default = gateway.way.connects_per_second;
                let help = format!("for example `connects_per_second = {default}`");
                findings.add(rate.place, message, help);
            }
        }
    }
    if let Some(path) = file_path(findings, &mut section, "state_dir", folder) {
        gateway.state_dir = path;
    }
    if let Some(path) = file_path(findings, &mut section, "audit", folder) {
        gateway.audit = path;
    }
    section.finish(findings);
    gateway
}

/// One in a microsecond: more than a machine can make.
const CONNECTS_PER_SECOND_MAX: NonZeroU32 = NonZeroU32::new(1_000_000).unwrap();

/// `[dns]`.
pub(super) fn dns(findings: &mut Findings, section: Option<Table<'_>>) -> Dns {
    let mut dns = Dns::default();
    let Some(mut section) = section else { return dns };
    let words = [("explain", DeniedName::Explain), ("refuse", DeniedName::Refuse)];
    if let Some(denied) = section.string(findings, "denied") {
        dns.denied = choice(findings, "denied", &denied, &words).unwrap_or(dns.denied);
    }
    section.finish(findings);
    dns
}

/// `[discover]`.
pub(super) fn discover(findings: &mut Findings, section: Option<Table<'_>>) -> Discover {
    let mut discover = Discover::default();
    let Some(mut section) = section else { return discover };
    if let Some(sockets) = section.strings(findings, "engines", None) {
        for socket in &sockets {
            if !socket.value.starts_with('/') {
                let message = format!("`{}` is not the path of a socket", shown(socket.value));
                findings.add(socket.place, message, "write it like \"/run/docker.sock\"");
            }
        }
        discover.engines = sockets.iter().map(|socket| PathBuf::from(socket.value)).collect();
    }
    let words: Vec<_> = Waiver::all().collect();
    for word in section.strings(findings, "permit", None).unwrap_or_default() {
        discover.permit.extend(choice(findings, "permit", &word, &words));
    }
    section.finish(findings);
    discover
}

/// `[upstream]`.
pub(super) fn upstream(
    findings: &mut Findings,
    section: Option<Table<'_>>,
    folder: &Path,
    read_files: bool,
) -> Upstream {
    let mut upstream = Upstream::default();
    let Some(mut section) = section else { return upstream };
    for file in section.strings(findings, "ca_files", None).unwrap_or_default() {
        let path = folder.join(file.value);
        if read_files && let Err(error) = File::open(&path) {
            let message = format!("the roots in {} cannot be read: {error}", path.display());
            findings.add(
                file.place,
                message,
                "make the file readable to the gateway, or remove it from `ca_files`",
            );
        }
        upstream.ca_files.push(path);
    }
    for resolver in section.strings(findings, "resolvers", None).unwrap_or_default() {
        match resolver.value.parse::<SocketAddr>() {
            Ok(address) if address.port() > 0 => upstream.resolvers.push(address),
            Ok(_) | Err(_) => {
                let message = format!(
                    "`{}` is not the address and port of a DNS server",
                    shown(resolver.value)
                );
                findings.add(
                    resolver.place,
                    message,
                    "write it like \"192.0.2.53:53\" or \"[2001:db8::53]:53\"",
                );
            }
        }
    }
    if let Some(hosts) = section.table(findings, "hosts", "[upstream.hosts]") {
        upstream.hosts = fixed_addresses(findings, &hosts);
    }
    section.finish(findings);
    upstream
}

fn fixed_addresses(findings: &mut Findings, hosts: &Table<'_>) -> Vec<(HostName, Vec<IpAddr>)> {
    let mut fixed = Vec::new();
    let mut seen = HashSet::new();
    for (key, value) in hosts.entries() {
        let name = match HostName::parse(key.value) {
            Ok(name) => name,
            Err(error) => {
                findings.add(
                    key.place,
                    error.to_string(),
                    "the keys of [upstream.hosts] are exact host names",
                );
                continue;
            }
        };
        if !seen.insert(name.clone()) {
            let message = format!("`{name}` stands twice in [upstream.hosts]");
            findings.add(key.place, message, "put all its addresses into one list");
        }
        let addresses = addresses(findings, &value);
        fixed.push((name, addresses));
    }
    fixed
}

fn addresses<'d>(findings: &mut Findings, value: &Located<&'d DeValue<'d>>) -> Vec<IpAddr> {
    let DeValue::Array(items) = value.value else {
        wrong_type(findings, value.place, "\"name\"", "a list of addresses", value.value);
        return Vec::new();
    };
    if items.is_empty() {
        findings.add(
            value.place,
            "the list of addresses is empty",
            "write like [\"10.0.0.7\"], or remove the name",
        );
    }
    let mut addresses = Vec::new();
    for item in items {
        let place =
            super::diagnostic::Place { document: value.place.document, offset: item.span().start };
        let item = Located { value: item.get_ref(), place };
        let Some(text) = as_string(findings, "\"name\"", &item) else { continue };
        match text.value.parse() {
            Ok(address) => addresses.push(address),
            Err(_not_an_address) => {
                let message = format!("`{}` is not an IP address", shown(text.value));
                findings.add(place, message, "write addresses like \"10.0.0.7\" or \"fd00::7\"");
            }
        }
    }
    addresses
}

/// A path; a relative one begins in the folder of the file that names it.
pub(super) fn file_path(
    findings: &mut Findings,
    table: &mut Table<'_>,
    key: &'static str,
    folder: &Path,
) -> Option<PathBuf> {
    let path = table.string(findings, key)?;
    if path.value.is_empty() || path.value.contains('\0') {
        findings.add(path.place, format!("`{key}` is not a path"), "write an absolute path");
        return None;
    }
    Some(folder.join(path.value))
}

/// One of a few words.
pub(super) fn choice<T: Copy>(
    findings: &mut Findings,
    key: &str,
    text: &Located<&str>,
    words: &[(&'static str, T)],
) -> Option<T> {
    let found = words.iter().find(|(word, _meaning)| *word == text.value);
    if found.is_none() {
        let list: Vec<_> = words.iter().map(|(word, _meaning)| format!("\"{word}\"")).collect();
        let message = format!("`{key}` cannot be \"{}\"", shown(text.value));
        let help = match nearest(text.value, words.iter().map(|(word, _meaning)| *word)) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("write one of {}", list.join(", ")),
        };
        findings.add(text.place, message, help);
    }
    found.map(|(_word, meaning)| *meaning)
}

/// Never the gateway's own: inside a workload it is the resolver's.
const DNS_PORT: u16 = 53;
