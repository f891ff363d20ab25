//! What keeps the node from filling up: local storage over its limit is evicted, unused images and old logs go.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use driver::Stats;
use k8s_openapi::api::core::v1::Volume;
use plan::pod_actions::{Terminal, app_containers, init_containers};

use crate::agent::{Shared, View};
use crate::limits::{CHECK_STORAGE, COLLECT_IMAGES, DEAD_LOGS_AGE, DEAD_LOGS_MAX};
use crate::pod::{Message, Paths, about};
use crate::{machine, spec, stats, volumes};

pub(crate) async fn run(shared: Arc<Shared>) {
    let mut storage = tokio::time::interval(CHECK_STORAGE);
    let mut images = tokio::time::interval_at(tokio::time::Instant::now() + COLLECT_IMAGES, COLLECT_IMAGES);
    for interval in [&mut storage, &mut images] {
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    }
    loop {
        tokio::select! {
            biased;
            _ = images.tick() => {
                collect_images(&shared).await;
                let dead = shared.clone();
                // Nothing depends on it but disk space.
                let _ = tokio::task::spawn_blocking(move || dead_logs(&dead)).await;
            }
            _ = storage.tick() => check_storage(&shared).await,
        }
    }
}

async fn collect_images(shared: &Shared) {
    let in_use: BTreeSet<String> = shared.views().into_iter().flat_map(|v| v.images).collect();
    let budget = if machine::pressure(&shared.config.data_dir).disk { 0 } else { shared.config.image_budget_bytes };
    match shared.config.images.collect_garbage(&in_use, budget).await {
        Ok(0) => {}
        Ok(freed) => tracing::info!("{freed} bytes of unused images freed"),
        Err(e) => tracing::warn!("images were not collected: {e}"),
    }
}

/// Logs of pods that are gone: a while they may still tell what happened, then they go.
fn dead_logs(shared: &Shared) {
    let alive: BTreeSet<PathBuf> = shared.views().iter().map(|v| Paths::new(shared, &v.uid, v.namespace(), v.name()).logs).collect();
    let now = std::time::UNIX_EPOCH + Duration::from_millis(u64::try_from(shared.config.clock.now().as_millisecond()).unwrap_or(0));
    let age = |path: &PathBuf| now.duration_since(std::fs::metadata(path).ok()?.modified().ok()?).ok();
    let entries = std::fs::read_dir(shared.config.data_dir.join("logs")).into_iter().flatten().flatten();
    let mut dead: Vec<(Duration, PathBuf)> =
        entries.map(|e| e.path()).filter(|p| !alive.contains(p)).map(|p| (age(&p).unwrap_or_default(), p)).collect();
    dead.sort();
    for (i, (age, path)) in dead.iter().enumerate() {
        if (i >= DEAD_LOGS_MAX || *age > DEAD_LOGS_AGE)
            && let Err(e) = std::fs::remove_dir_all(path)
        {
            tracing::debug!("{}: {e}", path.display());
        }
    }
}

// ---- ephemeral storage ---------------------------------------------------------------------------------------------

async fn check_storage(shared: &Arc<Shared>) {
    for (view, stats) in stats::sample(shared).await {
        if view.ending || !has_limits(&view) {
            continue;
        }
        let (this, look) = (shared.clone(), view.clone());
        let Ok(Some(why)) = tokio::task::spawn_blocking(move || excess(&this, &look, &stats)).await else { continue };
        shared.recorder.warning(&about(&view.pod, None), "Evicted", why.clone());
        shared.tell(&view.uid, Message::End(Terminal::new("Evicted", why))).await;
    }
}

fn volumes_of(view: &View) -> &[Volume] {
    view.pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default()
}

/// `sizeLimit` of an emptyDir on disk; one in memory is bounded by its tmpfs.
fn size_limit(volume: &Volume) -> Option<(u64, String)> {
    let empty = volume.empty_dir.as_ref().filter(|e| e.medium.as_deref() != Some("Memory"))?;
    let limit = empty.size_limit.as_ref()?;
    let bytes = limit.0.parse::<api::quantity::Quantity>().ok()?.as_bytes();
    Some((u64::try_from(bytes).ok().filter(|n| *n > 0)?, limit.0.clone()))
}

fn has_limits(view: &View) -> bool {
    let all = init_containers(&view.pod).iter().chain(app_containers(&view.pod));
    all.into_iter().any(|c| spec::limit(c.resources.as_ref(), "ephemeral-storage").is_some())
        || volumes_of(view).iter().any(|v| size_limit(v).is_some())
}

/// Which limit is exceeded, in upstream's words.
fn excess(shared: &Shared, view: &View, stats: &Stats) -> Option<String> {
    let paths = Paths::new(shared, &view.uid, view.namespace(), view.name());
    let mut on_disk = 0;
    for volume in volumes_of(view).iter().filter(|v| v.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref() != Some("Memory"))) {
        let used = volumes::measure(&paths.volumes.join(&volume.name));
        on_disk += used;
        if let Some((limit, text)) = size_limit(volume)
            && used > limit
        {
            return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {text:?}. ", volume.name));
        }
    }
    let mut total_limit = Some(0u64);
    for container in app_containers(&view.pod) {
        let layer = stats.containers.get(&container.name).map_or(0, |u| u.writable_layer_bytes);
        let used = layer + volumes::measure(&paths.logs.join(&container.name));
        on_disk += used;
        let limit = spec::limit(container.resources.as_ref(), "ephemeral-storage");
        let bytes = limit.and_then(|q| u64::try_from(q.as_bytes()).ok()).filter(|n| *n > 0);
        total_limit = total_limit.zip(bytes).map(|(a, b)| a + b);
        if let (Some(limit), Some(bytes)) = (limit, bytes)
            && used > bytes
        {
            return Some(format!("Container {} exceeded its local ephemeral storage limit \"{limit}\". ", container.name));
        }
    }
    let total = total_limit.filter(|limit| *limit > 0 && on_disk > *limit)?;
    let shown = api::quantity::Quantity::from_bytes(total);
    Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {shown}. "))
}
