//! Manifests from files, directories and standard input: YAML documents or JSON, lists opened up.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use api::Value;

/// Objects in the order written; of a directory, its `.yaml`, `.yml` and `.json` files by name.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("read standard input")?;
            parse(&text, Path::new("standard input"), &mut objects)?;
        } else if path.is_dir() {
            let mut files: Vec<PathBuf> = std::fs::read_dir(path)
                .with_context(|| format!("read {}", path.display()))?
                .filter_map(|e| Some(e.ok()?.path()))
                .filter(|p| matches!(p.extension().and_then(|e| e.to_str()), Some("yaml" | "yml" | "json")))
                .collect();
            files.sort();
            if files.is_empty() {
                bail!("{} holds no .yaml, .yml or .json file", path.display());
            }
            for file in files {
                parse_file(&file, &mut objects)?;
            }
        } else {
            parse_file(path, &mut objects)?;
        }
    }
    Ok(objects)
}

fn parse_file(path: &Path, objects: &mut Vec<Value>) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    parse(&text, path, objects)
}

fn parse(text: &str, path: &Path, objects: &mut Vec<Value>) -> Result<()> {
    for document in split(text) {
        let value = api::decode::decode("application/yaml", document.as_bytes());
        let value = value.map_err(|e| anyhow::anyhow!("{}: {}", path.display(), e.message))?;
        if let Some(field) = value.duplicates.first() {
            bail!("{}: {field} is given twice", path.display());
        }
        flatten(value.object, path, objects)?;
    }
    Ok(())
}

fn flatten(value: Value, path: &Path, objects: &mut Vec<Value>) -> Result<()> {
    if value.is_null() {
        return Ok(());
    }
    for field in ["apiVersion", "kind"] {
        if value[field].as_str().is_none_or(str::is_empty) {
            bail!("{}: an object has no {field}", path.display());
        }
    }
    match value["items"].as_array() {
        Some(items) if value["kind"].as_str().is_some_and(|k| k.ends_with("List")) => {
            items.iter().try_for_each(|item| flatten(item.clone(), path, objects))
        }
        _ => {
            objects.push(value);
            Ok(())
        }
    }
}

/// Documents between lines that are `---`; a block that holds only comments is none.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            documents.push(String::new());
        } else if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    let empty = |d: &str| d.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'));
    documents.retain(|d| !empty(d));
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_lists_and_mistakes() {
        let mut objects = Vec::new();
        let text = "# head\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret}\n";
        parse(text, Path::new("x"), &mut objects).unwrap();
        let kinds: Vec<&str> = objects.iter().map(|o| o["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["ConfigMap", "Secret"]);
        let err = parse("kind: Pod\n", Path::new("pod.yaml"), &mut objects).unwrap_err().to_string();
        assert_eq!(err, "pod.yaml: an object has no apiVersion");
    }
}
