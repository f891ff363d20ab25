//! Counters of the server itself, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;

use http::StatusCode;

use crate::request::Info;

/// `(verb, group, resource, subresource, code)`; bounded, for unknown resources are counted together.
type Key = (String, String, String, String, u16);

/// Distinct counters; what comes beyond is not counted.
const SERIES_MAX: usize = 10_000;

#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Key, u64>>,
}

impl Metrics {
    pub fn count(&self, info: &Info, code: StatusCode) {
        let known = info.is_resource && api::table::by_path(&info.group, &info.version, &info.resource).is_some();
        let (group, resource, sub) = if known { (&*info.group, &*info.resource, &*info.subresource) } else { ("", "", "") };
        let key = (info.verb.clone(), group.into(), resource.into(), sub.into(), code.as_u16());
        let mut requests = self.requests.lock().unwrap_or_else(|e| e.into_inner());
        if requests.len() < SERIES_MAX || requests.contains_key(&key) {
            *requests.entry(key).or_default() += 1;
        }
    }

    pub fn render(&self, gauges: &[(&str, &str, f64)]) -> String {
        let mut out =
            String::from("# HELP apiserver_request_total Requests by verb, resource and answer.\n# TYPE apiserver_request_total counter\n");
        for ((verb, group, resource, sub, code), n) in self.requests.lock().unwrap_or_else(|e| e.into_inner()).iter() {
            let verb = verb.to_uppercase().replace(['"', '\\', '\n'], "");
            let _ = writeln!(
                out,
                "apiserver_request_total{{code=\"{code}\",group=\"{group}\",resource=\"{resource}\",subresource=\"{}\",verb=\"{verb}\"}} {n}",
                sub.replace(['"', '\\', '\n'], "")
            );
        }
        for (name, help, value) in gauges {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        out
    }
}
