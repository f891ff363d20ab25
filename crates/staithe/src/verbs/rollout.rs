//! `staithe rollout` and `staithe scale`: what happens between two versions of a deployment.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use api::Value;
use client::Patch;
use serde_json::json;

use crate::cli::{Rollout, RolloutAction, Scale};
use crate::context::{Ctx, Named, named, path_in, query, row, selector_of};
use crate::output::{self, Spinner};

const REVISION: &str = "deployment.kubernetes.io/revision";

pub async fn scale(args: &Scale) -> Result<()> {
    let ctx = Ctx::connect(&args.target)?;
    let what = named(&args.what, None)?;
    let path = ctx.path(what.row, &what.name) + "/scale";
    ctx.client.patch_path(&path, &Patch::Merge(json!({ "spec": { "replicas": args.replicas } }))).await?;
    println!("{}/{} scaled to {}", what.row.qualified(), what.name, args.replicas);
    Ok(())
}

pub async fn run(args: &Rollout) -> Result<()> {
    let ctx = Ctx::connect(&args.target)?;
    let what = named(&args.what, Some("deployments"))?;
    if what.row.kind != "Deployment" {
        bail!("only deployments roll out, {} do not", what.row.plural);
    }
    match args.action {
        RolloutAction::Status => wait(&ctx, &ctx.namespace, &what.name, args.timeout.map(Duration::from_secs)).await,
        RolloutAction::History => history(&ctx, &what).await,
        RolloutAction::Undo => undo(&ctx, &what, args.to_revision).await,
        RolloutAction::Restart => {
            let now = base::rfc3339(base::Clock::now(&base::SystemClock));
            let restarted = json!({ "kubectl.kubernetes.io/restartedAt": now });
            let patch = json!({ "spec": { "template": { "metadata": { "annotations": restarted } } } });
            change(&ctx, &what, patch, "restarted").await
        }
        RolloutAction::Pause => change(&ctx, &what, json!({ "spec": { "paused": true } }), "paused").await,
        RolloutAction::Resume => change(&ctx, &what, json!({ "spec": { "paused": false } }), "resumed").await,
    }
}

async fn change(ctx: &Ctx, what: &Named, patch: Value, done: &str) -> Result<()> {
    ctx.client.patch_path(&ctx.path(what.row, &what.name), &Patch::Merge(patch)).await?;
    println!("{}/{} {done}", what.row.qualified(), what.name);
    Ok(())
}

/// Where a rollout stands, in kubectl's words; `Ok(true)` once it is through.
fn progress(d: &Value) -> Result<(String, bool)> {
    let number = |v: &Value| v.as_i64().unwrap_or(0);
    let (spec, status) = (&d["spec"], &d["status"]);
    let name = d["metadata"]["name"].as_str().unwrap_or_default();
    if number(&d["metadata"]["generation"]) > number(&status["observedGeneration"]) {
        return Ok(("waiting for the deployment's spec to be seen".into(), false));
    }
    for condition in status["conditions"].as_array().into_iter().flatten() {
        if condition["type"] == "Progressing" && condition["reason"] == "ProgressDeadlineExceeded" {
            bail!("deployment {name:?} exceeded its progress deadline");
        }
    }
    let wanted = spec["replicas"].as_i64().unwrap_or(1);
    let (all, updated, available) = (number(&status["replicas"]), number(&status["updatedReplicas"]), number(&status["availableReplicas"]));
    Ok(if updated < wanted {
        (format!("{name}: {updated} of {wanted} new instances have been made"), false)
    } else if all > updated {
        (format!("{name}: {} old instances are still ending", all - updated), false)
    } else if available < updated {
        (format!("{name}: {available} of {updated} instances are available"), false)
    } else {
        (format!("deployment {name:?} successfully rolled out"), true)
    })
}

/// Waits for a rollout with progress; on a stuck one says why from its pods.
pub async fn wait(ctx: &Ctx, namespace: &str, name: &str, timeout: Option<Duration>) -> Result<()> {
    let path = path_in(row("deployments")?, namespace, name);
    let spinner = Spinner::start(&format!("waiting for {name}"));
    let started = tokio::time::Instant::now();
    loop {
        let deployment = ctx.client.get_path(&path).await?;
        let (text, done) = match progress(&deployment) {
            Ok(state) => state,
            Err(e) => {
                drop(spinner);
                return Err(e.context(why(ctx, namespace, &deployment).await));
            }
        };
        if done {
            spinner.done(&text);
            return Ok(());
        }
        if timeout.is_some_and(|t| started.elapsed() > t) {
            drop(spinner);
            bail!("timed out: {text}\n{}", why(ctx, namespace, &deployment).await);
        }
        spinner.say(&text);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

/// What the deployment's containers wait for, one line each.
async fn why(ctx: &Ctx, namespace: &str, deployment: &Value) -> String {
    let Ok(selector) = selector_of(deployment) else { return String::new() };
    let Ok(pods) = row("pods") else { return String::new() };
    let path = path_in(pods, namespace, "") + &query(&[("labelSelector", &selector)]);
    let Ok(list) = ctx.client.get_path(&path).await else { return String::new() };
    let mut lines = Vec::new();
    for pod in list["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        for condition in pod["status"]["conditions"].as_array().into_iter().flatten() {
            if condition["type"] == "PodScheduled" && condition["status"] == "False" {
                lines.push(format!("  {name}: {}", condition["message"].as_str().unwrap_or_default()));
            }
        }
        for container in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            if let Some(waiting) = container["state"]["waiting"].as_object() {
                let word = |key: &str| waiting.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
                lines.push(format!("  {name}: {} {}", word("reason"), word("message")));
            }
        }
    }
    lines.join("\n")
}

/// The deployment's ReplicaSets with their revisions, oldest first.
async fn revisions(ctx: &Ctx, what: &Named) -> Result<(Value, Vec<(i64, Value)>)> {
    let deployment = ctx.read(what).await?;
    let path = ctx.path(row("replicasets")?, "") + &query(&[("labelSelector", &selector_of(&deployment)?)]);
    let list = ctx.client.get_path(&path).await?;
    let uid = &deployment["metadata"]["uid"];
    let owned = |rs: &&Value| rs["metadata"]["ownerReferences"].as_array().is_some_and(|o| o.iter().any(|o| &o["uid"] == uid));
    let revision = |rs: &Value| rs["metadata"]["annotations"][REVISION].as_str()?.parse::<i64>().ok();
    let mut found: Vec<(i64, Value)> =
        list["items"].as_array().into_iter().flatten().filter(owned).filter_map(|rs| Some((revision(rs)?, rs.clone()))).collect();
    found.sort_by_key(|(n, _)| *n);
    Ok((deployment, found))
}

async fn history(ctx: &Ctx, what: &Named) -> Result<()> {
    let (_, found) = revisions(ctx, what).await?;
    let header: Vec<String> = ["REVISION", "IMAGES", "CHANGE-CAUSE"].map(String::from).into();
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|(n, rs)| {
            let containers = rs["spec"]["template"]["spec"]["containers"].as_array().into_iter().flatten();
            let images: Vec<&str> = containers.filter_map(|c| c["image"].as_str()).collect();
            let cause = rs["metadata"]["annotations"]["kubernetes.io/change-cause"].as_str().unwrap_or("<none>");
            vec![n.to_string(), images.join(","), cause.to_string()]
        })
        .collect();
    output::print(&output::columns(Some(&header), &rows));
    Ok(())
}

async fn undo(ctx: &Ctx, what: &Named, to: Option<i64>) -> Result<()> {
    let (deployment, found) = revisions(ctx, what).await?;
    if deployment["spec"]["paused"] == true {
        bail!("deployment {:?} is paused: `staithe rollout resume deployment/{}` first", what.name, what.name);
    }
    let target = match to {
        Some(n) => found.iter().find(|(r, _)| *r == n).with_context(|| {
            let have: Vec<String> = found.iter().map(|(r, _)| r.to_string()).collect();
            format!("there is no revision {n}; there are {}", have.join(", "))
        })?,
        None => found.iter().rev().nth(1).with_context(|| format!("deployment {:?} has no version before this one", what.name))?,
    };
    let mut template = target.1["spec"]["template"].clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove("pod-template-hash");
    }
    if template == deployment["spec"]["template"] {
        println!("{}/{} is at revision {} already", what.row.qualified(), what.name, target.0);
        return Ok(());
    }
    let patch = Patch::Json(json!([{ "op": "replace", "path": "/spec/template", "value": template }]));
    ctx.client.patch_path(&ctx.path(what.row, &what.name), &patch).await?;
    println!("{}/{} rolled back to revision {}", what.row.qualified(), what.name, target.0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_what_is_missing() {
        let d = |updated: i64, all: i64, available: i64| {
            json!({
                "metadata": { "name": "web", "generation": 2 }, "spec": { "replicas": 3 },
                "status": { "observedGeneration": 2, "updatedReplicas": updated, "replicas": all, "availableReplicas": available },
            })
        };
        assert_eq!(progress(&d(1, 4, 3)).unwrap().0, "web: 1 of 3 new instances have been made");
        assert_eq!(progress(&d(3, 4, 3)).unwrap().0, "web: 1 old instances are still ending");
        assert!(!progress(&d(3, 3, 2)).unwrap().1);
        assert!(progress(&d(3, 3, 3)).unwrap().1);
    }
}
