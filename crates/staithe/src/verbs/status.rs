//! `staithe status`: one look at the environment.

use anyhow::Result;
use api::Value;

use crate::cli::Status;
use crate::context::{Ctx, path_in, row, text};
use crate::output;

pub async fn run(args: &Status) -> Result<()> {
    let ctx = Ctx::connect(&args.target)?;
    let version = ctx.client.get_path("/version").await?;
    let mut rows = vec![vec!["API".to_string(), format!("{} at {}", text(&version["gitVersion"]), ctx.transport.server())]];
    let nodes = ctx.client.get_path(&path_in(row("nodes")?, "", "")).await?;
    for node in nodes["items"].as_array().into_iter().flatten() {
        let conditions = node["status"]["conditions"].as_array();
        let ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
        let state = if ready { "ready" } else { "NOT READY" };
        rows.push(vec!["Node".into(), format!("{} {state}", text(&node["metadata"]["name"]))]);
    }
    let deployments = ctx.client.get_path(&path_in(row("deployments")?, "", "")).await?;
    for d in deployments["items"].as_array().into_iter().flatten() {
        let number = |v: &Value| v.as_i64().unwrap_or(0);
        let (available, wanted) = (number(&d["status"]["availableReplicas"]), d["spec"]["replicas"].as_i64().unwrap_or(1));
        let mark = if available < wanted { "  <- fewer than wanted" } else { "" };
        let name = format!("{}/{}", text(&d["metadata"]["namespace"]), text(&d["metadata"]["name"]));
        rows.push(vec!["Deployment".into(), format!("{name} {available}/{wanted}{mark}")]);
    }
    output::print(&output::columns(None, &rows));
    Ok(())
}
