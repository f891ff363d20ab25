//! `staithe logs`: of one pod, of all pods of a workload, or of a selection; several streams side by side.

use anyhow::{Result, bail};
use api::Value;
use futures_util::future::try_join_all;

use crate::cli::Logs;
use crate::context::{Ctx, container, named, query, selector_of, text};
use crate::output;

/// `90s`, `5m`, `2h`, `1d` or plain seconds.
fn seconds(duration: &str) -> Result<i64> {
    let (digits, unit) = duration.split_at(duration.find(|c: char| !c.is_ascii_digit()).unwrap_or(duration.len()));
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => bail!("--since {duration:?}: a number and s, m, h or d, as 5m"),
    };
    match digits.parse::<i64>() {
        Ok(n) => Ok(n * factor),
        Err(_) => bail!("--since {duration:?}: a number and s, m, h or d, as 5m"),
    }
}

pub async fn run(args: &Logs) -> Result<()> {
    let ctx = Ctx::connect(&args.target)?;
    let pods: Vec<Value> = match (&args.what, args.selector.as_str()) {
        (None, "") => bail!("say which: POD, TYPE/NAME or -l SELECTOR"),
        (None, selector) => ctx.pods(selector).await?,
        (Some(what), _) => {
            let named = named(what, Some("pods"))?;
            let object = ctx.read(&named).await?;
            if named.row.kind == "Pod" { vec![object] } else { ctx.pods(&selector_of(&object)?).await? }
        }
    };
    if pods.is_empty() {
        bail!("no pods match");
    }
    let mut streams = Vec::new();
    for pod in &pods {
        let names: Vec<String> = match args.all_containers {
            true => pod["spec"]["containers"].as_array().into_iter().flatten().map(|c| text(&c["name"]).to_string()).collect(),
            false => vec![container(pod, args.container.as_deref())?],
        };
        streams.extend(names.into_iter().map(|c| (text(&pod["metadata"]["name"]).to_string(), c)));
    }
    // Of many pods kubectl shows the last ten lines each; so do we.
    let tail = args.tail.or((streams.len() > 1).then_some(10));
    let prefixed = streams.len() > 1;
    try_join_all(streams.iter().map(|(pod, container)| one(&ctx, args, pod, container, tail, prefixed))).await?;
    Ok(())
}

async fn one(ctx: &Ctx, args: &Logs, pod: &str, container: &str, tail: Option<i64>, prefixed: bool) -> Result<()> {
    let flag = |on: bool| if on { "true" } else { "" };
    let since = args.since.as_deref().map(seconds).transpose()?.map(|s| s.to_string()).unwrap_or_default();
    let tail = tail.map(|t| t.to_string()).unwrap_or_default();
    let path = ctx.path(crate::context::row("pods")?, pod)
        + "/log"
        + &query(&[
            ("container", container),
            ("follow", flag(args.follow)),
            ("previous", flag(args.previous)),
            ("timestamps", flag(args.timestamps)),
            ("sinceSeconds", &since),
            ("tailLines", &tail),
        ]);
    let mut lines = client::Lines::new(ctx.client.stream(&path).await?);
    while let Some(line) = lines.next().await {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        match prefixed {
            true => output::print(&format!("[{pod}/{container}] {line}\n")),
            false => output::print(&format!("{line}\n")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(seconds("90").unwrap(), 90);
        assert_eq!(seconds("5m").unwrap(), 300);
        assert!(seconds("m").is_err() && seconds("5y").is_err());
    }
}
