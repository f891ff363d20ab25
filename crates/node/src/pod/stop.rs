//! Ending one container: `preStop`, its stop signal, SIGKILL at the deadline. The task lives until the container is gone.

use base::Timestamp;
use k8s_openapi::api::core::v1::Container as Spec;
use tokio::sync::watch;

use super::{PodCx, hooks};
use crate::limits::{KILL_AGAIN, LEAVING_WAIT};

pub(crate) async fn stop(cx: PodCx, container: Spec, hook: bool, signal: i32, mut deadline: watch::Receiver<Timestamp>) {
    let pre_stop = container.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()).filter(|_| hook);
    let mut least = Timestamp::UNIX_EPOCH;
    leave(&cx, &mut deadline).await;
    if let Some(hook) = pre_stop {
        let run = hooks::run(&cx, &container, hook);
        tokio::select! {
            biased;
            result = run => if let Err(why) = result {
                cx.shared.recorder.warning(&cx.about(&container.name), "FailedPreStopHook", format!("PreStopHook failed: {why}"));
            },
            () = passed(&cx, &mut deadline, Timestamp::UNIX_EPOCH) => {}
        }
        // A hook that used up the grace leaves the process a moment for its signal.
        let grace = jiff::SignedDuration::try_from(plan::limits::GRACE_MIN).unwrap_or_default();
        least = cx.shared.config.clock.now() + grace;
    }
    send(&cx, &container.name, signal).await;
    passed(&cx, &mut deadline, least).await;
    loop {
        send(&cx, &container.name, libc::SIGKILL).await;
        tokio::time::sleep(KILL_AGAIN).await;
    }
}

/// Routers take the pod out before it is told; the grace goes on meanwhile.
async fn leave(cx: &PodCx, deadline: &mut watch::Receiver<Timestamp>) {
    let Some(leaving) = cx.shared.config.leaving.clone().filter(|_| cx.pod.metadata.deletion_timestamp.is_some()) else { return };
    tokio::select! {
        biased;
        done = tokio::time::timeout(LEAVING_WAIT, leaving.leaving(&cx.pod)) => if done.is_err() {
            cx.shared.recorder.warning(&cx.whole(), "StillRouted", "routers did not confirm in time that the pod is taken out");
        },
        () = passed(cx, deadline, Timestamp::UNIX_EPOCH) => {}
    }
}

async fn send(cx: &PodCx, container: &str, signal: i32) {
    if let Err(e) = cx.driver.signal(&cx.uid, container, signal).await {
        tracing::warn!(pod = cx.uid, container, signal, "signal failed: {e}");
    }
}

/// Waits for the deadline, which may be brought forward meanwhile, but not before `least`.
async fn passed(cx: &PodCx, deadline: &mut watch::Receiver<Timestamp>, least: Timestamp) {
    loop {
        let by = (*deadline.borrow_and_update()).max(least);
        let wait = by.duration_since(cx.shared.config.clock.now());
        if wait <= jiff::SignedDuration::ZERO {
            return;
        }
        tokio::select! {
            biased;
            changed = deadline.changed() => if changed.is_err() {
                tokio::time::sleep(wait.unsigned_abs()).await;
                return;
            },
            () = tokio::time::sleep(wait.unsigned_abs()) => {}
        }
    }
}
