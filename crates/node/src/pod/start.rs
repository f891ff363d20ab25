//! One attempt of a container: image, specification, creation, start, `postStart`.

use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::core::v1::Container as Spec;
use plan::pod_actions::Waiting;

use super::{Message, PodCx, hooks};
use crate::images::{Auth, Image, PullPolicy, docker_auths, pull_policy};
use crate::spec;

pub(crate) async fn start(cx: PodCx, container: Spec, attempt: u32) {
    if let Err(waiting) = attempt_start(&cx, &container, attempt).await {
        cx.send(Message::NotMade { container: container.name, waiting }).await;
    }
}

async fn attempt_start(cx: &PodCx, container: &Spec, attempt: u32) -> Result<(), Waiting> {
    let about = cx.about(&container.name);
    let recorder = &cx.shared.recorder;
    let image = pull(cx, container).await.inspect_err(|w| recorder.warning(&about, "Failed", format!("Error: {}", w.reason)))?;
    let turn = cx.shared.starts.acquire().await;
    let made = match spec::container(cx, container, attempt, &image).await {
        Ok(made) => made,
        Err(why) => {
            recorder.warning(&about, "Failed", format!("Error: {why}"));
            return Err(Waiting::new(why.waiting_reason(), why.to_string()));
        }
    };
    clear(cx, &container.name, attempt).await;
    if let Err(e) = cx.driver.create(&cx.uid, &made).await {
        recorder.warning(&about, "Failed", format!("Error: {e}"));
        return Err(Waiting::new("CreateContainerError", e.to_string()));
    }
    recorder.normal(&about, "Created", format!("Created container: {}", container.name));
    cx.send(Message::Created {
        container: container.name.clone(),
        attempt,
        image_id: image.id.clone(),
        digest: image.digest.clone(),
        stop_signal: spec::signal_number(&image.stop_signal),
    })
    .await;
    if let Err(e) = cx.driver.start(&cx.uid, &container.name, attempt).await {
        recorder.warning(&about, "Failed", format!("Error: {e}"));
        cx.send(Message::NotStarted { container: container.name.clone(), attempt, error: e.to_string() }).await;
        return Ok(());
    }
    drop(turn);
    recorder.normal(&about, "Started", format!("Started container {}", container.name));
    if let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref())
        && let Err(why) = hooks::run(cx, container, hook).await
    {
        recorder.warning(&about, "FailedPostStartHook", format!("PostStartHook failed: {why}"));
        cx.send(Message::HookFailed { container: container.name.clone(), attempt }).await;
        return Ok(());
    }
    cx.send(Message::Started { container: container.name.clone(), attempt }).await;
    Ok(())
}

/// Attempts before this one: their roots go at once, their logs but for the last one too.
async fn clear(cx: &PodCx, container: &str, attempt: u32) {
    let Some(last) = attempt.checked_sub(1) else { return };
    // One that the driver does not know any more is as good as removed.
    for old in last.saturating_sub(1)..=last {
        let _ = cx.driver.remove(&cx.uid, container, old).await;
    }
    let paths = cx.paths();
    let logs = paths.logs.join(container);
    for old in (0..last).rev().take(4) {
        crate::logs::remove(&logs, old);
        let _ = std::fs::remove_file(crate::termination::file(&paths, container, old));
    }
}

async fn pull(cx: &PodCx, container: &Spec) -> Result<Image, Waiting> {
    let reference = container.image.clone().unwrap_or_default();
    let policy = pull_policy(container.image_pull_policy.as_deref(), &reference);
    let about = cx.about(&container.name);
    let recorder = &cx.shared.recorder;
    let images = &cx.shared.config.images;
    let present = images.present(&reference).await;
    let asks = policy == PullPolicy::Always || (policy == PullPolicy::IfNotPresent && !present);
    let auths = if asks { pull_secrets(cx).await } else { Vec::new() };
    let began = cx.shared.config.clock.now();
    if asks {
        recorder.normal(&about, "Pulling", format!("Pulling image \"{reference}\""));
    }
    let fetched = AtomicBool::new(false);
    let image = images.ensure(&reference, policy, &auths, &|_| fetched.store(true, Ordering::Relaxed)).await;
    match image {
        Ok(image) => {
            let took = cx.shared.config.clock.now().duration_since(began);
            let message = if asks {
                let took = go_seconds(took.as_millis());
                format!(
                    "Successfully pulled image \"{reference}\" in {took} ({took} including waiting). Image size: {} bytes.",
                    image.size_bytes
                )
            } else {
                format!("Container image \"{reference}\" already present on machine")
            };
            recorder.normal(&about, "Pulled", message);
            Ok(image)
        }
        Err(why) => {
            let reason = why.waiting_reason();
            let (event, message) = match reason {
                "ErrImageNeverPull" => ("ErrImageNeverPull", why.to_string()),
                "InvalidImageName" => ("InspectFailed", format!("Failed to apply default image tag \"{reference}\": {why}")),
                _ => ("Failed", format!("Failed to pull image \"{reference}\": {why}")),
            };
            recorder.warning(&about, event, message);
            Err(Waiting::new(reason, why.to_string()))
        }
    }
}

/// `1.234s` or `56ms`, as Go writes durations.
fn go_seconds(ms: i128) -> String {
    if ms < 1000 { format!("{ms}ms") } else { format!("{}.{:03}s", ms / 1000, ms % 1000).replace("000s", "0s") }
}

/// Credentials of the pod's `imagePullSecrets`. One that is missing is told and left out: the registry may not need it.
async fn pull_secrets(cx: &PodCx) -> Vec<Auth> {
    let names = cx.pod.spec.as_ref().and_then(|s| s.image_pull_secrets.clone()).unwrap_or_default();
    let mut auths = Vec::new();
    for name in names.into_iter().map(|n| n.name).filter(|n| !n.is_empty()) {
        match cx.shared.lookup.secret(cx.namespace(), &name).await {
            Ok(secret) => auths.extend(docker_auths(&secret.data.unwrap_or_default())),
            Err(why) => {
                let message = format!("Unable to retrieve some image pull secrets ({name}); attempting to pull the image may not succeed.");
                cx.shared.recorder.warning(&cx.whole(), "FailedToRetrieveImagePullSecret", message);
                tracing::debug!(pod = cx.uid, "{why}");
            }
        }
    }
    auths
}
