//! The demonstration's machine and its internet: two network namespaces and the wire between them.
//!
//! The process is already in a network namespace of its own; that one plays the machine Tollgate runs on. There
//! is no other interface and no default route, so nothing can leave the real machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::internet::{Access, Internet};
use super::secrets::Secrets;
use crate::run;

/// The name of the namespace that plays the internet.
const INTERNET: &str = "internet";

/// Where agents try to get to past the gateway. Exactly what arrives here is counted.
pub(crate) const FORBIDDEN_V4: &str = "203.0.113.99";
/// The same in IPv6.
pub(crate) const FORBIDDEN_V6: &str = "2001:db8::99";

/// Counts what arrives over the wire, by kind. `dns` counts queries to any server.
const COUNTERS: &str = "
table inet count {
    counter tcp4 {}
    counter udp4 {}
    counter icmp4 {}
    counter other4 {}
    counter tcp6 {}
    counter udp6 {}
    counter icmp6 {}
    counter dns {}
    chain arriving {
        type filter hook prerouting priority -300;
        iifname lo accept
        udp dport 53 counter name dns
        tcp dport 53 counter name dns
        ip daddr 203.0.113.99 meta l4proto tcp counter name tcp4
        ip daddr 203.0.113.99 meta l4proto udp counter name udp4
        ip daddr 203.0.113.99 meta l4proto icmp counter name icmp4
        ip daddr 203.0.113.99 meta l4proto != { tcp, udp, icmp } counter name other4
        ip6 daddr 2001:db8::99 meta l4proto tcp counter name tcp6
        ip6 daddr 2001:db8::99 meta l4proto udp counter name udp6
        ip6 daddr 2001:db8::99 icmpv6 type echo-request counter name icmp6
    }
}
";

/// The two namespaces, with servers running.
pub(crate) struct World {
    internet: Internet,
}

impl World {
    /// Builds it all and waits until the servers answer.
    pub(crate) fn new(folder: &Path, secrets: &Secrets) -> Result<Self> {
        refuse_a_way_out()?;
        // Names of namespaces are mounts; here they are mounts of this world alone.
        fs::create_dir_all("/run/netns")?;
        run::output(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run/netns"]))?;
        for line in [
            "link set lo up",
            "netns add internet",
            "link add wan type veth peer name wan netns internet",
            "address add 203.0.113.1/24 dev wan",
            "address add 2001:db8::1/64 dev wan nodad",
            "link set wan up",
            "-n internet link set lo up",
            "-n internet link set wan up",
            "-n internet address add 203.0.113.99/24 dev wan",
            "-n internet address add 2001:db8::99/64 dev wan nodad",
        ] {
            ip(line)?;
        }
        for (_, address) in super::internet::HOSTS {
            ip(&format!("-n internet address add {address}/24 dev wan"))?;
        }
        feed(&mut inside_internet("nft", &["-f", "-"]), COUNTERS)?;
        let internet = Internet::start(&folder.join("internet"), secrets)?;
        Ok(Self { internet })
    }

    /// How many packets have arrived at the forbidden addresses (and at any DNS server), by kind.
    pub(crate) fn arrived(&self) -> Result<BTreeMap<String, u64>> {
        let text = run::output(&mut inside_internet("nft", &["-j", "list", "counters"]))?;
        let document: serde_json::Value = serde_json::from_str(&text)?;
        let items = document
            .get("nftables")
            .and_then(|items| items.as_array())
            .context("nft printed no list")?;
        let counters = items.iter().filter_map(|item| item.get("counter"));
        let counts: BTreeMap<String, u64> = counters
            .filter_map(|counter| {
                let name = counter.get("name")?.as_str()?.to_owned();
                Some((name, counter.get("packets")?.as_u64()?))
            })
            .collect();
        if counts.is_empty() {
            bail!("nft lists no counters");
        }
        Ok(counts)
    }

    /// What the upstreams' own access log says so far.
    pub(crate) fn accesses(&self) -> Vec<Access> {
        self.internet.accesses()
    }

    /// What it says beyond its first `before` lines.
    pub(crate) fn accesses_after(&self, before: usize) -> Vec<Access> {
        self.accesses().into_iter().skip(before).collect()
    }

    /// The root that signed the upstreams' certificates.
    pub(crate) fn root_certificate(&self) -> &Path {
        self.internet.root_certificate()
    }
}

/// The guard of the first rule: whoever starts the inner process in the machine's own network is stopped here.
fn refuse_a_way_out() -> Result<()> {
    let links = run::output(Command::new("ip").args(["-o", "link"]))?;
    let routes = run::output(Command::new("ip").args(["route", "show", "table", "all"]))?;
    if links.lines().any(|line| !line.contains(": lo:")) || routes.contains("default") {
        bail!(
            "this is not an empty network namespace; start the demonstration with `cargo xtask demo`"
        );
    }
    Ok(())
}

/// One `ip` command, as one would type it.
fn ip(line: &str) -> Result<()> {
    run::output(Command::new("ip").args(line.split_whitespace())).map(drop)
}

/// A command in the namespace that plays the internet.
pub(crate) fn inside_internet(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", INTERNET, program]).args(arguments);
    command
}

/// Runs a command with `text` on its standard input.
pub(crate) fn feed(command: &mut Command, text: &str) -> Result<String> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no standard input")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{}: {}", run::line(command), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits for a condition, and says what did not happen.
pub(crate) fn wait_until(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> bool,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() >= deadline {
            bail!("{what} did not happen in {} s", limit.as_secs());
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    Ok(())
}

/// A server of the demonstration, stopped by its process id when it is no longer needed.
pub(crate) struct Background {
    child: Child,
}

impl Background {
    /// Starts `command`, which must itself end with this process (see [`tied`]).
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let child =
            command.spawn().with_context(|| format!("cannot start {}", run::line(command)))?;
        Ok(Self { child })
    }

    /// The started process, to take its pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended already.
    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id())
            && !self.has_ended()
            && let Err(error) = kill(Pid::from_raw(pid), Signal::SIGKILL)
        {
            eprintln!("warning: process {pid} is left over: {error}");
        }
        if let Err(error) = self.child.wait() {
            eprintln!("warning: {error}");
        }
    }
}

/// Makes a command end when this process does, however that happens.
pub(crate) fn tied(command: &Command) -> Command {
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL"]).arg(command.get_program()).args(command.get_args());
    tied
}
