//! The one path of every kind: get, list, watch, create, update, patch, delete, over its row.
//!
//! Knows rows, metadata and revisions. Does not know any kind: what one needs beyond its row is in `admission` or
//! `subresources`.

mod create;
mod delete;
mod meta;
mod patch;
mod read;
mod update;
mod view;
mod watch;

use std::sync::Arc;

use api::schema::Strictness;
use api::{Reason, Status, Value};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use ports::Identity;
use store::cache::Object;

use crate::Server;
use crate::admission::Admission;
use crate::negotiate::Format;
use crate::request::{Info, Query};
use crate::respond::Body;
use crate::server::RowRef;

pub use delete::{Options as DeleteOptions, remove};
pub use patch::patch;
pub use update::{Change, Operation, write};
pub use view::show;
pub use watch::watch;

/// One request to one kind.
pub struct Cx<'a> {
    pub server: &'a Arc<Server>,
    pub who: Identity,
    pub info: &'a Info,
    pub query: &'a Query,
    pub row: RowRef,
    pub format: Format,
    /// What the response's `Warning` headers say.
    pub warnings: Vec<String>,
}

impl Cx<'_> {
    pub fn key(&self) -> String {
        self.row.key(self.namespace(), &self.info.name)
    }

    /// Empty for cluster-scoped kinds; the path of a namespace names it twice.
    pub fn namespace(&self) -> &str {
        if self.row.namespaced() { &self.info.namespace } else { "" }
    }

    pub fn not_found(&self) -> Status {
        Status::not_found(self.row.group, self.row.plural, &self.info.name)
    }

    /// The object that the URL names.
    pub fn existing(&self) -> Result<Arc<Object>, Status> {
        self.server.state.get(&self.key()).ok_or_else(|| self.not_found())
    }

    pub fn value_of(&self, object: &Object) -> Result<Value, Status> {
        let mut value = serde_json::from_slice(&object.json()).map_err(Status::internal)?;
        if let Some(alias) = self.row.alias {
            (alias.from_storage)(&mut value);
        }
        Ok(value)
    }

    pub fn now(&self) -> String {
        base::rfc3339(self.server.config.clock.now())
    }

    /// Who changes fields: the parameter, else what the client calls itself.
    pub fn field_manager(&self, headers: &HeaderMap) -> Result<String, Status> {
        if let Some(name) = self.query.text("fieldManager") {
            if name.len() > 128 || name.chars().any(|c| c.is_control()) {
                return Err(Status::bad_request("fieldManager: Invalid value: must be at most 128 printable characters"));
            }
            return Ok(name.to_string());
        }
        let agent = headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let name: String = agent.split(['/', ' ']).next().unwrap_or_default().chars().take(128).collect();
        Ok(if name.is_empty() { "unknown".into() } else { name })
    }

    pub fn strictness(&self) -> Result<Strictness, Status> {
        Strictness::parse(self.query.get("fieldValidation"))
    }

    /// Structure: unknown fields, types, Go's empty values. `duplicates` come from decoding.
    pub fn check(&mut self, object: &mut Value, strictness: Strictness, duplicates: &[String]) -> Result<(), Status> {
        let row = self.row;
        if let Some(schema) = api::schema::for_kind(row.group, row.version, row.kind) {
            let found = api::schema::check(schema, object);
            self.warnings.extend(found.into_result(strictness, &row.api_version(), row.kind, duplicates)?);
        }
        Ok(())
    }

    /// `apiVersion` and `kind` must be the URL's; what is left out is filled in.
    pub fn check_kind(&self, object: &mut Value) -> Result<(), Status> {
        let (api_version, kind) = (self.row.api_version(), self.row.kind);
        for (field, wanted, what) in [("apiVersion", api_version.as_str(), "API version"), ("kind", kind, "kind")] {
            match object[field].as_str().unwrap_or_default() {
                "" => object[field] = wanted.into(),
                given if given == wanted => {}
                given => {
                    let message = format!("the {what} in the data ({given}) does not match the expected {what} ({wanted})");
                    return Err(Status::bad_request(message));
                }
            }
        }
        if object["metadata"].is_null() {
            object["metadata"] = Value::Object(Default::default());
        }
        Ok(())
    }

    pub fn admission<'c>(&'c self, old: Option<&'c Value>) -> Admission<'c> {
        Admission { server: self.server, who: &self.who, row: self.row, namespace: self.namespace(), old }
    }

    pub fn validate(&self, new: &Value, old: Option<&Value>) -> Result<(), Status> {
        let causes = (self.row.hooks.validate)(new, old);
        if causes.is_empty() {
            return Ok(());
        }
        let name = new["metadata"]["name"].as_str().unwrap_or_default();
        Err(Status::invalid(self.row.group, self.row.kind, name, causes))
    }

    pub fn conflict(&self, why: &str) -> Status {
        Status::conflict(self.row.group, self.row.plural, &self.info.name, why)
    }
}

pub const MODIFIED: &str = "the object has been modified; please apply your changes to the latest version and try again";

/// A refusal of the store that is not a conflict.
pub fn store_failed(error: store::Error) -> Status {
    match error {
        store::Error::Compacted(_) => Status::expired(error.to_string()),
        store::Error::ReadOnly(_) | store::Error::Closed => Status::new(Reason::ServiceUnavailable, error.to_string()),
        other => Status::internal(other),
    }
}

pub async fn serve(cx: &mut Cx<'_>, headers: &HeaderMap, body: Bytes) -> Result<Response<Body>, Status> {
    match cx.info.verb.as_str() {
        "get" => {
            read::at_least(cx).await?;
            let object = cx.existing()?;
            if cx.format == (Format { gzip: cx.format.gzip, ..Format::JSON }) && cx.row.alias.is_none() {
                return Ok(crate::respond::document(StatusCode::OK, &cx.format, vec![object.json()]));
            }
            let value = cx.value_of(&object)?;
            show(cx, StatusCode::OK, &value)
        }
        "list" => read::list(cx).await,
        "create" => create::create(cx, headers, body).await,
        "update" => update::update(cx, headers, body).await,
        "patch" => patch::patch(cx, headers, body).await,
        "delete" => delete::delete(cx, headers, body).await,
        "deletecollection" => delete::collection(cx, headers, body).await,
        _ => Err(crate::request::not_found()),
    }
}
