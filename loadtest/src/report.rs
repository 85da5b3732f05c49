//! How results are told: a line that moves while it works, tables for people, JSON for programs.

use std::cell::Cell;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde_json::Value;

use crate::histogram::Percentiles;

/// How much is told, and where.
#[derive(Clone, Debug, Default, Args)]
pub struct Output {
    /// Write the results as JSON here; - is stdout, without the tables
    #[arg(long, value_name = "FILE|-")]
    pub json: Option<PathBuf>,
    /// Show a progress line on stderr even if that is no terminal
    #[arg(long)]
    pub progress: bool,
}

impl Output {
    pub fn line(&self, what: &str) -> Line {
        let is_terminal = stderr().is_terminal();
        Line {
            is_shown: is_terminal || self.progress,
            is_terminal,
            what: what.to_owned(),
            start: Instant::now(),
            is_dirty: Cell::new(false),
            shown_at: Cell::new(None),
        }
    }

    /// Tells a result: the tables unless stdout is for JSON, and the JSON if somebody wants it.
    pub fn tell(&self, tables: &[Table], result: &Value) -> anyhow::Result<()> {
        let is_on_stdout = self.json.as_deref() == Some(Path::new("-"));
        if !is_on_stdout {
            tables.iter().for_each(Table::print);
        }
        let Some(path) = &self.json else { return Ok(()) };
        let mut text = serde_json::to_string_pretty(result)?;
        text.push('\n');
        if is_on_stdout {
            return stdout().write_all(text.as_bytes()).context("stdout");
        }
        std::fs::write(path, text).with_context(|| path.display().to_string())
    }
}

/// One line on stderr that says how far it is. On a terminal it is written over.
#[derive(Clone, Debug)]
pub struct Line {
    is_shown: bool,
    is_terminal: bool,
    what: String,
    start: Instant,
    is_dirty: Cell<bool>,
    shown_at: Cell<Option<Instant>>,
}

impl Line {
    pub fn show(&self, text: &str) {
        let is_soon = self.shown_at.get().is_some_and(|at| at.elapsed() < SHOW_EVERY);
        if !self.is_shown || is_soon {
            return;
        }
        self.shown_at.set(Some(Instant::now()));
        let (what, seconds) = (&self.what, self.start.elapsed().as_secs_f64());
        let line = format!("{what} {seconds:6.1} s  {text}");
        // A line that cannot be shown is no reason to stop.
        let _ = if self.is_terminal {
            self.is_dirty.set(true);
            write!(stderr(), "\r\x1b[2K{line}")
        } else {
            writeln!(stderr(), "{line}")
        };
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.is_dirty.get() {
            let _ = write!(stderr(), "\r\x1b[2K");
        }
    }
}

/// A name in the first column, values in the others; the first row may be the head.
#[derive(Clone, Debug, Default)]
pub struct Table {
    title: String,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), rows: Vec::new(), notes: Vec::new() }
    }

    pub fn row<V: Into<String>>(
        &mut self,
        name: impl Into<String>,
        values: impl IntoIterator<Item = V>,
    ) {
        let values = values.into_iter().map(Into::into);
        self.rows.push([name.into()].into_iter().chain(values).collect());
    }

    /// Rows of percentiles, in milliseconds: one column each.
    pub fn percentiles(&mut self, columns: &[(&str, Option<Percentiles>)]) {
        self.row("ms", columns.iter().map(|(name, _)| *name));
        type Of = fn(&Percentiles) -> u64;
        let rows: [(&str, Of); 5] = [
            ("p50", |p| p.p50_us),
            ("p90", |p| p.p90_us),
            ("p99", |p| p.p99_us),
            ("p99.9", |p| p.p999_us),
            ("max", |p| p.max_us),
        ];
        for (name, of) in rows {
            let cell = |percentiles: &Option<Percentiles>| {
                percentiles.map_or("-".to_owned(), |p| format!("{:.2}", of(&p) as f64 / 1e3))
            };
            self.row(name, columns.iter().map(|(_, percentiles)| cell(percentiles)));
        }
    }

    /// A line below the table.
    pub fn note(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }

    pub fn print(&self) {
        println!("{}", self.render());
    }

    fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |at: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(at));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = self.title.clone();
        for row in &self.rows {
            text.push_str("\n ");
            for (at, cell) in row.iter().enumerate() {
                let width = widths[at];
                let cell =
                    if at == 0 { format!(" {cell:width$}") } else { format!("  {cell:>width$}") };
                text.push_str(&cell);
            }
        }
        for note in &self.notes {
            text.push_str("\n  ");
            text.push_str(note);
        }
        text
    }
}

/// A number as people write it; `-` if there is none.
pub fn number(value: Option<f64>, decimals: usize) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else { return "-".to_owned() };
    let text = format!("{value:.decimals$}");
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |rest| ("-", rest));
    let (whole, rest) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let mut out = String::from(sign);
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out + rest
}

const SHOW_EVERY: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_straight_columns() {
        let mut table = Table::new("title");
        table.row("", ["one", "three"]);
        table.row("name", [number(Some(-1234567.25), 1), number(None, 0)]);
        let lines: Vec<String> = table.render().lines().map(str::to_owned).collect();
        assert_eq!(lines, ["title", "                 one  three", "  name  -1,234,567.2      -"]);
    }
}
