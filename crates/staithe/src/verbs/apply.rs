//! `staithe apply`: server-side apply of every object, namespaces first; optionally waits for what was deployed.

use anyhow::{Context, Result, bail};
use api::Value;
use client::Patch;

use crate::cli::Apply;
use crate::context::{Ctx, path_in, query};
use crate::verbs::{manifests, rollout};
use crate::{cli::Output, output};

pub async fn run(args: &Apply) -> Result<()> {
    let ctx = Ctx::connect(&args.target)?;
    let mut objects = manifests::read(&args.filename)?;
    if objects.is_empty() {
        bail!("no objects in what was given");
    }
    // What others stand on goes first; otherwise the order written is kept.
    objects.sort_by_key(|o| match o["kind"].as_str() {
        Some("Namespace") => 0,
        Some("ServiceAccount" | "ConfigMap" | "Secret" | "Role" | "ClusterRole") => 1,
        _ => 2,
    });
    let mut waiting = Vec::new();
    let mut failed = 0;
    for object in &objects {
        match apply(&ctx, args, object).await {
            Ok((line, applied)) => {
                match args.output {
                    Some(Output::Json | Output::Yaml) => output::print(&output::document(&applied, args.output.unwrap_or(Output::Yaml))?),
                    _ => output::print(&format!("{line}\n")),
                }
                if args.wait && applied["kind"] == "Deployment" {
                    waiting.push(applied);
                }
            }
            Err(e) => {
                failed += 1;
                eprintln!("error: {e:#}");
            }
        }
    }
    if failed > 0 {
        bail!("{failed} of {} objects were not applied", objects.len());
    }
    for deployment in waiting {
        let name = deployment["metadata"]["name"].as_str().unwrap_or_default();
        let namespace = deployment["metadata"]["namespace"].as_str().unwrap_or_default();
        rollout::wait(&ctx, namespace, name, None).await?;
    }
    Ok(())
}

async fn apply(ctx: &Ctx, args: &Apply, object: &Value) -> Result<(String, Value)> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let row = api::table::of(object)
        .with_context(|| format!("the server has no kind {kind} in {}", object["apiVersion"].as_str().unwrap_or_default()))?;
    let name = object["metadata"]["name"].as_str().filter(|n| !n.is_empty()).with_context(|| format!("a {kind} has no metadata.name"))?;
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or(&ctx.namespace);
    let path = path_in(row, namespace, name);
    let before = match ctx.client.get_path(&path).await {
        Ok(found) => Some(found),
        Err(e) if e.is_not_found() => None,
        Err(e) => return Err(e.into()),
    };
    let mut object = object.clone();
    if row.namespaced() {
        object["metadata"]["namespace"] = namespace.into();
    }
    let patch = Patch::Apply { manager: "staithe".into(), force: args.force_conflicts, object };
    // A misspelt field is a mistake, not a remark.
    let how = query(&[("fieldValidation", "Strict"), ("dryRun", if args.dry_run { "All" } else { "" })]);
    let applied = ctx.client.patch_path(&(path + &how), &patch).await?;
    let revision = |v: &Value| v["metadata"]["resourceVersion"].as_str().map(str::to_string);
    let what = match &before {
        None => "created",
        Some(before) if revision(before) == revision(&applied) => "unchanged",
        Some(_) => "configured",
    };
    let suffix = if args.dry_run { " (dry run)" } else { "" };
    Ok((format!("{}/{name} {what}{suffix}", row.qualified()), applied))
}
