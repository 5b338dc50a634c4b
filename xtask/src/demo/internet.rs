//! The demonstration's internet: a real nginx with certificates of its own root, and git's own HTTP backend.
//!
//! The access log goes through a pipe, and the configuration is removed once it is read: credentials that the
//! upstreams check and see are on no disk that an agent could read.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::secrets::Secrets;
use super::world::{Background, FORBIDDEN_V4, FORBIDDEN_V6, inside_internet, tied, wait_until};
use crate::run;

/// The upstream of measurements: 1 KiB, no access log.
pub(crate) const BENCH_NAME: &str = "bench.example";
/// Its address.
pub(crate) const BENCH_ADDRESS: &str = "203.0.113.20";

/// The upstreams, by name and address.
pub(crate) const HOSTS: &[(&str, &str)] = &[
    ("gmail.googleapis.com", "203.0.113.10"),
    ("api.github.com", "203.0.113.11"),
    ("github.com", "203.0.113.12"),
    ("slack.com", "203.0.113.13"),
    ("arxiv.org", "203.0.113.14"),
    (BENCH_NAME, BENCH_ADDRESS),
];

/// The address of one of them.
pub(crate) fn address_of(host: &str) -> Result<&'static str> {
    let found = HOSTS.iter().find(|(name, _)| *name == host);
    found.map(|(_, address)| *address).with_context(|| format!("no upstream is called {host}"))
}

/// What the forbidden addresses answer, so that a hole would be seen as such.
pub(crate) const FORBIDDEN_ANSWER: &str = "you are past the gateway";

/// Where the repository is, on github.com.
pub(crate) const REPOSITORY: &str = "/example/project.git";
/// What its one file says.
pub(crate) const REPOSITORY_TEXT: &str = "cloned through the gateway";

const START: Duration = Duration::from_secs(20);

/// One line of the upstreams' access log.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) host: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authorization: String,
}

/// The running servers.
pub(crate) struct Internet {
    log: Arc<Mutex<Vec<Access>>>,
    root: PathBuf,
    _servers: Vec<Background>,
}

impl Internet {
    /// Makes certificates and a repository, starts the servers, waits for them.
    pub(crate) fn start(folder: &Path, secrets: &Secrets) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let root = certificates(folder)?;
        repository(folder)?;
        let socket = folder.join("git.sock");
        let gateway = format!("unix:{}", socket.display());
        let git = inside_internet("fcgiwrap", &["-c", "1", "-s", &gateway]);
        let git = Background::start(tied(&git).stdin(Stdio::null()).stderr(Stdio::null()))?;
        wait_until("git's HTTP backend", START, || socket.exists())?;

        let file = folder.join("nginx.conf");
        fs::write(&file, configuration(folder, secrets)?)?;
        let command =
            inside_internet("nginx", &["-c", &file.display().to_string(), "-e", "stderr"]);
        let mut command = tied(&command);
        let errors = fs::File::create(folder.join("nginx-errors.log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut nginx = Background::start(&mut command)?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let pipe = nginx.child().stdout.take().context("no pipe")?;
        let lines = Arc::clone(&log);
        std::thread::spawn(move || collect(pipe, &lines));
        wait_until("nginx", START, || nginx.has_ended() || answers(FORBIDDEN_V4))?;
        if nginx.has_ended() {
            bail!("nginx ended: {}", fs::read_to_string(folder.join("nginx-errors.log"))?.trim());
        }
        fs::remove_file(file)?;
        Ok(Self { log, root, _servers: vec![git, nginx] })
    }

    /// The access log so far.
    pub(crate) fn accesses(&self) -> Vec<Access> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The root that signed the certificates.
    pub(crate) fn root_certificate(&self) -> &Path {
        &self.root
    }
}

/// Asks from inside the internet, so that nothing is counted as an arrival on the wire.
fn answers(address: &str) -> bool {
    let url = format!("http://{address}/");
    let arguments = ["-s", "-o", "/dev/null", "--noproxy", "*", &url];
    run::output(&mut inside_internet("curl", &arguments)).is_ok()
}

fn collect(pipe: ChildStdout, log: &Mutex<Vec<Access>>) {
    for line in BufReader::new(pipe).lines().map_while(Result::ok) {
        let mut fields = line.split('\t').map(str::to_owned);
        let mut next = || fields.next().unwrap_or_default();
        let access = Access { host: next(), method: next(), path: next(), authorization: next() };
        log.lock().unwrap_or_else(PoisonError::into_inner).push(access);
    }
}

fn certificates(folder: &Path) -> Result<PathBuf> {
    let path = |name: &str| folder.join(name).display().to_string();
    let (root, root_key, leaf, leaf_key) =
        (path("root.pem"), path("root.key"), path("leaf.pem"), path("leaf.key"));
    let request = |name: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ]);
        openssl.args(["-days", "2", "-subj", &format!("/CN={name}")]);
        openssl
    };
    let mut ca = request("the demonstration's root");
    ca.args([
        "-addext",
        "basicConstraints=critical,CA:TRUE",
        "-addext",
        "keyUsage=critical,keyCertSign",
    ]);
    run::output(ca.args(["-keyout", &root_key, "-out", &root]))?;
    let names = HOSTS.iter().map(|(name, _)| format!("DNS:{name}"));
    let addresses = [FORBIDDEN_V4, FORBIDDEN_V6].map(|address| format!("IP:{address}"));
    let names = names.chain(addresses).collect::<Vec<_>>().join(",");
    let mut server = request("the demonstration's servers");
    server.args(["-CA", &root, "-CAkey", &root_key, "-addext", &format!("subjectAltName={names}")]);
    server.args([
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-addext",
        "extendedKeyUsage=serverAuth",
    ]);
    run::output(server.args(["-keyout", &leaf_key, "-out", &leaf]))?;
    Ok(root.into())
}

fn repository(folder: &Path) -> Result<()> {
    let work = folder.join("work");
    fs::create_dir_all(&work)?;
    fs::write(work.join("README"), REPOSITORY_TEXT)?;
    let bare = folder.join("git").join(REPOSITORY.trim_start_matches('/'));
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.current_dir(&work)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1");
        run::output(git.args(arguments)).map(drop)
    };
    git(&["init", "--quiet", "--initial-branch=main"])?;
    git(&["add", "README"])?;
    let author = ["-c", "user.name=demo", "-c", "user.email=demo@example.com"];
    git(&[
        author[0],
        author[1],
        author[2],
        author[3],
        "commit",
        "--quiet",
        "--message",
        "Say hello",
    ])?;
    git(&["clone", "--quiet", "--bare", ".", &bare.display().to_string()])
}

/// Debian's nginx speaks HTTP/2 by the `http2` word on `listen`. One process, so that one signal ends it.
fn configuration(folder: &Path, secrets: &Secrets) -> Result<String> {
    let shown = folder.display();
    let mut text = format!(
        "daemon off; master_process off; pid {shown}/nginx.pid; user root;
error_log stderr warn;
events {{ worker_connections 512; }}
http {{
    log_format story '$host\\t$request_method\\t$request_uri\\t$http_authorization';
    access_log /dev/stdout story;
    default_type application/json; keepalive_requests 1000000;
    ssl_certificate {shown}/leaf.pem; ssl_certificate_key {shown}/leaf.key;
"
    );
    for part in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        text.push_str(&format!("    {part}_temp_path {shown}/{part};\n"));
    }
    for (name, address) in HOSTS {
        let guard = match secrets.header_for(name) {
            Some(value) => format!(
                "if ($http_authorization != '{value}') {{ return 401 '{{\"error\":\"no credential\"}}'; }}"
            ),
            None => String::new(),
        };
        let location = match *name {
            "github.com" => git_location(folder)?,
            BENCH_NAME => {
                format!("access_log off; location / {{ return 200 '{}'; }}", "x".repeat(1024))
            }
            _ => format!("location / {{ return 200 '{{\"from\":\"{name}\"}}'; }}"),
        };
        text.push_str(&format!(
            "    server {{ listen {address}:443 ssl http2; server_name {name}; {guard} {location} }}\n"
        ));
    }
    let everywhere = [FORBIDDEN_V4.to_owned(), format!("[{FORBIDDEN_V6}]")];
    let listen = everywhere
        .map(|address| format!("listen {address}:80; listen {address}:443 ssl;"))
        .join(" ");
    text.push_str(&format!("    server {{ {listen} return 200 '{FORBIDDEN_ANSWER}'; }}\n}}\n"));
    Ok(text)
}

fn git_location(folder: &Path) -> Result<String> {
    let tools = run::output(Command::new("git").arg("--exec-path"))?;
    let backend = Path::new(tools.trim()).join("git-http-backend");
    if !backend.exists() {
        bail!("git has no HTTP backend: {} does not exist", backend.display());
    }
    let shown = folder.display();
    let parameters = [
        ("SCRIPT_FILENAME", backend.display().to_string()),
        ("GIT_PROJECT_ROOT", format!("{shown}/git")),
        ("GIT_HTTP_EXPORT_ALL", "1".to_owned()),
        ("PATH_INFO", "$uri".to_owned()),
        ("QUERY_STRING", "$query_string".to_owned()),
        ("REQUEST_METHOD", "$request_method".to_owned()),
        ("CONTENT_TYPE", "$content_type".to_owned()),
        ("CONTENT_LENGTH", "$content_length".to_owned()),
        ("GIT_PROTOCOL", "$http_git_protocol".to_owned()),
    ];
    let lines = parameters.map(|(name, value)| format!("fastcgi_param {name} {value};")).join(" ");
    Ok(format!("location / {{ {lines} fastcgi_pass unix:{shown}/git.sock; }}"))
}
