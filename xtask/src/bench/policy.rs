//! What one decision costs, by the number of rules: it is on the way of every request. No gateway runs for this.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::run;

/// What it is called for `--only`.
pub(super) const NAME: &str = "policy";

/// A number of the bench, and the words for it.
const COLUMNS: &[(&str, &str)] = &[
    ("rules", "rules"),
    ("p50_ns", "p50 ns"),
    ("p99_ns", "p99 ns"),
    ("wildcard_p99_ns", "wildcard p99"),
    ("scheduled_p99_ns", "hours p99"),
    ("rehearsed_p99_ns", "shadow p99"),
    ("clock_p50_ns", "clock ns"),
    ("allocations", "allocations"),
    ("bytes_per_rule", "bytes/rule"),
    ("load_ms", "load ms"),
];

/// What is promised for the largest number of rules.
const P99_NS_MAX: u64 = 5_000;
const LOAD_MS_MAX: u64 = 2_000;

/// Runs the bench and holds its numbers against what is promised; without optimisation they are only told.
pub(super) fn measure(json: bool, debug: bool) -> Result<()> {
    let mut cargo = run::cargo(["bench", "--package", "gateway", "--bench", "policy"]);
    if debug {
        cargo.args(["--profile", "dev"]);
    }
    run::announce("decisions of the policy");
    let output = run::output(&mut cargo)?;
    let parsed: Result<Vec<Value>, _> = output.lines().map(serde_json::from_str).collect();
    let measured = parsed.with_context(|| format!("the bench said something else: {output}"))?;
    if json {
        println!("{}", serde_json::to_string_pretty(&measured)?);
    } else {
        print_table(&measured)?;
    }
    if debug { Ok(()) } else { hold(&measured) }
}

fn print_table(measured: &[Value]) -> Result<()> {
    let titles: Vec<_> = COLUMNS.iter().map(|(_key, title)| format!("{title:>12}")).collect();
    println!("{}", titles.concat());
    for line in measured {
        let cells = COLUMNS.iter().map(|(key, _title)| Ok(format!("{:>12}", number(line, key)?)));
        println!("{}", cells.collect::<Result<Vec<_>>>()?.concat());
    }
    Ok(())
}

fn hold(measured: &[Value]) -> Result<()> {
    let largest = measured.last().context("nothing was measured")?;
    let (p99, load) = (number(largest, "p99_ns")?, number(largest, "load_ms")?);
    ensure!(p99 < P99_NS_MAX, "99 of 100 decisions take up to {p99} ns, not {P99_NS_MAX}");
    ensure!(load < LOAD_MS_MAX, "the largest policy takes {load} ms to load, not {LOAD_MS_MAX}");
    for line in measured {
        ensure!(number(line, "allocations")? == 0, "a plain permit allocates: {line}");
    }
    Ok(())
}

fn number(line: &Value, key: &str) -> Result<u64> {
    line.get(key).and_then(Value::as_u64).with_context(|| format!("no {key} in {line}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_number_beyond_what_is_promised_is_an_error() {
        let line = |p99: u64, load: u64, allocations: u64| json!({ "p99_ns": p99, "load_ms": load, "allocations": allocations });
        assert!(hold(&[line(4_999, 1_999, 0)]).is_ok());
        assert!(hold(&[line(5_000, 1, 0)]).is_err());
        assert!(hold(&[line(1, 2_000, 0)]).is_err());
        assert!(hold(&[line(1, 1, 1), line(1, 1, 0)]).is_err());
        assert!(hold(&[json!({ "p99_ns": 1 })]).is_err());
        assert!(hold(&[]).is_err());
    }
}
