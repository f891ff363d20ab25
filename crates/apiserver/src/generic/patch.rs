//! `PATCH`: JSON patch, merge patch, strategic merge patch and server-side apply over the same write.

use api::apply::apply;
use api::{Reason, Status, Value};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};

use super::create::insert;
use super::update::{Change, Operation, write, writer};
use super::{Cx, meta, show};
use crate::limits;
use crate::negotiate::{self, PatchKind};
use crate::respond::Body;
use crate::subresources::scale;

/// A patch as it came, with what its kind needs.
struct Patch {
    kind: PatchKind,
    body: Value,
    duplicates: Vec<String>,
    force: bool,
}

pub async fn patch(cx: &mut Cx<'_>, headers: &HeaderMap, body: Bytes) -> Result<Response<Body>, Status> {
    let kind = negotiate::patch_kind(headers)?;
    let manager = match (kind, cx.query.text("fieldManager")) {
        (PatchKind::Apply, None) => return Err(Status::bad_request("fieldManager is required for apply patch")),
        _ => cx.field_manager(headers)?,
    };
    let dry_run = cx.query.dry_run()?;
    let force = cx.query.flag("force");
    if force && kind != PatchKind::Apply {
        return Err(Status::bad_request("force: Forbidden: may not be specified for non-apply patch"));
    }
    let decoded = match kind {
        PatchKind::Apply => api::decode::yaml(&body)?,
        _ => api::decode::json(&body)?,
    };
    let operations = decoded.object.as_array().map_or(0, Vec::len);
    if kind == PatchKind::Json && operations > limits::PATCH_OPERATIONS_MAX {
        let message = format!("The allowed maximum operations in a JSON patch is {}, got {operations}", limits::PATCH_OPERATIONS_MAX);
        return Err(Status::new(Reason::RequestEntityTooLarge, message));
    }
    let patch = Patch { kind, body: decoded.object, duplicates: decoded.duplicates, force };
    let info = cx.info;
    let operation = if kind == PatchKind::Apply { Operation::Apply } else { Operation::Update };
    let change = Change { manager: &manager, operation, subresource: &info.subresource, dry_run };
    if info.subresource == "scale" {
        return scale::patch(cx, &change, |cx, old| patch.of(cx, &change, Some(old))).await;
    }
    if kind == PatchKind::Apply && info.subresource.is_empty() && cx.server.state.get(&cx.key()).is_none() {
        return create_by_apply(cx, &patch, &change).await;
    }
    let written = write(cx, &change, |cx, old| patch.of(cx, &change, Some(old))).await?;
    show(cx, StatusCode::OK, &written)
}

async fn create_by_apply(cx: &mut Cx<'_>, patch: &Patch, change: &Change<'_>) -> Result<Response<Body>, Status> {
    if !patch.body["metadata"]["uid"].as_str().unwrap_or_default().is_empty() {
        return Err(cx.not_found());
    }
    let mut object = patch.of(cx, change, None)?;
    if meta::text(&object, "name") != cx.info.name {
        let (name, url) = (meta::text(&object, "name"), &cx.info.name);
        return Err(Status::bad_request(format!("the name of the object ({name}) does not match the name on the URL ({url})")));
    }
    // Not a revision of an object that is not there.
    meta::drop(&mut object, &["resourceVersion"]);
    let created = insert(cx, object, change).await?;
    show(cx, StatusCode::CREATED, &created)
}

impl Patch {
    /// The patched object, its structure checked.
    fn of(&self, cx: &mut Cx, change: &Change, old: Option<&Value>) -> Result<Value, Status> {
        let strictness = cx.strictness()?;
        let schema = api::schema::for_kind(cx.row.group, cx.row.version, cx.row.kind);
        let nothing = Value::Object(Default::default());
        let live = old.unwrap_or(&nothing);
        let mut new = match self.kind {
            PatchKind::Json => api::patch::json(live, &self.body)?,
            PatchKind::Merge => api::patch::merge(live, &self.body)?,
            PatchKind::Strategic => api::patch::strategic(schema, live, &self.body)?,
            PatchKind::Apply => {
                let mut config = self.body.clone();
                cx.check(&mut config, strictness, &self.duplicates)?;
                return apply(&writer(cx, change, &cx.row.api_version()), old, &config, self.force);
            }
        };
        cx.check(&mut new, strictness, &self.duplicates)?;
        Ok(new)
    }
}
