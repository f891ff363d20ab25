//! What goes to the terminal: tables, documents, progress. Colours and moving bars only where a person looks.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use api::Value;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::Output;

/// Columns of text, two spaces or more apart, as kubectl prints them.
pub fn columns(header: Option<&[String]>, rows: &[Vec<String>]) -> String {
    let all: Vec<&[String]> = header.into_iter().chain(rows.iter().map(Vec::as_slice)).collect();
    let count = all.iter().map(|r| r.len()).max().unwrap_or(0);
    let width = |i: usize| all.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in all {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            line += cell;
            if i + 1 < row.len() {
                line += &" ".repeat(widths[i] + 3 - cell.chars().count());
            }
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// A `meta.k8s.io/v1 Table` as lines; `prefix` puts the namespace in front.
pub fn table(table: &Value, wide: bool, headers: bool, namespaces: bool) -> String {
    let definitions = table["columnDefinitions"].as_array().cloned().unwrap_or_default();
    let shown: Vec<usize> = (0..definitions.len()).filter(|i| wide || definitions[*i]["priority"] == 0).collect();
    let mut header: Vec<String> = shown.iter().map(|i| cell(&definitions[*i]["name"]).to_uppercase()).collect();
    let mut rows = Vec::new();
    for row in table["rows"].as_array().into_iter().flatten() {
        let mut cells: Vec<String> = shown.iter().map(|i| cell(&row["cells"][*i])).collect();
        if namespaces {
            cells.insert(0, cell(&row["object"]["metadata"]["namespace"]));
        }
        rows.push(cells);
    }
    if namespaces {
        header.insert(0, "NAMESPACE".into());
    }
    columns(headers.then_some(&header), &rows)
}

pub fn yaml(value: &Value) -> Result<String> {
    Ok(serde_saphyr::to_string(value)?)
}

/// One document in the form asked for; `Wide` is the caller's affair.
pub fn document(value: &Value, output: Output) -> Result<String> {
    Ok(match output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(value)?),
        Output::Yaml => yaml(value)?,
        Output::Name | Output::Wide => match api::table::of(value) {
            Some(row) => format!("{}/{}\n", row.qualified(), value["metadata"]["name"].as_str().unwrap_or_default()),
            None => String::new(),
        },
    })
}

/// Prints, and ends quietly when the reader has gone (`staithe get pods | head -1`).
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

pub fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// A line that moves while something takes time; plain lines where nobody watches.
pub struct Spinner {
    bar: ProgressBar,
    plain: bool,
    last: std::sync::Mutex<String>,
}

impl Spinner {
    pub fn start(text: &str) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = if plain { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        bar.set_style(ProgressStyle::with_template("{spinner:.cyan} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.enable_steady_tick(Duration::from_millis(100));
        let spinner = Self { bar, plain, last: std::sync::Mutex::default() };
        spinner.say(text);
        spinner
    }

    pub fn say(&self, text: &str) {
        let mut last = self.last.lock().unwrap_or_else(|e| e.into_inner());
        if *last == text {
            return;
        }
        *last = text.to_string();
        if self.plain { eprintln!("{text}") } else { self.bar.set_message(text.to_string()) }
    }

    pub fn done(self, text: &str) {
        self.bar.finish_and_clear();
        let mark = if colours() { "\x1b[32m✔\x1b[0m" } else { "ok" };
        eprintln!("{mark} {text}");
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_hide_what_only_wide_shows() {
        let t = serde_json::json!({
            "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Age", "priority": 0}, {"name": "Node", "priority": 1}],
            "rows": [
                {"cells": ["web-1", "5m", "n1"], "object": {"metadata": {"namespace": "a"}}},
                {"cells": ["a", null, "n2"], "object": {"metadata": {"namespace": "bcd"}}},
            ],
        });
        assert_eq!(table(&t, false, true, false), "NAME    AGE\nweb-1   5m\na\n");
        assert_eq!(table(&t, true, false, true), "a     web-1   5m   n1\nbcd   a            n2\n");
    }
}
