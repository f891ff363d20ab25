//! `$(VAR)` in commands and values, as Kubernetes documents it: unknown names stay as written, `$$` is one `$`.

use std::collections::BTreeMap;

pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.as_bytes().first() {
            Some(b'$') => {
                out.push('$');
                rest = &rest[1..];
            }
            Some(b'(') => match rest.find(')') {
                Some(end) => {
                    let name = &rest[1..end];
                    match variables.get(name) {
                        Some(value) => out.push_str(value),
                        None => {
                            out.push('$');
                            out.push_str(&rest[..=end]);
                        }
                    }
                    rest = &rest[end + 1..];
                }
                None => out.push('$'),
            },
            _ => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_like_the_documentation() {
        let vars = [("A".to_string(), "1".to_string()), ("E".to_string(), String::new())].into();
        for (text, want) in [
            ("$(A)", "1"),
            ("x$(A)y$(E)z", "x1yz"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("a$$b", "a$b"),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(text, &vars), want, "{text}");
        }
    }
}
