//! What is installed in a container → which of its clients trust the CA, and why the others do not.
//!
//! Nothing of the container is executed: what a client does follows from the stores that it reads.

use std::path::Path;

use nix::unistd::Pid;
use serde::Serialize;

use super::bundle::{Anchors, SYSTEM_BUNDLE_PATHS};
use super::container::{self, Inspection, InstallError, StoreKind, StoreReport};
use super::environment::{NODE_FILE, NODE_OPTIONS, NODE_SYSTEM, NPM_FILE, names_of_files};

/// One client, or one library that clients share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Client {
    /// What people call it.
    pub name: String,
    /// The program, or the store that the library reads.
    pub path: String,
    /// Why it does not trust the CA; absent where it does.
    pub problem: Option<String>,
}

/// Looks at the container of process `pid`.
///
/// # Errors
/// When its mounts cannot be entered.
pub fn check(pid: Pid, anchors: &Anchors) -> Result<Vec<Client>, InstallError> {
    let names: Vec<&'static str> = PROGRAMS.iter().map(|(name, _)| *name).collect();
    Ok(clients(&container::inspect(pid, anchors, &names)?))
}

fn clients(seen: &Inspection) -> Vec<Client> {
    let mut clients = Vec::new();
    let system = system_problem(&seen.stores);
    for path in &seen.programs {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let reads = PROGRAMS.iter().find(|(other, _)| *other == name).map(|(_, reads)| *reads);
        let problem = match reads {
            Some(Reads::System) | None => system.clone(),
            Some(Reads::Node) => node_problem(seen, system.as_ref()),
            Some(Reads::Npm) if is_set(seen, NPM_FILE) => None,
            Some(Reads::Npm) => node_problem(seen, system.as_ref())
                .map(|problem| format!("{problem}; or name the system's bundle as its `cafile`")),
            Some(Reads::File(variable)) => own_problem(seen, variable),
            Some(Reads::Java) if seen.stores.iter().any(|store| store.kind == StoreKind::Java) => {
                // Each store has a line of its own.
                continue;
            }
            Some(Reads::Java) => Some("its trust store was not found".to_owned()),
            Some(Reads::Own(remedy)) => Some(remedy.to_owned()),
        };
        clients.push(Client { name: name.to_owned(), path: path.display().to_string(), problem });
    }
    clients.push(Client {
        name: "programs with the system's roots (Go, Rust, .NET)".to_owned(),
        path: system_path(&seen.stores),
        problem: system,
    });
    for store in &seen.stores {
        if let Some(name) = library(store) {
            let path = store.path.display().to_string();
            clients.push(Client { name, path, problem: store.problem.clone() });
        }
    }
    clients.extend(variables(seen));
    clients
}

/// What keeps a client from trusting the CA that reads what the distribution gives it.
fn system_problem(stores: &[StoreReport]) -> Option<String> {
    let mut bundles = stores.iter().filter(|store| is_system(store)).peekable();
    if bundles.peek().is_none() {
        return Some("the container has no bundle of roots".to_owned());
    }
    bundles.find_map(|store| {
        let problem = store.problem.as_ref()?;
        Some(format!("{}: {problem}", store.path.display()))
    })
}

fn system_path(stores: &[StoreReport]) -> String {
    let bundle = stores.iter().find(|store| is_system(store));
    bundle.map_or_else(String::new, |store| store.path.display().to_string())
}

/// The system's bundles, and the directories that OpenSSL reads instead of one.
fn is_system(store: &StoreReport) -> bool {
    let is_known = SYSTEM_BUNDLE_PATHS.iter().any(|path| store.path == Path::new(path));
    match store.kind {
        StoreKind::Bundle => is_known || store.path.starts_with("/etc"),
        StoreKind::Directory => true,
        StoreKind::Java | StoreKind::Anchors => false,
    }
}

fn library(store: &StoreReport) -> Option<String> {
    let has = |part: &str| store.path.iter().any(|other| other == part);
    match store.kind {
        StoreKind::Java => Some("java".to_owned()),
        StoreKind::Bundle if has("pip") => Some("pip".to_owned()),
        StoreKind::Bundle if has("certifi") => Some("requests, httpx (certifi)".to_owned()),
        StoreKind::Bundle if has("site-packages") || has("dist-packages") => {
            let inside = store
                .path
                .iter()
                .skip_while(|part| *part != "site-packages" && *part != "dist-packages");
            Some(inside.take(2).last()?.to_str()?.to_owned())
        }
        StoreKind::Bundle | StoreKind::Directory | StoreKind::Anchors => None,
    }
}

/// Node.js has roots compiled in. What else it reads is settled when it is built or when it starts, so that nothing in a
/// container that runs can change it.
fn node_problem(seen: &Inspection, system: Option<&String>) -> Option<String> {
    let value = |name: &str| {
        let found = seen.environment.iter().find(|(other, _)| other == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    let is_told = NODE_OPTIONS.iter().any(|option| value("NODE_OPTIONS").contains(option))
        || (seen.node.knows_variable && value(NODE_SYSTEM.0) == NODE_SYSTEM.1);
    if is_told || seen.node.reads_system {
        return system.cloned();
    }
    (!is_set(seen, NODE_FILE)).then(|| OWN_ROOTS_OF_NODE.to_owned())
}

const OWN_ROOTS_OF_NODE: &str = "its roots are compiled in, and others are read only when it starts: create the container with what `tollgate docker-args` prints or with the tollgate runtime, which set NODE_EXTRA_CA_CERTS, or start it with --use-openssl-ca";

fn own_problem(seen: &Inspection, variable: &str) -> Option<String> {
    (!is_set(seen, variable)).then(|| {
        format!(
            "its roots are compiled in, and others are read only when it starts: create the container with what `tollgate docker-args` prints or with the tollgate runtime, which set {variable}"
        )
    })
}

fn is_set(seen: &Inspection, variable: &str) -> bool {
    seen.environment.iter().any(|(name, value)| name == variable && !value.is_empty())
}

/// The variables of the first process that lead clients to a file without the CA.
fn variables(seen: &Inspection) -> Vec<Client> {
    let names = names_of_files();
    let is_one = |(name, value): &&(String, String)| {
        let is_covered = seen
            .stores
            .iter()
            .any(|store| store.problem.is_none() && store.path == Path::new(value));
        names.contains(&name.as_str()) && !is_covered
    };
    let client = |(name, value): &(String, String)| Client {
        name: format!("programs that read {name}"),
        path: value.clone(),
        problem: Some("the variable leads to a file in which the CA was not found".to_owned()),
    };
    seen.environment.iter().filter(is_one).map(client).collect()
}

/// Where a program has its roots from.
#[derive(Clone, Copy)]
enum Reads {
    /// The distribution's bundle or directory.
    System,
    Node,
    /// Node.js's, or the file that its configuration names.
    Npm,
    Java,
    /// Roots of its own, and the file that a variable names.
    File(&'static str),
    /// A place that cannot be reached from outside; with what to do.
    Own(&'static str),
}

const BROWSER: &str = "it has a database of its own: import the CA with certutil, for its user";

const PROGRAMS: &[(&str, Reads)] = &[
    ("curl", Reads::System),
    ("wget", Reads::System),
    ("git", Reads::System),
    ("openssl", Reads::System),
    ("python3", Reads::System),
    ("ruby", Reads::System),
    ("php", Reads::System),
    ("perl", Reads::System),
    ("cargo", Reads::System),
    ("go", Reads::System),
    ("dotnet", Reads::System),
    ("gnutls-cli", Reads::System),
    ("node", Reads::Node),
    ("npm", Reads::Npm),
    ("yarn", Reads::Node),
    ("pnpm", Reads::Node),
    ("bun", Reads::File("NODE_EXTRA_CA_CERTS")),
    ("deno", Reads::File("DENO_CERT")),
    ("uv", Reads::File("SSL_CERT_FILE")),
    ("java", Reads::Java),
    ("chromium", Reads::Own(BROWSER)),
    ("firefox", Reads::Own(BROWSER)),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::container::NodeBuild;

    fn store(path: &str, kind: StoreKind, problem: Option<&str>) -> StoreReport {
        StoreReport { path: path.into(), kind, problem: problem.map(str::to_owned) }
    }

    fn inspection(stores: Vec<StoreReport>, environment: &[(&str, &str)]) -> Inspection {
        let programs = ["/usr/bin/curl", "/usr/bin/node", "/usr/bin/java"];
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Inspection {
            stores,
            programs: programs.map(Into::into).to_vec(),
            node: NodeBuild::default(),
            environment: environment.iter().map(pair).collect(),
        }
    }

    fn failing(seen: &Inspection) -> Vec<String> {
        let clients = clients(seen).into_iter();
        clients.filter(|client| client.problem.is_some()).map(|client| client.name).collect()
    }

    #[test]
    fn what_a_client_does_follows_from_the_store_that_it_reads() {
        let certifi = "/usr/lib/python3/dist-packages/certifi/cacert.pem";
        let bundle = store("/etc/ssl/certs/ca-certificates.crt", StoreKind::Bundle, None);
        let java = store("/opt/java/lib/security/cacerts", StoreKind::Java, Some("not in it"));
        let python = store(certifi, StoreKind::Bundle, Some("not in it"));
        let seen = inspection(vec![bundle, java, python], &[]);
        assert_eq!(failing(&seen), ["node", "java", "requests, httpx (certifi)"]);
    }

    #[test]
    fn without_a_bundle_everything_fails() {
        let seen = inspection(vec![], &[]);
        assert_eq!(failing(&seen).len(), 4);
    }

    #[test]
    fn node_trusts_the_system_where_it_was_built_to_and_else_where_it_knows_the_variable() {
        let builds = [(false, false), (true, false), (false, true)];
        let fails = builds.map(|(reads_system, knows_variable)| {
            let bundle = store("/etc/ssl/cert.pem", StoreKind::Bundle, None);
            let mut seen = inspection(vec![bundle], &[("NODE_USE_SYSTEM_CA", "1")]);
            seen.node = NodeBuild { reads_system, knows_variable };
            failing(&seen).iter().any(|name| name == "node")
        });
        assert_eq!(fails, [true, false, false]);
    }

    #[test]
    fn node_trusts_what_its_variables_name() {
        for (name, value) in [(NODE_FILE, "/b"), ("NODE_OPTIONS", "-r x --use-openssl-ca")] {
            let bundle = store("/etc/ssl/cert.pem", StoreKind::Bundle, None);
            let named = store("/b", StoreKind::Bundle, None);
            let seen = inspection(vec![bundle, named], &[(name, value)]);
            assert_eq!(failing(&seen), ["java"], "{name}");
        }
        let lost = inspection(vec![], &[(NODE_FILE, "/nowhere")]);
        assert!(failing(&lost).iter().any(|name| name.contains(NODE_FILE)));
    }
}
