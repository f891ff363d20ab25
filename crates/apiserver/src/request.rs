//! A request's path and query, taken apart once: what upstream calls RequestInfo, and the typed query parameters.
//!
//! Knows the shape of Kubernetes' URLs. Does not know which groups or kinds exist.

use api::Status;
use percent_encoding::percent_decode_str;
use ports::Attributes;

/// What a URL names. Empty strings stand for what it does not name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Info {
    /// Whether the path is below `/api/VERSION/RESOURCE` or `/apis/GROUP/VERSION/RESOURCE`.
    pub is_resource: bool,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub name: String,
    pub subresource: String,
    /// The one name that a list, watch or deletion of many is narrowed to (`metadata.name=x`), for RBAC's `resourceNames`.
    pub only: String,
    /// What follows the subresource: the path of a proxy request, without its leading slash.
    pub rest: String,
    /// RBAC's verb: `get list watch create update patch delete deletecollection`, or the lower-case method.
    pub verb: String,
    /// The decoded path.
    pub path: String,
}

impl Info {
    /// Takes a method, a path and a query apart. Fails on paths that no object can have.
    pub fn parse(method: &http::Method, raw_path: &str, query: &Query) -> Result<Info, Status> {
        let path = percent_decode_str(raw_path).decode_utf8().map_err(|_| Status::bad_request("the path is not UTF-8"))?.into_owned();
        let mut info = Info { verb: method.as_str().to_lowercase(), path, ..Info::default() };
        let raw: Vec<&str> = raw_path.trim_matches('/').split('/').collect();
        let mut parts = Vec::with_capacity(raw.len());
        for part in &raw {
            let part = percent_decode_str(part).decode_utf8().map_err(|_| Status::bad_request("the path is not UTF-8"))?;
            parts.push(part.into_owned());
        }
        let mut rest = match parts.first().map(String::as_str) {
            Some("api") if parts.len() >= 3 => {
                info.version = parts[1].clone();
                2
            }
            Some("apis") if parts.len() >= 4 => {
                info.group = parts[1].clone();
                info.version = parts[2].clone();
                3
            }
            _ => return Ok(info),
        };
        info.is_resource = true;
        let mut watch_prefix = false;
        if parts[rest] == "watch" && parts.len() > rest + 1 {
            watch_prefix = true;
            rest += 1;
        }
        info.place(&parts[rest..], &raw[rest..])?;
        info.verb = verb(method, &info.name, watch_prefix || query.watch()).to_string();
        if matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
            info.only = if info.name.is_empty() { query.name_in_field_selector() } else { info.name.clone() };
        }
        Ok(info)
    }

    fn place(&mut self, parts: &[String], raw: &[&str]) -> Result<(), Status> {
        let mut parts = parts;
        let mut skipped = 0;
        if parts[0] == "namespaces" && parts.len() > 1 {
            self.namespace = parts[1].clone();
            // `status` and `finalize` are subresources of the namespace itself, everything else lies in it.
            if parts.len() > 2 && !matches!(parts[2].as_str(), "status" | "finalize") {
                parts = &parts[2..];
                skipped = 2;
            }
        }
        self.resource = parts[0].clone();
        self.name = parts.get(1).cloned().unwrap_or_default();
        self.subresource = parts.get(2).cloned().unwrap_or_default();
        if parts.len() > 3 {
            self.rest = raw[skipped + 3..].join("/");
            if self.subresource != "proxy" {
                return Err(not_found());
            }
        }
        for (what, value) in [("namespace", &self.namespace), ("name", &self.name)] {
            if !value.is_empty() && !is_path_segment(value) {
                return Err(Status::bad_request(format!(
                    "invalid {what} {value:?} in the path: may not be '.', '..' or contain '/' or '%'"
                )));
            }
        }
        Ok(())
    }

    pub fn attributes(&self) -> Attributes {
        if !self.is_resource {
            return Attributes { verb: self.verb.clone(), path: self.path.clone(), ..Attributes::default() };
        }
        Attributes {
            verb: self.verb.clone(),
            group: self.group.clone(),
            resource: self.resource.clone(),
            subresource: self.subresource.clone(),
            namespace: self.namespace.clone(),
            name: if self.name.is_empty() { self.only.clone() } else { self.name.clone() },
            path: String::new(),
        }
    }
}

pub fn not_found() -> Status {
    Status::new(api::Reason::NotFound, "the server could not find the requested resource")
}

fn verb(method: &http::Method, name: &str, watch: bool) -> &'static str {
    match (method.as_str(), name.is_empty()) {
        ("GET" | "HEAD", _) if watch => "watch",
        ("GET" | "HEAD", false) => "get",
        ("GET" | "HEAD", true) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", false) => "delete",
        ("DELETE", true) => "deletecollection",
        _ => "",
    }
}

fn is_path_segment(s: &str) -> bool {
    s != "." && s != ".." && !s.contains(['/', '%'])
}

/// The query string, decoded; keys may repeat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(raw: &str) -> Query {
        let decode = |s: &str| percent_decode_str(&s.replace('+', " ")).decode_utf8_lossy().into_owned();
        Query(
            raw.split('&')
                .filter(|p| !p.is_empty())
                .map(|p| p.split_once('=').unwrap_or((p, "")))
                .map(|(k, v)| (decode(k), decode(v)))
                .collect(),
        )
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// The value where there is one that is not empty.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.get(key).filter(|v| !v.is_empty())
    }

    /// Go's `strconv.ParseBool`, and a bare key is true; what is neither is false, as upstream's conversion has it.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| matches!(v, "" | "1" | "t" | "T" | "true" | "TRUE" | "True"))
    }

    pub fn number(&self, key: &str) -> Result<Option<i64>, Status> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let wrong = || Status::bad_request(format!("invalid query parameter {key}={text:?}: must be a whole number"));
        text.parse().map(Some).map_err(|_| wrong())
    }

    pub fn watch(&self) -> bool {
        self.get("watch").is_some_and(|v| !matches!(v, "false" | "0" | "False" | "FALSE" | "f" | "F"))
    }

    fn name_in_field_selector(&self) -> String {
        let Some(selector) = self.text("fieldSelector") else { return String::new() };
        let name = selector.split(',').find_map(|t| t.trim().strip_prefix("metadata.name="));
        name.map(|n| n.trim_start_matches('=').to_string()).filter(|n| is_path_segment(n)).unwrap_or_default()
    }

    /// `dryRun=All`; anything else that is not empty is an error.
    pub fn dry_run(&self) -> Result<bool, Status> {
        let mut dry = false;
        for value in self.all("dryRun") {
            match value {
                "All" => dry = true,
                "" => {}
                other => {
                    let cause = api::Cause::not_supported("dryRun", &other.into(), &["All"]);
                    return Err(Status::invalid("meta.k8s.io", "CreateOptions", "", vec![cause]));
                }
            }
        }
        Ok(dry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, uri: &str) -> Info {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        Info::parse(&method.parse().unwrap(), path, &Query::parse(query)).unwrap()
    }

    #[test]
    fn names_what_urls_name() {
        let table: &[(&str, &str, &str)] = &[
            ("GET", "/api/v1/pods", "list||pods|||"),
            ("GET", "/api/v1/pods?watch=1", "watch||pods|||"),
            ("GET", "/api/v1/watch/namespaces/a/pods", "watch||pods|a||"),
            ("GET", "/api/v1/namespaces", "list||namespaces|||"),
            ("GET", "/api/v1/namespaces/a", "get||namespaces|a|a|"),
            ("PUT", "/api/v1/namespaces/a/finalize", "update||namespaces|a|a|finalize"),
            ("GET", "/api/v1/namespaces/a/pods/p/log", "get||pods|a|p|log"),
            ("DELETE", "/apis/apps/v1/namespaces/a/deployments", "deletecollection|apps|deployments|a||"),
            ("PATCH", "/apis/apps/v1/namespaces/a/deployments/d/scale", "patch|apps|deployments|a|d|scale"),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx", "list||pods|||"),
            ("GET", "/healthz", "get|||||"),
            ("GET", "/apis/apps/v1", "get|||||"),
        ];
        for (method, uri, expect) in table {
            let i = parse(method, uri);
            let got = [&i.verb, &i.group, &i.resource, &i.namespace, &i.name, &i.subresource].map(String::as_str).join("|");
            assert_eq!(&got, expect, "{method} {uri}");
        }
        assert_eq!(parse("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx").attributes().name, "x");
        assert_eq!(parse("GET", "/api/v1/namespaces/a/pods/p:80/proxy/x/y%20z").rest, "x/y%20z");
    }

    #[test]
    fn refuses_paths_that_climb() {
        for path in ["/api/v1/namespaces/a/pods/..", "/api/v1/namespaces/a/pods/a%2Fb", "/api/v1/namespaces/%2e%2e/pods/x"] {
            assert!(Info::parse(&http::Method::GET, path, &Query::default()).is_err(), "{path}");
        }
        assert!(Info::parse(&http::Method::GET, "/api/v1/namespaces/a/pods/p/log/x", &Query::default()).is_err());
    }
}
