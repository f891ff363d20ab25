//! `staithe delete`: by name, label or manifest; waits until the objects are gone.

use std::time::Duration;

use anyhow::{Result, bail};
use client::DeleteOptions;

use crate::cli::Delete;
use crate::context::{Ctx, path_in, query, row, several};
use crate::output::Spinner;
use crate::verbs::manifests;

/// Graceful ends may take their whole grace period, and a namespace all of its pods'.
const GONE_WITHIN: Duration = Duration::from_secs(300);

pub async fn run(args: &Delete) -> Result<()> {
    let ctx = Ctx::connect(&args.target)?;
    let mut paths: Vec<(String, String)> = Vec::new();
    for object in manifests::read(&args.filename)?.iter().rev() {
        let Some(row) = api::table::of(object) else { bail!("the server has no kind {}", object["kind"]) };
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or(&ctx.namespace);
        paths.push((format!("{} {name:?}", row.qualified()), path_in(row, namespace, name)));
    }
    if !args.selector.is_empty() {
        let [word] = args.what.as_slice() else { bail!("with -l, say one TYPE and no name") };
        let row = row(word)?;
        let list = ctx.client.get_path(&(ctx.path(row, "") + &query(&[("labelSelector", &args.selector)]))).await?;
        for item in list["items"].as_array().into_iter().flatten() {
            let name = item["metadata"]["name"].as_str().unwrap_or_default();
            paths.push((format!("{} {name:?}", row.qualified()), ctx.path(row, name)));
        }
    } else if !args.what.is_empty() {
        for named in several(&args.what)? {
            paths.push((format!("{} {:?}", named.row.qualified(), named.name), ctx.path(named.row, &named.name)));
        }
    } else if args.filename.is_empty() {
        bail!("say what to delete: TYPE NAME, -l SELECTOR or -f FILE");
    }
    let options = DeleteOptions { grace_period_seconds: args.grace_period, propagation: Some("Background"), ..Default::default() };
    let mut waiting = Vec::new();
    for (shown, path) in paths {
        match ctx.client.delete_path(&path, &options).await {
            Ok(_) => {
                println!("{shown} deleted");
                waiting.push((shown, path));
            }
            Err(e) if e.is_not_found() && args.ignore_not_found => {}
            Err(e) => return Err(e.into()),
        }
    }
    if args.no_wait || waiting.is_empty() {
        return Ok(());
    }
    let spinner = Spinner::start("waiting until everything is gone");
    let deadline = tokio::time::Instant::now() + GONE_WITHIN;
    for (shown, path) in waiting {
        spinner.say(&format!("waiting until {shown} is gone"));
        loop {
            match ctx.client.get_path(&path).await {
                Err(e) if e.is_not_found() => break,
                Err(e) => return Err(e.into()),
                Ok(_) if tokio::time::Instant::now() > deadline => bail!("{shown} is still there after {} s", GONE_WITHIN.as_secs()),
                Ok(_) => tokio::time::sleep(Duration::from_millis(150)).await,
            }
        }
    }
    Ok(())
}
