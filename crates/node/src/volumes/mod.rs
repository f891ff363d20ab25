//! A pod's volumes: made before its containers, kept up to date while they run, gone without a trace after.
//!
//! On disk: emptyDir and configMap below `<data>/pods/<uid>/volumes/<name>`. In memory: secret, projected, downwardAPI and
//! `medium: Memory` below `<run>/pods/<uid>/volumes/<name>`, so that no secret is ever written to a disk.

mod atomic;
mod host_path;
mod payload;
mod subpath;
mod tree;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use driver::Mount;
use k8s_openapi::api::core::v1::{Container as Spec, Volume, VolumeMount};

use crate::pod::{Paths, PodCx};
use crate::spec::expand;

pub(crate) use payload::Tokens;
pub(crate) use tree::{measure, remove_tree};

/// A volume that could not be made, in the words of `FailedMount`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub volume: String,
    pub why: String,
}

fn volumes_of(cx: &PodCx) -> Vec<Volume> {
    cx.pod.spec.as_ref().and_then(|s| s.volumes.clone()).unwrap_or_default()
}

/// The directory that holds a volume, or what a hostPath names.
fn location(paths: &Paths, volume: &Volume) -> PathBuf {
    if let Some(host) = &volume.host_path {
        return PathBuf::from(&host.path);
    }
    let memory = volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
        || volume.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref() == Some("Memory"));
    let base = if memory { &paths.memory } else { &paths.volumes };
    base.join(&volume.name)
}

/// Makes every volume of the pod; what is there stays. All that failed are named.
pub(crate) async fn set_up(cx: &PodCx) -> Result<(), Vec<Failure>> {
    let mut failures = Vec::new();
    for volume in volumes_of(cx) {
        if let Err(why) = make(cx, &volume).await {
            failures.push(Failure { volume: volume.name.clone(), why });
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(failures) }
}

async fn make(cx: &PodCx, volume: &Volume) -> Result<(), String> {
    let (paths, fs_group) = (cx.paths(), fs_group(cx));
    let target = location(&paths, volume);
    if let Some(empty) = volume.empty_dir.clone() {
        let memory_limit = empty.size_limit.as_ref().and_then(|q| q.0.parse::<api::quantity::Quantity>().ok()).map(|q| q.as_bytes());
        return blocking(move || match empty.medium.as_deref() {
            Some("Memory") => tree::memory(&target, memory_limit.and_then(|n| u64::try_from(n).ok()).unwrap_or(0), fs_group),
            None | Some("") => tree::directory(&target, 0o777, fs_group),
            Some(other) => Err(format!("unknown emptyDir medium {other:?}")),
        })
        .await;
    }
    if let Some(host) = volume.host_path.clone() {
        return blocking(move || host_path::check(Path::new(&host.path), host.type_.as_deref().unwrap_or_default())).await;
    }
    match payload::of(cx, volume).await? {
        Some(files) => blocking(move || atomic::write(&target, &files, fs_group).map(drop)).await,
        None => Err(format!("the volume's kind is not supported: {}", kind_of(volume))),
    }
}

fn fs_group(cx: &PodCx) -> Option<u32> {
    let group = cx.pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

fn kind_of(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let keys = value.as_object().into_iter().flat_map(|o| o.keys());
    keys.filter(|k| *k != "name").cloned().collect::<Vec<_>>().join(", ")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

/// Brings what changed in ConfigMaps, Secrets, labels and tokens into the running pod.
pub(crate) async fn refresh(cx: &PodCx) -> Result<(), String> {
    let mut failed = Vec::new();
    for volume in volumes_of(cx) {
        match payload::of(cx, &volume).await {
            Ok(Some(files)) => {
                let (target, fs_group) = (location(&cx.paths(), &volume), fs_group(cx));
                if let Err(why) = blocking(move || atomic::write(&target, &files, fs_group).map(drop)).await {
                    failed.push(format!("{}: {why}", volume.name));
                }
            }
            Ok(None) => {}
            // What is gone from the API stays in the pod until it comes back, as upstream has it.
            Err(why) => failed.push(format!("{}: {why}", volume.name)),
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

/// What one container mounts. `env` is for `subPathExpr`. Opens files: not on the runtime's threads.
pub(crate) fn mounts(cx: &PodCx, spec: &Spec, env: &BTreeMap<String, String>) -> Result<Vec<Mount>, String> {
    let (paths, volumes) = (cx.paths(), volumes_of(cx));
    let mut all = Vec::new();
    for (i, mount) in spec.volume_mounts.iter().flatten().enumerate() {
        let volume = volumes.iter().find(|v| v.name == mount.name);
        let volume = volume.ok_or_else(|| format!("volume {:?} of mount {} does not exist", mount.name, mount.mount_path))?;
        let base = location(&paths, volume);
        let source = match sub_path(mount, env)? {
            Some(sub) => {
                let place = paths.data.join("subpaths").join(&spec.name).join(i.to_string());
                let bound = subpath::open(&base, &sub).and_then(|opened| subpath::bind(&opened, &place));
                let (volume, container) = (&mount.name, &spec.name);
                bound.map_err(|e| format!("failed to prepare subPath for volumeMount {volume:?} of container {container:?}: {e}"))?;
                place
            }
            None => base,
        };
        let read_only = mount.read_only == Some(true) || is_projection(volume);
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => Some("rslave".to_string()),
            Some("Bidirectional") => Some("rshared".to_string()),
            _ => None,
        };
        // Relative mount paths are from the root, as upstream's runtimes take them.
        all.push(Mount { source, target: Path::new("/").join(&mount.mount_path), read_only, propagation });
    }
    Ok(all)
}

/// Volumes that are written by the node only.
fn is_projection(volume: &Volume) -> bool {
    volume.config_map.is_some() || volume.secret.is_some() || volume.projected.is_some() || volume.downward_api.is_some()
}

fn sub_path(mount: &VolumeMount, env: &BTreeMap<String, String>) -> Result<Option<String>, String> {
    let given = match (mount.sub_path.as_deref(), mount.sub_path_expr.as_deref()) {
        (Some(path), _) if !path.is_empty() => path.to_string(),
        (_, Some(expression)) if !expression.is_empty() => {
            let path = expand(expression, env);
            if path.contains("$(") {
                return Err(format!("missing value for {path:?} in subPathExpr"));
            }
            path
        }
        _ => return Ok(None),
    };
    let plain = Path::new(&given).components().all(|c| matches!(c, std::path::Component::Normal(_) | std::path::Component::CurDir));
    if plain { Ok(Some(given)) } else { Err(format!("subPath {given:?} must be a relative path without '..'")) }
}
