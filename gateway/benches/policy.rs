//! What a decision costs, and what a policy does: `cargo xtask bench` runs it, and gathers its numbers.
//!
//! Over 1,000 hosts there are 10, 1,000 and 100,000 rules; every request has the rules of one host to pass. Allocations
//! and memory are those of the whole process, counted by its allocator. One JSON object a line.

#![expect(clippy::print_stdout, reason = "its numbers are what it is for")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use gateway::agent::AgentName;
use gateway::config::Config;
use gateway::http::{RequestHead, RequestPath};
use gateway::net::{Destination, Host, Scheme};
use gateway::policy::{Policy, Verdict, decide, rehearse};

const RULES: [usize; 3] = [10, 1_000, 100_000];
const HOSTS: usize = 1_000;
/// Decisions of one measurement, spread over all hosts.
const DECISIONS: usize = 200_000;

/// What was measured with one number of rules.
#[derive(Serialize)]
struct Measured {
    rules: usize,
    hosts: usize,
    /// A decision, reading the clock twice included.
    p50_ns: u64,
    p99_ns: u64,
    /// The same about hosts that at most a third of the rules are about, by a wildcard.
    wildcard_p99_ns: u64,
    /// The same by a rule with hours in a time zone.
    scheduled_p99_ns: u64,
    /// The same with the question what rules in shadow would do.
    rehearsed_p99_ns: u64,
    /// Reading the clock twice.
    clock_p50_ns: u64,
    /// Of one decision, with its permit.
    allocations: u64,
    /// What the policy holds.
    bytes_per_rule: u64,
    /// Text → policy, with every check: time of the processor, as the machine may have other things to do.
    load_ms: u64,
    text_bytes: usize,
}

fn main() -> Result<()> {
    // `cargo bench` says `--bench`, and other words would have no meaning here.
    for rules in RULES {
        println!("{}", serde_json::to_string(&measure(rules)?)?);
    }
    Ok(())
}

fn measure(rules: usize) -> Result<Measured> {
    let agent = AgentName::parse("bench-agent")?;
    let text = configuration(rules)?;
    let started = processor_time()?;
    let before = BYTES.load(Ordering::Relaxed);
    let config = Config::parse(Path::new("bench.toml"), &text)?;
    let load_ms = u64::try_from((processor_time()? - started).as_millis())?;
    let held = BYTES.load(Ordering::Relaxed).saturating_sub(before);
    let policy = &config.policy;

    let used = rules.min(HOSTS);
    let asked = requests(used, "api.host")?;
    let now = SystemTime::now();
    for head in &asked {
        let verdict = decide(policy, &agent, head, now);
        ensure!(matches!(verdict, Verdict::Allow(_)), "the way to a permit is what is measured");
    }
    let mut plain = durations(policy, &agent, &asked, now, false)?;
    let mut wildcard = durations(policy, &agent, &requests(used, "other.host")?, now, false)?;
    let mut rehearsed = durations(policy, &agent, &asked, now, true)?;
    let mut clock: Vec<_> = (0..DECISIONS).map(|_| Instant::now().elapsed()).collect();
    let scheduled = Config::parse(Path::new("bench.toml"), &scheduled(&text))?;
    let mut scheduled = durations(&scheduled.policy, &agent, &asked, now, false)?;
    Ok(Measured {
        rules,
        hosts: used,
        p50_ns: percentile(&mut plain, 50)?,
        p99_ns: percentile(&mut plain, 99)?,
        wildcard_p99_ns: percentile(&mut wildcard, 99)?,
        scheduled_p99_ns: percentile(&mut scheduled, 99)?,
        rehearsed_p99_ns: percentile(&mut rehearsed, 99)?,
        clock_p50_ns: percentile(&mut clock, 50)?,
        allocations: allocations(policy, &agent, &asked, now),
        bytes_per_rule: held / u64::try_from(rules)?,
        load_ms,
        text_bytes: text.len(),
    })
}

/// What this thread has had of a processor.
fn processor_time() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}

/// How long each decision took, in the order of hosts that no cache foresees.
fn durations(
    policy: &Policy,
    agent: &AgentName,
    heads: &[RequestHead],
    now: SystemTime,
    and_rehearse: bool,
) -> Result<Vec<Duration>> {
    let mut took = Vec::with_capacity(DECISIONS);
    // A full period over the hosts: their number and the step have no common divisor.
    let order = (0..).step_by(617).map(|position| position % heads.len());
    for position in order.take(DECISIONS) {
        let head = heads.get(position).context("no request")?;
        let started = Instant::now();
        let verdict = decide(black_box(policy), black_box(agent), black_box(head), now);
        if and_rehearse {
            black_box(rehearse(black_box(policy), black_box(agent), black_box(head), now));
        }
        drop(black_box(verdict));
        took.push(started.elapsed());
    }
    Ok(took)
}

/// The most allocations that any of the decisions made.
fn allocations(policy: &Policy, agent: &AgentName, heads: &[RequestHead], now: SystemTime) -> u64 {
    let of_one = heads.iter().map(|head| {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        drop(black_box(decide(policy, agent, head, now)));
        ALLOCATIONS.load(Ordering::Relaxed) - before
    });
    of_one.max().unwrap_or(u64::MAX)
}

fn percentile(durations: &mut [Duration], percent: usize) -> Result<u64> {
    durations.sort_unstable();
    let at = durations.len() * percent / 100;
    Ok(u64::try_from(durations.get(at).context("nothing was measured")?.as_nanos())?)
}

/// A request to each host, with a path that the last rule of the host is about.
fn requests(hosts: usize, prefix: &str) -> Result<Vec<RequestHead>> {
    let request = |number| -> Result<RequestHead> {
        let host = Host::parse(&format!("{prefix}{number}.example"))?;
        Ok(RequestHead {
            method: "GET".to_owned(),
            destination: Destination { scheme: Scheme::Https, host, port: 443 },
            path: RequestPath::parse("/repos/example/last/issues?state=open")?,
        })
    };
    (0..hosts).map(request).collect()
}

/// Rules for each host in turn: the last one of a host allows what is asked, a few of the others block something else,
/// and the rest allow something else.
fn configuration(rules: usize) -> Result<String> {
    let mut text = "[[agent]]\nname = \"bench-agent\"\n".to_owned();
    let hosts = rules.min(HOSTS);
    for number in 0..rules {
        let host = number % hosts;
        let (path, action) = if number + hosts >= rules {
            ("last".to_owned(), "allow")
        } else {
            (format!("project{number}"), if number % 7 == 0 { "block" } else { "allow" })
        };
        let pattern = if number % 3 == 0 { "*.host" } else { "api.host" };
        let pattern = if pattern == "*.host" {
            format!("\"*.host{host}.example\", \"api.host{host}.example\"")
        } else {
            format!("\"api.host{host}.example\"")
        };
        write!(
            text,
            "[[rule]]\nname = \"rule {number}\"\nagents = [\"bench-agent\"]\nhosts = [{pattern}]\n\
             methods = [\"GET\", \"POST\"]\npaths = [\"/repos/*/{path}/*\"]\naction = \"{action}\"\n"
        )?;
    }
    Ok(text)
}

/// The same rules, each with hours that hold.
fn scheduled(text: &str) -> String {
    let keys =
        "hours = [\"00:00-12:00\", \"12:00-24:00\"]\ntime_zone = \"America/New_York\"\n[[rule]]\n";
    let (agents, rules) = text.split_once("[[rule]]\n").unwrap_or((text, ""));
    let tail = keys.trim_end_matches("[[rule]]\n");
    format!("{agents}[[rule]]\n{}{tail}", rules.replace("[[rule]]\n", keys))
}

/// The system's allocator, counted.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[expect(unsafe_code, reason = "only an allocator sees every allocation")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}
