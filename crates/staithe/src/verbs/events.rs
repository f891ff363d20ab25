//! `staithe events`: what happened, oldest first.

use anyhow::Result;
use api::Value;
use base::{Clock, SystemClock, Timestamp};

use crate::cli::Events;
use crate::context::{Ctx, named, path_in, query, row, text};
use crate::output;

pub const HEADER: [&str; 5] = ["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"];

fn seen(event: &Value) -> Option<Timestamp> {
    let times =
        [&event["lastTimestamp"], &event["series"]["lastObservedTime"], &event["eventTime"], &event["metadata"]["creationTimestamp"]];
    times.iter().find_map(|t| t.as_str()?.parse().ok())
}

fn cells(event: &Value, now: Timestamp, namespaces: bool) -> Vec<String> {
    let age = seen(event).map(|t| api::printer::human_duration(now.duration_since(t))).unwrap_or_else(|| "<unknown>".into());
    let times = event["count"].as_u64().filter(|n| *n > 1).map(|n| format!("{age} (x{n})")).unwrap_or(age);
    let about = &event["involvedObject"];
    let object = format!("{}/{}", text(&about["kind"]).to_lowercase(), text(&about["name"]));
    let mut row =
        vec![times, text(&event["type"]).into(), text(&event["reason"]).into(), object, text(&event["message"]).trim().replace('\n', " ")];
    if namespaces {
        row.insert(0, text(&event["metadata"]["namespace"]).into());
    }
    row
}

/// The rows of a list of events, oldest first.
pub fn rows(list: &Value, namespaces: bool) -> Vec<Vec<String>> {
    let now = SystemClock.now();
    let mut events: Vec<&Value> = list["items"].as_array().into_iter().flatten().collect();
    events.sort_by_key(|e| seen(e));
    events.into_iter().map(|e| cells(e, now, namespaces)).collect()
}

pub async fn run(args: &Events) -> Result<()> {
    let ctx = Ctx::connect(&args.target)?;
    let namespace = if args.all_namespaces { "" } else { ctx.namespace.as_str() };
    let about = match &args.about {
        Some(word) => {
            let n = named(word, None)?;
            format!("involvedObject.kind={},involvedObject.name={}", n.row.kind, n.name)
        }
        None => String::new(),
    };
    let path = path_in(row("events")?, namespace, "");
    let list = ctx.client.get_path(&(path.clone() + &query(&[("fieldSelector", &about)]))).await?;
    let rows = rows(&list, args.all_namespaces);
    let mut header: Vec<String> = HEADER.map(String::from).into();
    if args.all_namespaces {
        header.insert(0, "NAMESPACE".into());
    }
    if rows.is_empty() && !args.watch {
        eprintln!("No events.");
        return Ok(());
    }
    output::print(&output::columns(Some(&header), &rows));
    if !args.watch {
        return Ok(());
    }
    let from = text(&list["metadata"]["resourceVersion"]);
    let watch = path + &query(&[("watch", "1"), ("resourceVersion", from), ("fieldSelector", &about)]);
    let mut lines = client::Lines::new(ctx.client.stream(&watch).await?);
    while let Some(line) = lines.next().await {
        let event: Value = serde_json::from_slice(&line?)?;
        if matches!(text(&event["type"]), "ADDED" | "MODIFIED") {
            output::print(&output::columns(None, &[cells(&event["object"], SystemClock.now(), args.all_namespaces)]));
        }
    }
    Ok(())
}
