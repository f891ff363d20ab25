//! What names may look like: DNS labels and subdomains, qualified names, label values, ports, keys.
//!
//! Each function gives the reasons why a text is not one; none means that it is. Source: `k8s.io/apimachinery`
//! `pkg/util/validation`, RFC 1123, RFC 1035; the messages are upstream's.

use std::net::IpAddr;

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;

const LABEL: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const QUALIFIED: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

pub fn too_long(max: usize) -> String {
    format!("must be no more than {max} characters")
}

pub fn between(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// `what (e.g. 'a',  or 'b', regex used for validation is 'pattern')`: the odd commas are upstream's.
fn pattern(what: &str, examples: &[&str], regex: &str) -> String {
    let list = examples.iter().map(|e| format!("'{e}', ")).collect::<Vec<_>>().join(" or ");
    format!("{what} (e.g. {list}regex used for validation is '{regex}')")
}

fn is_label(s: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = s.as_bytes();
    edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn is_subdomain(s: &str) -> bool {
    s.split('.').all(is_label)
}

/// A name part of a label key, or a label value that is not empty.
fn is_qualified(s: &str) -> bool {
    let bytes = s.as_bytes();
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

fn checked(s: &str, max: usize, good: bool, message: impl FnOnce() -> String) -> Vec<String> {
    let mut why = Vec::new();
    if s.len() > max {
        why.push(too_long(max));
    }
    if !good {
        why.push(message());
    }
    why
}

/// `web-1`: names of Services' ports, containers, namespaces.
pub fn dns1123_label(s: &str) -> Vec<String> {
    checked(s, LABEL_MAX, is_label(s), || {
        let what = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
        // A name with dots would do for other kinds: upstream says what is wrong with it here.
        if is_subdomain(s) { "must not contain dots".into() } else { pattern(what, &["my-name", "123-abc"], LABEL) }
    })
}

/// `web-1.example.com`: names of most objects.
pub fn dns1123_subdomain(s: &str) -> Vec<String> {
    checked(s, SUBDOMAIN_MAX, is_subdomain(s), || {
        let what = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
        pattern(what, &["example.com"], SUBDOMAIN)
    })
}

/// A label that begins with a letter: names of Services.
pub fn dns1035_label(s: &str) -> Vec<String> {
    let good = is_label(s) && s.as_bytes()[0].is_ascii_lowercase();
    checked(s, LABEL_MAX, good, || {
        let what = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
        pattern(what, &["my-name", "abc-123"], "[a-z]([-a-z0-9]*[a-z0-9])?")
    })
}

/// `*.example.com`: hosts of an Ingress.
pub fn wildcard_subdomain(s: &str) -> Vec<String> {
    checked(s, SUBDOMAIN_MAX, s.strip_prefix("*.").is_some_and(is_subdomain), || {
        let what = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        pattern(what, &["*.example.com"], &format!(r"\*\.{SUBDOMAIN}"))
    })
}

/// A label key: `app`, `example.com/app`.
pub fn qualified(s: &str) -> Vec<String> {
    let what = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let regex = || pattern(what, &["MyName", "my.name", "123-abc"], QUALIFIED);
    let mut why = Vec::new();
    let name = match s.split('/').collect::<Vec<_>>()[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                why.push("prefix part must be non-empty".to_string());
            } else {
                why.extend(dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            return vec![format!("a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')", regex())];
        }
    };
    if name.is_empty() {
        why.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX {
        why.push(format!("name part {}", too_long(LABEL_MAX)));
    }
    if !is_qualified(name) {
        why.push(format!("name part {}", regex()));
    }
    why
}

pub fn label_value(s: &str) -> Vec<String> {
    checked(s, LABEL_MAX, s.is_empty() || is_qualified(s), || {
        let what = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
        pattern(what, &["MyValue", "my_value", "12345"], "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
    })
}

/// A part of a URL path: names of RBAC's objects.
pub fn path_segment(s: &str) -> Vec<String> {
    let mut why = Vec::new();
    if s == "." || s == ".." {
        why.push(format!("may not be '{s}'"));
    }
    why.extend(["/", "%"].iter().filter(|c| s.contains(**c)).map(|c| format!("may not contain '{c}'")));
    why
}

/// The name of a port of a container or an endpoint (RFC 6335).
pub fn port_name(s: &str) -> Vec<String> {
    let mut why = Vec::new();
    if s.len() > 15 {
        why.push(too_long(15));
    }
    if s.is_empty() || !s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        why.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !s.bytes().any(|b| b.is_ascii_lowercase()) {
        why.push("must contain at least one letter (a-z)".into());
    }
    if s.contains("--") {
        why.push("must not contain consecutive hyphens".into());
    }
    if s.starts_with('-') || s.ends_with('-') {
        why.push("must not begin or end with a hyphen".into());
    }
    why
}

pub fn port_number(port: i64) -> Vec<String> {
    if (1..=65535).contains(&port) { vec![] } else { vec![between(1, 65535)] }
}

/// The name of an environment variable.
pub fn env_name(s: &str) -> Vec<String> {
    if s.is_empty() {
        return vec!["environment variable name must be non-empty".into()];
    }
    // Upstream's relaxed rule (on by default since 1.32): printable ASCII without '='.
    if s.bytes().any(|b| !(0x20..0x7f).contains(&b) || b == b'=') {
        return vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".into()];
    }
    vec![]
}

/// A key of a ConfigMap or Secret; it may become a file name.
pub fn config_key(s: &str) -> Vec<String> {
    let good = !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let mut why = checked(s, SUBDOMAIN_MAX, good, || {
        let what = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        pattern(what, &["key.name", "KEY_NAME", "key-name"], "[-._a-zA-Z0-9]+")
    });
    match s {
        "." | ".." => why.push(format!("must not be '{s}'")),
        _ if s.starts_with("..") => why.push("must not start with '..'".into()),
        _ => {}
    }
    why
}

pub fn http_header(s: &str) -> Vec<String> {
    if !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return vec![];
    }
    vec![pattern("a valid HTTP header must consist of alphanumeric characters or '-'", &["X-Header-Name"], "[-A-Za-z0-9]+")]
}

pub fn percent(s: &str) -> Vec<String> {
    if s.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
        return vec![];
    }
    vec![pattern("a valid percent string must be a numeric string followed by an ending '%'", &["1%", "93%"], "[0-9]+%")]
}

pub fn ip(s: &str) -> Vec<String> {
    if s.parse::<IpAddr>().is_ok() { vec![] } else { vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_are_let_through_and_bad_ones_are_not() {
        type Rule = fn(&str) -> Vec<String>;
        let long = "a".repeat(64);
        let table: &[(&str, Rule, &[&str], &[&str])] = &[
            ("label", dns1123_label, &["a", "0", "a-b", "123-abc"], &["", "-a", "a-", "A", "a_b", "a.b", &long]),
            ("subdomain", dns1123_subdomain, &["a", "a.b", "a-1.b-2", &long], &["", ".a", "a.", "a..b", "A", "a_b"]),
            ("1035", dns1035_label, &["a", "a1"], &["1a", "", "a.b"]),
            ("wildcard", wildcard_subdomain, &["*.a", "*.a.b"], &["*", "*a", "a.*", "*.*.a"]),
            ("qualified", qualified, &["a", "A_b.c-d", "a.b/c", "0/0"], &["", "/a", "a/", "a/b/c", "a b", "-a", "a_/b", &long]),
            ("value", label_value, &["", "a", "A.b_c-d"], &["-", "a b", ".a", &long]),
            ("port name", port_name, &["http", "a-1"], &["", "1", "-a", "a-", "a--b", "HTTP", "abcdefghijklmnop"]),
            ("env", env_name, &["A", "a.b", "1a", "a b"], &["", "a=b", "ä"]),
            ("key", config_key, &["a", "A.b", ".a", "tls.crt"], &["", ".", "..", "..a", "a/b"]),
            ("path", path_segment, &["a:b", "A b"], &[".", "..", "a/b", "a%b"]),
            ("percent", percent, &["1%", "100%"], &["", "%", "1", "-1%", "1.5%"]),
        ];
        for (what, rule, good, bad) in table {
            for s in *good {
                assert_eq!(rule(s), Vec::<String>::new(), "{what} {s:?}");
            }
            for s in *bad {
                assert!(!rule(s).is_empty(), "{what} {s:?}");
            }
        }
    }

    #[test]
    fn messages_are_upstreams() {
        assert_eq!(
            dns1123_label("A")[0],
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
        );
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
    }
}
