//! `staithe describe`: one object as a person reads it, and what happened to it.

use anyhow::{Result, bail};
use api::Value;

use crate::cli::Describe;
use crate::context::{Ctx, query, row, several};
use crate::output;

pub async fn run(args: &Describe) -> Result<()> {
    let ctx = Ctx::connect(&args.target)?;
    let wanted = several(&args.what)?;
    let [what] = wanted.as_slice() else { bail!("describe takes one object") };
    let object = ctx.read(what).await?;
    let mut out = String::new();
    let meta = &object["metadata"];
    for (title, value) in [("Name", &meta["name"]), ("Namespace", &meta["namespace"]), ("Kind", &object["kind"])] {
        if let Some(text) = value.as_str() {
            out += &format!("{:<14}{text}\n", format!("{title}:"));
        }
    }
    for (title, value) in [("Labels", &meta["labels"]), ("Annotations", &meta["annotations"])] {
        let pairs: Vec<String> = value.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", short(v))).collect();
        out += &format!("{:<14}{}\n", format!("{title}:"), if pairs.is_empty() { "<none>".into() } else { pairs.join("\n              ") });
    }
    out += &format!("{:<14}{}\n", "Created:", meta["creationTimestamp"].as_str().unwrap_or("<unknown>"));
    for owner in meta["ownerReferences"].as_array().into_iter().flatten() {
        out += &format!("{:<14}{}/{}\n", "Owned by:", short(&owner["kind"]), short(&owner["name"]));
    }
    let secret = object["kind"] == "Secret";
    for (key, value) in object.as_object().into_iter().flatten() {
        if matches!(key.as_str(), "metadata" | "kind" | "apiVersion") {
            continue;
        }
        out += &format!("{}:\n", title(key));
        if secret && matches!(key.as_str(), "data" | "stringData") {
            for (name, content) in value.as_object().into_iter().flatten() {
                // Base64 of n bytes: the size is told, the content is not.
                out += &format!("  {name}: {} bytes\n", content.as_str().map_or(0, |s| s.trim_end_matches('=').len() * 3 / 4));
            }
        } else {
            tree(value, 2, &mut out);
        }
    }
    let selector = format!("involvedObject.name={},involvedObject.kind={}", what.name, what.row.kind);
    let events = ctx.client.get_path(&(ctx.path(row("events")?, "") + &query(&[("fieldSelector", &selector)]))).await?;
    let rows = super::events::rows(&events, false);
    out += "Events:\n";
    match rows.is_empty() {
        true => out += "  <none>\n",
        false => {
            let header: Vec<String> = super::events::HEADER.map(String::from).into();
            for line in output::columns(Some(&header), &rows).lines() {
                out += &format!("  {line}\n");
            }
        }
    }
    output::print(&out);
    Ok(())
}

fn short(value: &Value) -> String {
    match value {
        Value::String(s) => s.lines().next().unwrap_or_default().chars().take(200).collect(),
        other => other.to_string(),
    }
}

/// `creationTimestamp` as `Creation Timestamp`.
fn title(key: &str) -> String {
    let mut out = String::new();
    for (i, c) in key.chars().enumerate() {
        match (i, c) {
            (0, c) => out.extend(c.to_uppercase()),
            (_, c) if c.is_uppercase() => out.extend([' ', c]),
            (_, c) => out.push(c),
        }
    }
    out
}

fn tree(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                match value {
                    Value::Object(m) if !m.is_empty() => {
                        *out += &format!("{pad}{key}:\n");
                        tree(value, indent + 2, out);
                    }
                    Value::Array(a) if !a.is_empty() => {
                        *out += &format!("{pad}{key}:\n");
                        tree(value, indent + 2, out);
                    }
                    leaf => *out += &format!("{pad}{key}: {}\n", short(leaf)),
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                let mut inner = String::new();
                tree(item, indent + 2, &mut inner);
                // The first line of an item carries its dash.
                *out += &format!("{pad}- {}", inner.trim_start());
            }
        }
        leaf => *out += &format!("{pad}{}\n", short(leaf)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_become_an_indented_tree() {
        let mut out = String::new();
        tree(&serde_json::json!({ "a": 1, "list": [{ "x": "y", "z": [1, 2] }], "empty": {} }), 2, &mut out);
        assert_eq!(out, "  a: 1\n  empty: {}\n  list:\n    - x: y\n      z:\n        - 1\n        - 2\n");
        assert_eq!(title("podSelector"), "Pod Selector");
    }
}
