//! What one decision costs: it is on the way of every request.

use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;

use anyhow::Result;
use criterion::{BenchmarkId, Criterion};

use gateway::agent::AgentName;
use gateway::config::Config;
use gateway::http::{RequestHead, RequestPath};
use gateway::net::{Destination, Host, Scheme};
use gateway::policy::{Verdict, decide};

const RULES: [usize; 3] = [10, 100, 1000];

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("policy/decide");
    let agent = AgentName::parse("bench-agent")?;
    let head = RequestHead {
        method: "GET".to_owned(),
        destination: Destination {
            scheme: Scheme::Https,
            host: Host::parse("last.example")?,
            port: 443,
        },
        path: RequestPath::parse("/repos/example/project/issues?state=open")?,
    };
    for rules in RULES {
        let config = Config::parse(Path::new("bench.toml"), &configuration(rules)?)?;
        // What is measured is the way to a permit by the last rule, not an early refusal.
        anyhow::ensure!(matches!(decide(&config.policy, &agent, &head), Verdict::Allow(_)));
        group.bench_function(BenchmarkId::new("rules", rules), |bencher| {
            bencher.iter(|| decide(black_box(&config.policy), black_box(&agent), black_box(&head)));
        });
    }
    group.finish();
    criterion.final_summary();
    Ok(())
}

/// Rules that nearly match, and one at the end that does.
fn configuration(rules: usize) -> Result<String> {
    let mut text = "[[agent]]\nname = \"bench-agent\"\n".to_owned();
    for number in 1..rules {
        write!(
            text,
            "[[rule]]\nname = \"rule {number}\"\nagents = [\"bench-agent\"]\nhosts = [\"*.host{number}.example\", \"last.example\"]\n\
             methods = [\"GET\"]\npaths = [\"/repos/*/project{number}/*\"]\naction = \"allow\"\n"
        )?;
    }
    text.push_str(
        "[[rule]]\nname = \"last\"\nagents = [\"bench-agent\"]\nhosts = [\"last.example\"]\nmethods = [\"GET\"]\n\
         paths = [\"/repos/*\"]\naction = \"allow\"\n",
    );
    Ok(text)
}
