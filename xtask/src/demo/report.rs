//! What was tried, what is promised, what was seen.

use anyhow::Result;
use serde::Serialize;

/// One line of the result.
#[derive(Serialize)]
pub(crate) struct Row {
    /// Who tried it.
    pub(crate) who: String,
    /// What was tried, with which client.
    pub(crate) tried: String,
    /// The proxy variables it was tried with.
    pub(crate) proxy: &'static str,
    /// What has to happen.
    pub(crate) promised: String,
    /// What happened.
    pub(crate) seen: String,
    /// Whether that is the same.
    pub(crate) ok: bool,
}

/// Everything that was tried.
#[derive(Default, Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct Document<'a> {
    ok: bool,
    differing: usize,
    rows: &'a [Row],
}

impl Report {
    /// Adds a line, and says so while the story goes on.
    pub(crate) fn add(&mut self, row: Row) {
        let mark = if row.ok { "ok  " } else { "DIFF" };
        eprintln!("    {mark} {}: {} ({}): {}", row.who, row.tried, row.proxy, row.seen);
        self.rows.push(row);
    }

    /// A story that broke off is a difference, not the end: the others are told all the same.
    pub(crate) fn told(&mut self, story: &str, outcome: Result<()>) {
        if let Err(error) = outcome {
            self.add(Row {
                who: "the demonstration".to_owned(),
                tried: format!("tells the story of {story}"),
                proxy: "all",
                promised: "to its end".to_owned(),
                seen: format!("{error:#}").replace('\n', "; "),
                ok: false,
            });
        }
    }

    pub(crate) fn is_as_promised(&self) -> bool {
        !self.rows.is_empty() && self.differing() == 0
    }

    pub(crate) fn differing(&self) -> usize {
        self.rows.iter().filter(|row| !row.ok).count()
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn json(&self) -> Result<String> {
        let document =
            Document { ok: self.is_as_promised(), differing: self.differing(), rows: &self.rows };
        Ok(serde_json::to_string_pretty(&document)?)
    }

    pub(crate) fn table(&self) -> String {
        let head = ["who", "tried", "proxy variables", "promised", "seen", ""].map(str::to_owned);
        let mut lines = vec![head];
        for row in &self.rows {
            let mark = if row.ok { "ok" } else { "DIFFERS" };
            let cells = [&row.who, &row.tried, row.proxy, &row.promised, &row.seen, mark];
            lines.push(cells.map(str::to_owned));
        }
        let mut widths = [0_usize; 6];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for line in &lines {
            let cells = line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text + &format!(
            "\n{} tried, {} as promised, {} differ",
            self.rows(),
            self.rows() - self.differing(),
            self.differing()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ok: bool) -> Row {
        let text = || "x".to_owned();
        Row { who: text(), tried: text(), proxy: "none", promised: text(), seen: text(), ok }
    }

    #[test]
    fn a_report_without_rows_is_not_a_success() {
        assert!(!Report::default().is_as_promised());
    }

    #[test]
    fn one_row_that_differs_fails_the_report() {
        let report = Report { rows: vec![row(true), row(false)] };
        assert!(!report.is_as_promised());
        assert!(report.table().contains("DIFFERS"));
        assert!(Report { rows: vec![row(true)] }.is_as_promised());
    }
}
