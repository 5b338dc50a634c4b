//! `cargo xtask bench`: what the gateway costs, always side by side with the same thing without it.
//!
//! Numbers of different machines cannot be compared, ratios can. Rounds with and without the gateway alternate, so
//! that a machine that is busy for a while is busy for both; the median counts.

mod containers;
mod crowd;
mod engine;
mod policy;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use crate::demo::agent::{Proxy, Tollgate, neutral_environment};
use crate::demo::internet::{BENCH_ADDRESS, BENCH_NAME};
use crate::demo::secrets::Secrets;
use crate::demo::world::World;
use crate::setup::{self, Group};
use crate::{build, demo, run};

/// What `cargo xtask bench` is asked for.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The result as JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Rounds of each measurement.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    rounds: u32,
    /// Seconds of each round.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Only what has this in its name; `policy` is what a decision costs.
    #[arg(long, default_value = "")]
    only: String,
    /// Measure the build without optimisation: only to try the harness.
    #[arg(long)]
    debug: bool,
    /// Inside the namespaces: the folder, the gateway and the load client. Set by the outer process.
    #[arg(long, hide = true, num_args = 3)]
    inside: Vec<PathBuf>,
}

const RULES: &str = r#"[[agent]]
name = "bench-agent"

[[rule]]
name = "measure"
agents = ["bench-agent"]
hosts = ["bench.example"]
methods = ["GET"]
action = "allow"
"#;

/// One line of the result.
#[derive(Serialize)]
struct Line {
    what: &'static str,
    unit: &'static str,
    direct: f64,
    governed: f64,
    /// governed / direct.
    ratio: f64,
    rounds: u32,
}

/// One that there is nothing to compare with: good for the machine that it was measured on alone.
#[derive(Serialize)]
struct Figure {
    what: &'static str,
    unit: &'static str,
    value: f64,
    rounds: u32,
}

/// What is measured, with the load client's words for it.
struct Measurement {
    what: &'static str,
    unit: &'static str,
    direct: &'static str,
    governed: &'static str,
    percentile: &'static str,
}

impl Measurement {
    /// The same with and without the gateway.
    const fn same(what: &'static str, unit: &'static str, word: &'static str) -> Self {
        Self { what, unit, direct: word, governed: word, percentile: "50" }
    }

    const fn p99(self) -> Self {
        Self { percentile: "99", ..self }
    }

    /// A connection that is redirected ends on loopback: so does the one that it is compared with.
    const fn redirected(what: &'static str) -> Self {
        let loopback = Self::same(what, "ns", "loopback");
        Self { governed: "connect", ..loopback }
    }
}

const MEASUREMENTS: &[Measurement] = &[
    Measurement::same("1 KiB over kept HTTPS connections", "requests/s", "requests"),
    Measurement::same("new TLS connections, one request each", "connections/s", "handshakes"),
    Measurement::same("connect() to the outside", "ns", "connect"),
    Measurement::redirected("redirected connect(), to a bare one, p50"),
    Measurement::redirected("redirected connect(), to a bare one, p99").p99(),
    Measurement::same("connect() to the own loopback, p50", "ns", "loopback"),
    Measurement::same("connect() to the own loopback, p99", "ns", "loopback").p99(),
    Measurement::same("datagrams of 64 bytes on the own loopback", "packets/s", "packets"),
    Measurement::same("one TCP flow on the own loopback", "bytes/s", "bytes"),
];

/// The verb.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match arguments.inside.as_slice() {
        [folder, binary, load] => measure(folder, binary, load, arguments),
        _ => outer(arguments),
    }
}

fn outer(arguments: &Arguments) -> Result<()> {
    if arguments.only == policy::NAME {
        return policy::measure(arguments.json, arguments.debug);
    }
    setup::ensure(&[Group::Extras])?;
    let binary = build::binary(!arguments.debug)?;
    let load = load_client(arguments.debug)?;
    let folder = demo::Folder::new()?;
    let mut inner = demo::in_empty_world()?;
    inner.args([
        "bench",
        "--rounds",
        &arguments.rounds.to_string(),
        "--seconds",
        &arguments.seconds.to_string(),
        "--only",
        &arguments.only,
    ]);
    inner.args(arguments.json.then_some("--json"));
    inner.arg("--inside").arg(folder.path()).arg(binary).arg(load);
    demo::wait_for_inner(&mut inner)?;
    if !arguments.only.is_empty() {
        return Ok(());
    }
    // One JSON document is what was asked for; the other one has its own word.
    if arguments.json { Ok(()) } else { policy::measure(false, arguments.debug) }
}

/// Builds the load client and asks cargo where it is.
fn load_client(debug: bool) -> Result<PathBuf> {
    let mut cargo = run::cargo(["bench", "--no-run", "--package", "gateway", "--bench", "load"]);
    cargo.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    if debug {
        cargo.args(["--profile", "dev"]);
    }
    run::announce("building the load client");
    let messages = run::output(&mut cargo)?;
    let executable = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_ours = message.get("target")?.get("name")?.as_str()? == "load";
        let path = message.get("executable")?.as_str()?;
        is_ours.then(|| PathBuf::from(path))
    });
    executable.context("cargo did not say where the load client is")
}

fn measure(folder: &Path, binary: &Path, load: &Path, arguments: &Arguments) -> Result<()> {
    demo::heed_signals()?;
    let secrets = Secrets::new(&folder.join("secrets"))?;
    let world = World::new(folder, &secrets)?;
    let tollgate =
        Tollgate::new(folder, binary, &world, &Secrets::none(), RULES)?.without_rate()?;
    let bench = Bench { world: &world, tollgate: &tollgate, load, seconds: arguments.seconds };
    let mut lines = Vec::new();
    let is_asked_for = |what: &str| what.contains(&arguments.only);
    let asked_for = MEASUREMENTS.iter().filter(|measurement| is_asked_for(measurement.what));
    for Measurement { what, unit, direct, governed, percentile } in asked_for {
        let (without, with) = (direct, governed);
        run::announce(&format!("{what}, {} rounds", arguments.rounds));
        let (mut direct, mut governed) = (Vec::new(), Vec::new());
        for _ in 0..arguments.rounds {
            direct.push(bench.direct(without, percentile)?);
            governed.push(bench.governed(with, percentile)?);
        }
        lines.push(Line::new(what, unit, direct, governed)?);
    }
    if is_asked_for(crowd::NAME) {
        crowd::measure(&bench, folder, binary, arguments.rounds, &mut lines)?;
    }
    let mut results = Results { lines, figures: Vec::new() };
    if is_asked_for(containers::NAME) {
        containers::measure(&bench, folder, binary, arguments.rounds, &mut results)?;
    }
    if is_asked_for(engine::NAME) {
        engine::measure(&bench, folder, binary, &mut results)?;
    }
    print(&results.lines, &results.figures, arguments.json)
}

/// One world, one gateway, one load client.
struct Bench<'a> {
    world: &'a World,
    tollgate: &'a Tollgate,
    load: &'a Path,
    seconds: u32,
}

impl Bench<'_> {
    fn direct(&self, what: &str, percentile: &str) -> Result<f64> {
        let mut command = run::command(self.load);
        neutral_environment(&mut command);
        command
            .args(self.arguments(what, percentile))
            .arg("--ca")
            .arg(self.world.root_certificate());
        number(&run::output(&mut command)?)
    }

    fn governed(&self, what: &str, percentile: &str) -> Result<f64> {
        let load = self.load.to_string_lossy();
        let arguments = self.arguments(what, percentile);
        let mut command = vec![load.as_ref()];
        command.extend(arguments.iter().map(String::as_str));
        let output = self.tollgate.run("bench-agent", Proxy::None, &command)?;
        if !output.success {
            bail!("as an agent: {}", output.stderr.trim());
        }
        number(&output.stdout)
    }

    fn arguments(&self, what: &str, percentile: &str) -> Vec<String> {
        let target = format!("{BENCH_ADDRESS}:443");
        let seconds = self.seconds.to_string();
        let target = [what, "--connect", &target, "--name", BENCH_NAME];
        let how = ["--seconds", &seconds, "--percentile", percentile];
        target.into_iter().chain(how).map(str::to_owned).collect()
    }
}

impl Line {
    /// The medians of the rounds, said as soon as they are known.
    fn new(
        what: &'static str,
        unit: &'static str,
        direct: Vec<f64>,
        governed: Vec<f64>,
    ) -> Result<Self> {
        let rounds = u32::try_from(direct.len())?;
        eprintln!("    rounds without {}, with {}", in_order(&direct), in_order(&governed));
        let (direct, governed) = (median(direct)?, median(governed)?);
        let ratio = governed / direct;
        eprintln!("    without {direct:.0} {unit}, with {governed:.0} {unit}, ratio {ratio:.2}");
        Ok(Self { what, unit, direct, governed, ratio, rounds })
    }
}

impl Figure {
    /// The median of the rounds.
    fn new(what: &'static str, unit: &'static str, values: Vec<f64>) -> Result<Self> {
        let rounds = u32::try_from(values.len())?;
        eprintln!("    {what}, rounds {} {unit}", in_order(&values));
        Ok(Self { what, unit, value: median(values)?, rounds })
    }
}

/// All that was measured.
struct Results {
    lines: Vec<Line>,
    figures: Vec<Figure>,
}

/// What is printed: one document.
#[derive(Serialize)]
#[serde(untagged)]
enum Row<'a> {
    Line(&'a Line),
    Figure(&'a Figure),
}

fn number(text: &str) -> Result<f64> {
    let number: f64 = text.trim().parse().with_context(|| format!("not a number: {text:?}"))?;
    ensure!(number > 0.0, "nothing was measured");
    Ok(number)
}

/// All rounds: how far they lie apart says how far the median is to be trusted.
fn in_order(values: &[f64]) -> String {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.iter().map(|value| format!("{value:.0}")).collect::<Vec<_>>().join(" ")
}

fn median(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("no round was measured")
}

fn print(lines: &[Line], figures: &[Figure], json: bool) -> Result<()> {
    if json {
        let lines = lines.iter().map(Row::Line);
        let rows: Vec<Row<'_>> = lines.chain(figures.iter().map(Row::Figure)).collect();
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    println!("{:<64}{:<16}{:>14}{:>14}{:>8}", "what", "unit", "without", "with", "ratio");
    for line in lines {
        println!(
            "{:<64}{:<16}{:>14.0}{:>14.0}{:>8.2}",
            line.what, line.unit, line.direct, line.governed, line.ratio
        );
    }
    for figure in figures {
        println!("{:<64}{:<16}{:>28.0}", figure.what, figure.unit, figure.value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_not_moved_by_one_bad_round() {
        assert!((median(vec![1.0, 900.0, 2.0, 3.0, 2.5]).unwrap() - 2.5).abs() < f64::EPSILON);
        assert!(median(Vec::new()).is_err());
    }

    #[test]
    fn a_measurement_without_a_number_is_an_error() {
        assert!(number("").is_err());
        assert!(number("0.0").is_err());
        assert!(number("12.5\n").is_ok());
    }
}
