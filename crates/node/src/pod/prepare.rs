//! What a pod needs before its first container, and what is taken away after its last.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use driver::Driver;

use super::{Paths, PodCx};
use crate::agent::Shared;
use crate::{files, spec, volumes};

/// Volumes, network, files, the driver's pod. Events tell what is missing; the error is for the log.
pub(crate) async fn prepare(cx: &PodCx, lost: bool) -> Result<Vec<IpAddr>, String> {
    let _turn = cx.shared.starts.acquire().await;
    if let Err(failures) = volumes::set_up(cx).await {
        for failure in &failures {
            let message = format!("MountVolume.SetUp failed for volume \"{}\" : {}", failure.volume, failure.why);
            cx.shared.recorder.warning(&cx.whole(), "FailedMount", message);
        }
        return Err("volumes are not ready".into());
    }
    let made = sandbox(cx, lost).await;
    if let Err(why) = &made {
        cx.shared.recorder.warning(&cx.whole(), "FailedCreatePodSandBox", format!("Failed to create pod sandbox: {why}"));
    }
    made
}

async fn sandbox(cx: &PodCx, lost: bool) -> Result<Vec<IpAddr>, String> {
    if lost {
        cx.driver.remove_pod(&cx.uid).await.map_err(|e| e.to_string())?;
    }
    let capabilities = cx.driver.capabilities();
    let (netns, addresses) = if cx.host_network() {
        if !capabilities.host_network {
            return Err(format!("hostNetwork is not possible with the runtime {}", cx.driver.name()));
        }
        (None, vec![cx.shared.node_ip])
    } else {
        let attachment = cx.shared.config.network.attach(&cx.uid).await.map_err(|e| e.to_string())?;
        (Some(attachment.netns), attachment.addresses)
    };
    let (paths, pod, address) = (cx.paths(), cx.pod.clone(), addresses.first().copied());
    let settings = files::Settings::new(&cx.shared);
    tokio::task::spawn_blocking(move || files::write(&paths, &pod, address, &settings))
        .await
        .map_err(|e| e.to_string())?
        .map_err(|e| format!("writing the pod's files: {e}"))?;
    let pod = spec::pod(cx, netns)?;
    cx.driver.create_pod(&pod).await.map_err(|e| e.to_string())?;
    Ok(addresses)
}

/// Everything but the logs. May be repeated.
pub(crate) async fn tear_down(
    shared: &Arc<Shared>,
    driver: Option<&dyn Driver>,
    uid: &str,
    paths: &Paths,
    host_network: bool,
) -> Result<(), String> {
    match driver {
        Some(driver) => driver.remove_pod(uid).await.map_err(|e| e.to_string())?,
        None => {
            for driver in shared.config.drivers.values() {
                driver.remove_pod(uid).await.map_err(|e| e.to_string())?;
            }
        }
    }
    if !host_network {
        shared.config.network.detach(uid).await.map_err(|e| e.to_string())?;
    }
    let (data, memory) = (paths.data.clone(), paths.memory.clone());
    tokio::task::spawn_blocking(move || remove_files(&data, &memory)).await.map_err(|e| e.to_string())?
}

pub(crate) fn remove_files(data: &Path, memory: &Path) -> Result<(), String> {
    for tree in [memory, data] {
        volumes::remove_tree(tree).map_err(|e| format!("{}: {e}", tree.display()))?;
    }
    // Ours was the last thing in it, unless the driver still has something there.
    let _ = memory.parent().map(std::fs::remove_dir);
    Ok(())
}
