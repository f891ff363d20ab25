//! The route table as an index: from host and path to a route in a handful of hash lookups, whatever the number of routes.
//!
//! Knows Ingress' matching rules. Built whole from a [`plan::routes::Routes`] and never changed: a new snapshot is a new
//! index.

use std::collections::HashMap;
use std::sync::Arc;

use plan::routes::{Host, Route, Routes};

#[derive(Debug, Default)]
pub struct Table {
    exact: HashMap<String, Paths>,
    /// By what follows `*.`; one label stands for the star.
    wildcard: HashMap<String, Paths>,
    any: Paths,
    default: Option<Arc<Route>>,
}

#[derive(Debug, Default)]
struct Paths {
    exact: HashMap<String, Arc<Route>>,
    /// Without a closing slash; the root is empty.
    prefix: HashMap<String, Arc<Route>>,
    default: Option<Arc<Route>>,
}

impl Table {
    pub fn new(routes: Routes) -> Self {
        let mut table = Self { default: routes.default.map(Arc::new), ..Self::default() };
        for (name, host) in routes.hosts {
            let paths = Paths::new(host);
            match name.strip_prefix("*.") {
                Some(suffix) => table.wildcard.insert(suffix.to_string(), paths),
                None if name.is_empty() => Some(std::mem::replace(&mut table.any, paths)),
                None => table.exact.insert(name, paths),
            };
        }
        table
    }

    /// The route of a request. `host` is lower case and without a port. The most specific host decides alone: a path it
    /// lacks is not looked for under `*` or any host, but goes to the default backend.
    pub fn find(&self, host: &str, path: &str) -> Option<&Arc<Route>> {
        let wildcard = || host.split_once('.').and_then(|(_, rest)| self.wildcard.get(rest));
        let paths = self.exact.get(host).or_else(wildcard).unwrap_or(&self.any);
        paths.find(path).or(self.default.as_ref())
    }

    /// Whether any rule names this host, for a better "not found".
    pub fn knows_host(&self, host: &str) -> bool {
        self.exact.contains_key(host) || host.split_once('.').is_some_and(|(_, rest)| self.wildcard.contains_key(rest))
    }
}

impl Paths {
    fn new(host: Host) -> Self {
        let mut paths = Self { default: host.default.map(Arc::new), ..Self::default() };
        for path in host.paths {
            let route = Arc::new(path.route);
            if path.exact {
                paths.exact.insert(path.path, route);
            } else {
                paths.prefix.insert(path.path.trim_end_matches('/').to_string(), route);
            }
        }
        paths
    }

    fn find(&self, path: &str) -> Option<&Arc<Route>> {
        self.exact.get(path).or_else(|| self.longest_prefix(path)).or(self.default.as_ref())
    }

    /// Element by element from the whole path down to the root.
    fn longest_prefix(&self, path: &str) -> Option<&Arc<Route>> {
        if self.prefix.is_empty() {
            return None;
        }
        let mut rest = path.trim_end_matches('/');
        loop {
            if let Some(route) = self.prefix.get(rest) {
                return Some(route);
            }
            rest = &rest[..rest.rfind('/')?];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plan::routes::Path;

    fn table(rules: &[(&str, &str, bool)]) -> Table {
        let mut routes = Routes::default();
        for (host, path, exact) in rules {
            let route = Route { backend: format!("{host}{path}{}", if *exact { "!" } else { "" }), ..Route::default() };
            routes.hosts.entry(host.to_string()).or_default().paths.push(Path { path: path.to_string(), exact: *exact, route });
        }
        Table::new(routes)
    }

    #[track_caller]
    fn check(table: &Table, host: &str, path: &str, expected: &str) {
        let found = table.find(host, path).map_or("-", |r| r.backend.as_str());
        assert_eq!(found, expected, "{host}{path}");
    }

    #[test]
    fn prefixes_match_by_element_and_the_longest_wins() {
        // The table of the Ingress documentation.
        let t = table(&[("", "/", false), ("", "/aaa", false), ("", "/aaa/bbb", false), ("", "/foo", true)]);
        for (path, expected) in [
            ("/", "/"),
            ("/x", "/"),
            ("/aaa", "/aaa"),
            ("/aaa/", "/aaa"),
            ("/aaab", "/"),
            ("/aaa/bbb", "/aaa/bbb"),
            ("/aaa/bbb/", "/aaa/bbb"),
            ("/aaa/bbbxyz", "/aaa"),
            ("/aaa/bbb/ccc", "/aaa/bbb"),
            ("/foo", "/foo!"),
            ("/foo/", "/"),
            ("/foo/x", "/"),
        ] {
            check(&t, "h", path, expected);
        }
        let slash = table(&[("", "/aaa/bbb/", false)]);
        check(&slash, "h", "/aaa/bbb", "/aaa/bbb/");
        check(&slash, "h", "/aaa", "-");
    }

    #[test]
    fn an_exact_host_beats_a_wildcard_which_beats_any() {
        let t = table(&[("a.example", "/", false), ("*.example", "/", false), ("", "/", false), ("b.example", "/only", false)]);
        check(&t, "a.example", "/", "a.example/");
        check(&t, "c.example", "/", "*.example/");
        check(&t, "x.c.example", "/", "/");
        check(&t, "example", "/", "/");
        check(&t, "b.example", "/other", "-");
    }

    #[test]
    fn an_exact_path_beats_a_prefix_of_the_same_length() {
        let t = table(&[("", "/a", false), ("", "/a", true)]);
        check(&t, "h", "/a", "/a!");
        check(&t, "h", "/a/b", "/a");
    }
}
