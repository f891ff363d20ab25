//! The forms in which objects are shown: themselves, `PartialObjectMetadata`, `Table`.

use api::printer::{self, Include, ListMeta};
use api::{Status, Value};
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::json;

use super::Cx;
use super::read::Page;
use crate::negotiate::View;
use crate::respond::{self, Body};

/// One object in the form that was asked for.
pub fn show(cx: &Cx, code: StatusCode, object: &Value) -> Result<Response<Body>, Status> {
    let shown = one(cx, object)?.map_or_else(|| object.to_string(), |v| v.to_string());
    Ok(respond::document(code, &cx.format, vec![Bytes::from(shown)]))
}

/// The object's other form; `None` when it is shown as itself.
pub fn one(cx: &Cx, object: &Value) -> Result<Option<Value>, Status> {
    let revision = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    Ok(match cx.format.view {
        View::Object => None,
        View::Metadata => Some(printer::partial(object)),
        View::Table => Some(table(cx, [object], ListMeta { resource_version: revision, ..ListMeta::default() })?),
    })
}

fn table<'v>(cx: &Cx, objects: impl IntoIterator<Item = &'v Value>, list: ListMeta) -> Result<Value, Status> {
    let include = Include::parse(cx.query.get("includeObject"))?;
    Ok(printer::table(cx.row, objects, cx.server.config.clock.now(), include, list))
}

pub fn list(cx: &Cx, page: &Page) -> Result<Response<Body>, Status> {
    let objects: Vec<Value> = page.objects.iter().map(|o| cx.value_of(o)).collect::<Result<_, _>>()?;
    let revision = page.revision.to_string();
    let meta = ListMeta { resource_version: &revision, continue_token: &page.continue_token, remaining: page.remaining.map(|n| n as u64) };
    let shown = match cx.format.view {
        View::Table => table(cx, &objects, meta)?,
        View::Metadata => printer::partial_list(&objects, meta),
        View::Object => {
            let kind = format!("{}List", cx.row.kind);
            json!({ "kind": kind, "apiVersion": cx.row.api_version(), "metadata": meta.to_value(), "items": objects })
        }
    };
    Ok(respond::document(StatusCode::OK, &cx.format, vec![Bytes::from(shown.to_string())]))
}
