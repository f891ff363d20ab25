//! Kernel settings changed for the pod network, remembered so that `down` puts them back.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const FILE: &str = "sysctls.json";

fn proc_path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name.replace('.', "/"))
}

fn file(run_dir: &Path) -> PathBuf {
    run_dir.join("network").join(FILE)
}

fn remembered(run_dir: &Path) -> BTreeMap<String, String> {
    fs::read(file(run_dir)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Sets a sysctl; the first value found is the one remembered.
pub fn set(run_dir: &Path, name: &str, value: &str) -> io::Result<()> {
    let before = fs::read_to_string(proc_path(name))?;
    let before = before.trim();
    if before == value {
        return Ok(());
    }
    let mut all = remembered(run_dir);
    all.entry(name.to_string()).or_insert_with(|| before.to_string());
    let file = file(run_dir);
    fs::create_dir_all(file.parent().unwrap_or(run_dir))?;
    fs::write(&file, serde_json::to_vec(&all)?)?;
    fs::write(proc_path(name), value)
}

/// Puts everything back; returns what was, or would be, put back.
pub fn restore(run_dir: &Path, dry_run: bool) -> Vec<String> {
    let mut restored = Vec::new();
    for (name, value) in remembered(run_dir) {
        if dry_run || fs::write(proc_path(&name), &value).is_ok() {
            restored.push(format!("sysctl {name} back to {value}"));
        }
    }
    if !dry_run {
        let _ = fs::remove_file(file(run_dir));
    }
    restored
}

/// Sets one that only matters where it exists and can be set.
pub fn wish(name: &str, value: &str) {
    let _ = fs::write(proc_path(name), value);
}
