//! `staithe get`: the server's own tables, or documents.

use anyhow::{Result, bail};
use api::Value;
use api::resource::Resource;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::BodyExt;
use serde_json::json;

use crate::cli::{Get, Output};
use crate::context::{Ctx, named, path_in, query, row};
use crate::output;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

pub async fn run(args: &Get) -> Result<()> {
    let ctx = Ctx::connect(&args.target)?;
    let namespace = if args.all_namespaces { "" } else { ctx.namespace.as_str() };
    let mut wanted: Vec<(&'static Resource, Vec<String>)> = Vec::new();
    if args.what.contains('/') {
        for word in std::iter::once(&args.what).chain(&args.names) {
            let n = named(word, None)?;
            wanted.push((n.row, vec![n.name]));
        }
    } else {
        for word in args.what.split(',') {
            let rows: Vec<&'static Resource> = match word {
                "all" => api::table::all().iter().map(|r| &**r).filter(|r| r.categories.contains(&"all")).collect(),
                _ => vec![row(word)?],
            };
            wanted.extend(rows.into_iter().map(|r| (r, args.names.clone())));
        }
    }
    if args.watch {
        if wanted.len() != 1 || wanted[0].1.len() > 1 {
            bail!("--watch takes one type and at most one name");
        }
        return watch(&ctx, args, namespace, wanted[0].0, wanted[0].1.first().map(String::as_str)).await;
    }
    match args.output {
        None | Some(Output::Wide) => tables(&ctx, args, namespace, &wanted).await,
        Some(form) => documents(&ctx, args, namespace, &wanted, form).await,
    }
}

fn selectors(args: &Get) -> String {
    query(&[("labelSelector", &args.selector), ("fieldSelector", &args.field_selector)])
}

pub async fn accept(ctx: &Ctx, path: &str, accept: &str) -> Result<http::Response<client::Body>> {
    let request = Request::builder().method(Method::GET).uri(path).header(header::ACCEPT, accept).body(Bytes::new())?;
    Ok(ctx.client.send_request(request).await?)
}

async fn tables(ctx: &Ctx, args: &Get, namespace: &str, wanted: &[(&'static Resource, Vec<String>)]) -> Result<()> {
    let many = wanted.len() > 1;
    let mut out = String::new();
    for (row, names) in wanted {
        let paths: Vec<String> = match names.as_slice() {
            [] => vec![path_in(row, namespace, "") + &selectors(args)],
            names => names.iter().map(|n| path_in(row, namespace, n)).collect(),
        };
        let mut merged: Option<Value> = None;
        for path in paths {
            let body = accept(ctx, &path, TABLE).await?.into_body().collect().await?.to_bytes();
            let mut table: Value = serde_json::from_slice(&body)?;
            match &mut merged {
                None => merged = Some(table),
                Some(first) => {
                    if let (Some(rows), Some(more)) = (first["rows"].as_array_mut(), table["rows"].as_array_mut()) {
                        rows.append(more);
                    }
                }
            }
        }
        let mut table = merged.unwrap_or_default();
        if table["rows"].as_array().is_none_or(Vec::is_empty) {
            continue;
        }
        if many {
            for entry in table["rows"].as_array_mut().into_iter().flatten() {
                let name = entry["cells"][0].as_str().unwrap_or_default();
                entry["cells"][0] = format!("{}/{name}", row.singular).into();
            }
        }
        if !out.is_empty() {
            out.push('\n');
        }
        let wide = args.output == Some(Output::Wide);
        out += &output::table(&table, wide, !args.no_headers, args.all_namespaces && row.namespaced());
    }
    if out.is_empty() {
        match namespace {
            "" => eprintln!("No resources found"),
            ns => eprintln!("No resources found in {ns} namespace."),
        }
    }
    output::print(&out);
    Ok(())
}

async fn documents(ctx: &Ctx, args: &Get, namespace: &str, wanted: &[(&'static Resource, Vec<String>)], form: Output) -> Result<()> {
    let mut items = Vec::new();
    let mut single = true;
    for (row, names) in wanted {
        single &= names.len() == 1;
        for name in names {
            items.push(ctx.client.get_path(&path_in(row, namespace, name)).await?);
        }
        if names.is_empty() {
            let list = ctx.client.get_path(&(path_in(row, namespace, "") + &selectors(args))).await?;
            for mut item in list["items"].as_array().cloned().unwrap_or_default() {
                // Items of a list carry no type of their own.
                item["apiVersion"] = row.api_version().into();
                item["kind"] = row.kind.into();
                items.push(item);
            }
        }
    }
    if single && items.len() == 1 || form == Output::Name {
        for item in &items {
            output::print(&output::document(item, form)?);
        }
        return Ok(());
    }
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items, "metadata": {} });
    output::print(&output::document(&list, form)?);
    Ok(())
}

/// Prints the table, then a line for each change.
async fn watch(ctx: &Ctx, args: &Get, namespace: &str, row: &'static Resource, name: Option<&str>) -> Result<()> {
    let by_name = name.map(|n| format!("metadata.name={n}")).unwrap_or_default();
    let fields = [args.field_selector.as_str(), by_name.as_str()].iter().filter(|s| !s.is_empty()).copied().collect::<Vec<_>>().join(",");
    let path = path_in(row, namespace, "")
        + &query(&[("watch", "1"), ("labelSelector", &args.selector), ("fieldSelector", &fields), ("allowWatchBookmarks", "true")]);
    let mut lines = client::Lines::new(accept(ctx, &path, TABLE).await?.into_body());
    let wide = args.output == Some(Output::Wide);
    let mut header: Option<Value> = None;
    let mut first_line = true;
    while let Some(line) = lines.next().await {
        let event: Value = serde_json::from_slice(&line?)?;
        let mut object = event["object"].clone();
        match (event["type"].as_str(), args.output) {
            (Some("BOOKMARK"), _) => continue,
            (Some("ERROR"), _) => bail!("{}", object["message"].as_str().unwrap_or("the watch ended with an error")),
            (_, Some(form @ (Output::Json | Output::Yaml | Output::Name))) => {
                let full = object["rows"][0]["object"].take();
                output::print(&output::document(&full, form)?);
                continue;
            }
            _ => {}
        }
        if object["columnDefinitions"].as_array().is_some_and(|c| !c.is_empty()) {
            header = Some(object["columnDefinitions"].clone());
        } else if let Some(columns) = &header {
            object["columnDefinitions"] = columns.clone();
        }
        let first = std::mem::take(&mut first_line);
        output::print(&output::table(&object, wide, first && !args.no_headers, args.all_namespaces && row.namespaced()));
    }
    Ok(())
}
