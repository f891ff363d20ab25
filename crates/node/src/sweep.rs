//! What `down` takes away of the agent's own: volumes in memory, bind mounts, files of pods.

use std::path::Path;

use crate::volumes::{mounts_below, remove_tree};

/// Unmounts and removes what the agent made for pods below both directories. Each line names one thing; with `dry_run`
/// they are only listed. To be called when nothing of a pod runs any more. Logs stay.
pub fn sweep(data_dir: &Path, run_dir: &Path, dry_run: bool) -> Vec<String> {
    let mut found = Vec::new();
    for pods in [run_dir.join("pods"), data_dir.join("pods")] {
        found.extend(mounts_below(&pods).unwrap_or_default().into_iter().map(|m| format!("mount {m}")));
        let entries: Vec<_> = std::fs::read_dir(&pods).into_iter().flatten().flatten().map(|e| e.path()).collect();
        for directory in entries {
            found.push(format!("directory {}", directory.display()));
            if !dry_run && let Err(e) = remove_tree(&directory) {
                tracing::warn!("{}: {e}", directory.display());
            }
        }
    }
    found
}
