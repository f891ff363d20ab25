//! Rules that no lint knows: which crate may import which, how long a file may be, where chance may not come in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{output, root};

/// The floors of ARCHITECTURE.md, lowest first. Imports run from a floor to lower ones; siblings never import each other.
const FLOORS: &[&[&str]] = &[
    &["base"],
    &["api"],
    &["plan"],
    &["artifacts", "client", "driver", "ports", "store"],
    &["apiserver", "container", "controllers", "network", "node", "registry", "router"],
    &["staithe"],
];

/// Beside the house: they import nothing of it, and nothing imports them.
const ASIDE: &[&str] = &["shop", "xtask"];

/// Crates that a simulator will run: every choice between ready futures is written down.
const SIMULATED: &[&str] = &["api", "plan", "client", "store", "controllers", "apiserver", "node"];

const LINES_MAX: usize = 800;

/// Files that have earned to be longer, with the reason.
const LONG: &[(&str, &str)] = &[];

pub fn run() -> Result<()> {
    let mut problems = imports()?;
    let sources = sources()?;
    for path in &sources {
        problems.extend(check_file(path)?);
    }
    if problems.is_empty() {
        println!("tidy: {} files, floors hold", sources.len());
        return Ok(());
    }
    for problem in &problems {
        eprintln!("tidy: {problem}");
    }
    bail!("{} problems", problems.len())
}

/// Every import between members of the workspace, from cargo itself.
fn imports() -> Result<Vec<String>> {
    let metadata: Value = serde_json::from_str(&output("cargo", &["metadata", "--no-deps", "--format-version", "1"])?)?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in metadata["packages"].as_array().context("no packages in cargo's metadata")? {
        let local = |d: &&Value| d["path"].is_string();
        let names = package["dependencies"].as_array().into_iter().flatten().filter(local).map(|d| text(&d["name"]));
        graph.insert(text(&package["name"]), names.collect());
    }
    Ok(check_graph(&graph))
}

fn check_graph(graph: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let floor = |name: &str| FLOORS.iter().position(|floor| floor.contains(&name));
    let mut problems = Vec::new();
    for (name, imports) in graph {
        if ASIDE.contains(&name.as_str()) {
            problems.extend(imports.iter().map(|i| format!("{name} stands beside the house and must not import {i}")));
            continue;
        }
        let Some(own) = floor(name) else {
            problems.push(format!("crate {name} has no floor: give it one in xtask/src/tidy.rs and ARCHITECTURE.md"));
            continue;
        };
        for import in imports {
            match floor(import) {
                Some(other) if other < own => {}
                Some(other) if other == own => {
                    problems.push(format!("{name} imports its sibling {import}: they meet only through API objects"))
                }
                _ => problems.push(format!("{name} (floor {own}) imports {import}, which is not below it")),
            }
        }
    }
    problems
}

fn sources() -> Result<Vec<PathBuf>> {
    let listed = output("git", &["ls-files", "-co", "--exclude-standard", "*.rs"])?;
    Ok(listed.lines().map(|l| root().join(l)).filter(|p| p.exists()).collect())
}

fn check_file(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let shown = path.strip_prefix(root()).unwrap_or(path).display().to_string();
    let mut problems = Vec::new();
    let lines = text.lines().count();
    if lines > LINES_MAX && !LONG.iter().any(|(file, _)| *file == shown) {
        problems.push(format!("{shown} has {lines} lines, {LINES_MAX} at most"));
    }
    let simulated = SIMULATED.iter().any(|c| shown.starts_with(&format!("crates/{c}/src/")));
    if simulated {
        problems.extend(
            unbiased(&text).into_iter().map(|line| format!("{shown}:{line}: select! without `biased;` leaves its order to chance")),
        );
    }
    Ok(problems)
}

/// Lines of `select!` whose first word is not `biased;`.
fn unbiased(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().collect();
    let opens = |l: &str| !l.trim_start().starts_with("//") && l.contains("select! {");
    (0..lines.len())
        .filter(|i| opens(lines[*i]))
        .filter(|i| {
            let after = lines[*i].split("select! {").nth(1).unwrap_or_default().trim();
            let next = if after.is_empty() { lines.get(i + 1).map_or("", |l| l.trim()) } else { after };
            !next.starts_with("biased;")
        })
        .map(|i| i + 1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floors_hold() {
        assert_eq!(imports().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_wrong_import_is_named() {
        let graph = |from: &str, to: &str| BTreeMap::from([(from.to_string(), BTreeSet::from([to.to_string()]))]);
        assert!(check_graph(&graph("plan", "api")).is_empty());
        assert!(check_graph(&graph("node", "router"))[0].contains("sibling"));
        assert!(check_graph(&graph("api", "store"))[0].contains("not below"));
        assert!(check_graph(&graph("util", "api"))[0].contains("no floor"));
        assert!(check_graph(&graph("shop", "api"))[0].contains("beside"));
    }

    #[test]
    fn a_choice_left_to_chance_is_named() {
        assert_eq!(unbiased("x\nselect! {\n  biased;\n"), Vec::<usize>::new());
        assert_eq!(unbiased("x\ntokio::select! {\n  a = b => {}\n"), [2]);
    }
}
