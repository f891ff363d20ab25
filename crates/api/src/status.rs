//! Kubernetes' `Status` object: the one error form that users see.
//!
//! Source: `k8s.io/apimachinery/pkg/api/errors` and `metav1.Status`.

use serde::{Deserialize, Serialize};

/// `metav1.StatusReason` values that this server gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    Unknown,
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    NotAcceptable,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    Invalid,
    UnsupportedMediaType,
    RequestEntityTooLarge,
    TooManyRequests,
    Timeout,
    InternalError,
    ServiceUnavailable,
}

impl Reason {
    pub fn code(self) -> u16 {
        use Reason::*;
        match self {
            BadRequest => 400,
            Unauthorized => 401,
            Forbidden => 403,
            NotFound => 404,
            MethodNotAllowed => 405,
            NotAcceptable => 406,
            AlreadyExists | Conflict => 409,
            Gone | Expired => 410,
            RequestEntityTooLarge => 413,
            UnsupportedMediaType => 415,
            Invalid => 422,
            TooManyRequests => 429,
            Unknown | InternalError => 500,
            ServiceUnavailable => 503,
            Timeout => 504,
        }
    }
}

/// One field that is wrong: `metav1.StatusCause`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// `FieldValueRequired`, `FieldValueInvalid`, `FieldValueNotSupported`, `FieldValueDuplicate`, `FieldValueForbidden`,
    /// `FieldValueTooLong`, `FieldValueTypeInvalid`, `FieldManagerConflict` …
    pub reason: String,
    pub message: String,
    pub field: String,
}

impl Cause {
    fn new(reason: &str, field: impl Into<String>, message: String) -> Self {
        Self { reason: reason.into(), message, field: field.into() }
    }

    /// `Required value: detail`
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message = if detail.is_empty() { "Required value".to_string() } else { format!("Required value: {detail}") };
        Self::new("FieldValueRequired", field, message)
    }

    /// `Invalid value: <value>: detail`; strings are quoted, other values are shown as JSON.
    pub fn invalid(field: impl Into<String>, value: &serde_json::Value, detail: &str) -> Self {
        Self::new("FieldValueInvalid", field, format!("Invalid value: {value}: {detail}"))
    }

    /// `Unsupported value: <value>: supported values: "a", "b"`
    pub fn not_supported(field: impl Into<String>, value: &serde_json::Value, supported: &[&str]) -> Self {
        let list = supported.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ");
        Self::new("FieldValueNotSupported", field, format!("Unsupported value: {value}: supported values: {list}"))
    }

    pub fn duplicate(field: impl Into<String>, value: &serde_json::Value) -> Self {
        Self::new("FieldValueDuplicate", field, format!("Duplicate value: {value}"))
    }

    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self::new("FieldValueForbidden", field, format!("Forbidden: {detail}"))
    }

    pub fn too_long(field: impl Into<String>, max_bytes: usize) -> Self {
        Self::new("FieldValueTooLong", field, format!("Too long: may not be more than {max_bytes} bytes"))
    }

    pub fn type_invalid(field: impl Into<String>, value: &serde_json::Value, detail: &str) -> Self {
        Self::new("FieldValueTypeInvalid", field, format!("Invalid value: {value}: {detail}"))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// A failure as the API tells it. Serialises to the JSON body of the response.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    #[serde(default = "unknown")]
    pub reason: Reason,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub details: Option<Details>,
    #[serde(default)]
    pub code: u16,
}

fn unknown() -> Reason {
    Reason::Unknown
}

impl Serialize for Status {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut out = s.serialize_struct("Status", 8)?;
        out.serialize_field("kind", "Status")?;
        out.serialize_field("apiVersion", "v1")?;
        out.serialize_field("metadata", &serde_json::json!({}))?;
        out.serialize_field("status", "Failure")?;
        out.serialize_field("message", &self.message)?;
        out.serialize_field("reason", &self.reason)?;
        if let Some(details) = &self.details {
            out.serialize_field("details", details)?;
        }
        out.serialize_field("code", &self.code)?;
        out.end()
    }
}

/// `deployments.apps`, or `pods` in the core group: how messages name a resource.
fn qualified(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.to_string() } else { format!("{plural}.{group}") }
}

impl Status {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), details: None, code: reason.code() }
    }

    fn about(reason: Reason, group: &str, plural: &str, name: &str, message: String) -> Self {
        let details = Details { name: name.into(), group: group.into(), kind: plural.into(), ..Details::default() };
        Self { details: Some(details), ..Self::new(reason, message) }
    }

    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        Self::about(Reason::NotFound, group, plural, name, format!("{} {name:?} not found", qualified(group, plural)))
    }

    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        Self::about(Reason::AlreadyExists, group, plural, name, format!("{} {name:?} already exists", qualified(group, plural)))
    }

    /// `why` is usually `the object has been modified; please apply your changes to the latest version and try again`.
    pub fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", qualified(group, plural));
        Self::about(Reason::Conflict, group, plural, name, message)
    }

    pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Self {
        let subject = if name.is_empty() { qualified(group, plural) } else { format!("{} {name:?}", qualified(group, plural)) };
        Self::about(Reason::Forbidden, group, plural, name, format!("{subject} is forbidden: {why}"))
    }

    /// 422 with one cause a field. `kind` is the Kind, not the plural, as upstream has it.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> Self {
        let each: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let list = if each.len() == 1 { each[0].clone() } else { format!("[{}]", each.join(", ")) };
        let details = Details { name: name.into(), group: group.into(), kind: kind.into(), causes, ..Details::default() };
        let message = format!("{} {name:?} is invalid: {list}", qualified(group, kind));
        Self { details: Some(details), ..Self::new(Reason::Invalid, message) }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// 410: the revision asked for is no longer held. Clients list again.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    pub fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(Reason::InternalError, format!("Internal error occurred: {message}"))
    }

    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    pub fn is_not_found(&self) -> bool {
        self.reason == Reason::NotFound
    }

    pub fn is_conflict(&self) -> bool {
        self.reason == Reason::Conflict
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason == Reason::AlreadyExists
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_kubectl_expects_to_read() {
        assert_eq!(Status::not_found("apps", "deployments", "web").message, r#"deployments.apps "web" not found"#);
        let cause = Cause::invalid("spec.replicas", &(-1).into(), "must be greater than or equal to 0");
        let s = Status::invalid("apps", "Deployment", "web", vec![cause]);
        assert_eq!(s.message, r#"Deployment.apps "web" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0"#);
        let json = serde_json::to_value(&s).unwrap();
        assert_eq!(json["kind"], "Status");
        assert_eq!(json["code"], 422);
        assert_eq!(json["details"]["causes"][0]["field"], "spec.replicas");
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), s);
    }
}
