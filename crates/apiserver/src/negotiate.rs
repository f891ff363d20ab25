//! Content negotiation: what a client accepts, and in what form a body came.
//!
//! Source: Kubernetes' API concepts, "Alternate representations of resources". Answers are JSON or YAML; protobuf is
//! read but not written, which every client of Kubernetes survives (it lists JSON as its second choice).

use api::{Reason, Status};
use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT};

use crate::request::Query;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    Json,
    Yaml,
}

/// How objects are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    Object,
    Table,
    /// `PartialObjectMetadata` and its list.
    Metadata,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    pub wire: Wire,
    pub view: View,
    pub pretty: bool,
    pub gzip: bool,
}

impl Format {
    pub const JSON: Format = Format { wire: Wire::Json, view: View::Object, pretty: false, gzip: false };

    pub fn content_type(&self) -> &'static str {
        match self.wire {
            Wire::Json => "application/json",
            Wire::Yaml => "application/yaml",
        }
    }
}

/// One media range of an Accept header.
#[derive(Debug, PartialEq)]
pub struct Clause<'a> {
    pub media: &'a str,
    params: Vec<(&'a str, &'a str)>,
    q: f32,
}

impl Clause<'_> {
    pub fn param(&self, key: &str) -> &str {
        self.params.iter().find(|(k, _)| *k == key).map_or("", |(_, v)| v)
    }
}

/// Parses an Accept header, best first; equal weights keep their order.
pub fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut all: Vec<Clause> = Vec::new();
    for part in header.split(',') {
        let mut pieces = part.split(';').map(str::trim);
        let media = pieces.next().unwrap_or_default();
        let params: Vec<(&str, &str)> =
            pieces.filter_map(|p| p.split_once('=')).map(|(k, v)| (k.trim(), v.trim().trim_matches('"'))).collect();
        let q = params.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse().ok()).unwrap_or(1.0);
        if !media.is_empty() && q > 0.0 {
            all.push(Clause { media, params, q });
        }
    }
    all.sort_by(|a, b| b.q.total_cmp(&a.q));
    all
}

fn header(headers: &HeaderMap, name: http::HeaderName) -> &str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    header(headers, ACCEPT_ENCODING).split(',').any(|e| e.trim().split(';').next() == Some("gzip"))
}

/// Chooses the answer's form. `views` says whether Table and metadata can be made of it.
pub fn format(headers: &HeaderMap, query: &Query, views: bool) -> Result<Format, Status> {
    let accept = header(headers, ACCEPT);
    let agent = header(headers, USER_AGENT);
    let human = ["curl", "Wget", "Mozilla/5.0"].iter().any(|h| agent.starts_with(h));
    let mut pretty = query.get("pretty").map_or(human, |_| query.flag("pretty"));
    let gzip = accepts_gzip(headers);
    if accept.is_empty() {
        return Ok(Format { pretty, gzip, ..Format::JSON });
    }
    for clause in clauses(accept) {
        let wire = match clause.media {
            "application/json" | "application/*" | "*/*" => Wire::Json,
            "application/yaml" => Wire::Yaml,
            _ => continue,
        };
        let view = match (clause.param("as"), clause.param("v"), clause.param("g")) {
            ("", "", "") => View::Object,
            ("Table", "v1" | "v1beta1", "meta.k8s.io") if views => View::Table,
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "v1" | "v1beta1", "meta.k8s.io") if views => View::Metadata,
            _ => continue,
        };
        pretty |= clause.param("pretty") == "1";
        return Ok(Format { wire, view, pretty, gzip });
    }
    let list = "application/json, application/yaml";
    Err(Status::new(Reason::NotAcceptable, format!("only the following media types are accepted: {list}")))
}

/// The media type of a body, without parameters; empty when there is none.
pub fn media_type(headers: &HeaderMap) -> &str {
    header(headers, CONTENT_TYPE).split(';').next().unwrap_or_default().trim()
}

fn unsupported(got: &str, accepted: &str) -> Status {
    let message = format!("the body of the request was in an unknown format ({got:?}) - accepted media types include: {accepted}");
    Status::new(Reason::UnsupportedMediaType, message)
}

/// The patches there are, by media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchKind {
    Json,
    Merge,
    Strategic,
    Apply,
}

pub fn patch_kind(headers: &HeaderMap) -> Result<PatchKind, Status> {
    match media_type(headers) {
        "application/json-patch+json" => Ok(PatchKind::Json),
        "application/merge-patch+json" => Ok(PatchKind::Merge),
        "application/strategic-merge-patch+json" => Ok(PatchKind::Strategic),
        "application/apply-patch+yaml" => Ok(PatchKind::Apply),
        other => {
            let all = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";
            Err(unsupported(other, all))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(value: &str) -> Result<(Wire, View), u16> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, value.parse().unwrap());
        format(&headers, &Query::default(), true).map(|f| (f.wire, f.view)).map_err(|s| s.code)
    }

    #[test]
    fn takes_the_first_form_it_can_write() {
        let kubectl_get = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accept(kubectl_get), Ok((Wire::Json, View::Table)));
        assert_eq!(accept("application/vnd.kubernetes.protobuf,application/json"), Ok((Wire::Json, View::Object)));
        assert_eq!(
            accept(
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
            ),
            Ok((Wire::Json, View::Metadata))
        );
        assert_eq!(accept("application/json;q=0.5,application/yaml"), Ok((Wire::Yaml, View::Object)));
        assert_eq!(accept("text/html,*/*;q=0.1"), Ok((Wire::Json, View::Object)));
        assert_eq!(accept("text/html"), Err(406));
        assert_eq!(accept("application/json;as=Nonsense;v=v1;g=meta.k8s.io"), Err(406));
    }
}
