//! Request bodies to values: JSON, YAML and protobuf.
//!
//! Knows the encodings, not the kinds: unknown fields and wrong types are [`crate::schema::check`]'s affair, which every decoded
//! object goes through next. Whatever the bytes are, the answer is a value or a 400, and memory stays within [`crate::limits`].

mod protobuf;
mod tree;

use serde_json::Value;

use crate::limits::{BODY_BYTES_MAX, YAML_ALIASES_MAX, YAML_DEPTH_MAX, YAML_NODES_MAX};
use crate::{Reason, Status};

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// An object as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    pub object: Value,
    /// Paths of fields given more than once, of which the last counts: `spec.replicas`.
    pub duplicates: Vec<String>,
}

/// Decodes the body of a write. `content_type` as in the header (parameters are ignored; empty means JSON).
///
/// Errors: 413 for what is too large, 415 for other media types, 400 for what cannot be read or is no object.
pub fn decode(content_type: &str, body: &[u8]) -> Result<Decoded, Status> {
    let media = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    let decoded = match media.as_str() {
        "" | JSON => json(body),
        YAML | "text/yaml" | "application/x-yaml" => yaml(body),
        PROTOBUF => protobuf(body),
        _ => {
            let accepted = [JSON, YAML, PROTOBUF].join(", ");
            let message = format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
            return Err(Status::new(Reason::UnsupportedMediaType, message));
        }
    }?;
    if !decoded.object.is_object() {
        return Err(Status::bad_request("the body of the request must be one object with apiVersion and kind"));
    }
    Ok(decoded)
}

fn sized(body: &[u8]) -> Result<(), Status> {
    if body.len() > BODY_BYTES_MAX {
        let message = format!("the body of the request is too large: limit is {BODY_BYTES_MAX} bytes");
        return Err(Status::new(Reason::RequestEntityTooLarge, message));
    }
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(Status::bad_request("the body of the request is empty"));
    }
    Ok(())
}

/// Any JSON document: objects, and patches too.
pub fn json(body: &[u8]) -> Result<Decoded, Status> {
    sized(body)?;
    let mut reader = serde_json::Deserializer::from_slice(body);
    let decoded = tree::read(&mut reader).and_then(|d| reader.end().map(|()| d));
    decoded.map_err(|e| Status::bad_request(format!("the body of the request is not valid JSON: {e}")))
}

/// One YAML document, read as `kubectl` reads manifests: YAML 1.1 booleans and octal numbers, merge keys, bounded aliases. JSON
/// is YAML.
pub fn yaml(body: &[u8]) -> Result<Decoded, Status> {
    sized(body)?;
    // Clients put JSON where YAML is expected (kubectl does for server-side apply): read it the fast way.
    if body.trim_ascii_start().starts_with(b"{")
        && let Ok(decoded) = json(body)
    {
        return Ok(decoded);
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: YAML_DEPTH_MAX,
            max_nodes: YAML_NODES_MAX,
            max_events: 2 * YAML_NODES_MAX,
            max_aliases: YAML_ALIASES_MAX,
            max_documents: 1,
            max_total_scalar_bytes: 2 * BODY_BYTES_MAX,
        },
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let wrong = |e: &dyn std::fmt::Display| Status::bad_request(format!("the body of the request is not valid YAML: {e}"));
    let text = std::str::from_utf8(body).map_err(|e| wrong(&e))?;
    serde_saphyr::with_deserializer_from_str_with_options(text, options, |d| tree::read(d)).map_err(|e| wrong(&e))
}

/// The other way: a value as YAML that readers of 1.1 and 1.2 understand alike (`"yes"` and `"0644"` stay quoted).
pub fn to_yaml(value: &Value) -> String {
    let options = serde_saphyr::ser_options! { compact_list_indent: true };
    // A JSON value has nothing that the writer refuses; were it so, JSON is YAML too.
    serde_saphyr::to_string_with_options(value, options).unwrap_or_else(|_| value.to_string())
}

/// An object in Kubernetes' protobuf envelope, as kubectl and client-go send built-in kinds.
pub fn protobuf(body: &[u8]) -> Result<Decoded, Status> {
    sized(body)?;
    match protobuf::decode(body) {
        Ok(object) => Ok(Decoded { object, duplicates: Vec::new() }),
        Err(e) => Err(Status::bad_request(format!("the body of the request is not valid protobuf: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn yaml_value(text: &str) -> Value {
        yaml(text.as_bytes()).unwrap().object
    }

    #[test]
    fn media_types_are_told_apart() {
        for (content_type, body) in [
            ("", r#"{"kind":"Pod"}"#),
            ("application/json; charset=utf-8", r#"{"kind":"Pod"}"#),
            ("Application/YAML", "kind: Pod"),
            ("application/yaml", r#"{"kind":"Pod"}"#),
        ] {
            assert_eq!(decode(content_type, body.as_bytes()).unwrap().object, json!({"kind": "Pod"}), "{content_type}");
        }
        assert_eq!(decode("text/html", b"{}").unwrap_err().code, 415);
        assert_eq!(decode(JSON, &vec![b' '; BODY_BYTES_MAX + 1]).unwrap_err().code, 413);
        for (content_type, body) in [
            (JSON, ""),
            (JSON, "[]"),
            (JSON, "{"),
            (JSON, "{} {}"),
            (YAML, "- a"),
            (YAML, "a: b: c"),
            (YAML, "a: 1\n---\nb: 2"),
            (PROTOBUF, "{}"),
        ] {
            assert_eq!(decode(content_type, body.as_bytes()).unwrap_err().code, 400, "{content_type} {body}");
        }
        assert_eq!(decode(YAML, b"\xff\xfe: 1").unwrap_err().code, 400);
    }

    #[test]
    fn errors_say_where() {
        let error = decode(JSON, b"{\"a\": 1,\n \"b\": }").unwrap_err();
        assert_eq!(error.message, "the body of the request is not valid JSON: expected value at line 2 column 7");
        let error = decode(YAML, b"a: 1\nb: [1, 2\nc: 3").unwrap_err();
        assert!(error.message.contains("line 3"), "{error}");
    }

    #[test]
    fn duplicate_fields_are_named_and_the_last_counts() {
        let text = r#"{"a": 1, "spec": {"x": 1, "list": [{"n": 1}, {"n": 1, "n": 2}], "x": {"y": 1, "y": 2}}, "a": 2, "a": 3}"#;
        for decoded in [json(text.as_bytes()).unwrap(), yaml(format!("# {text}\n{text}").as_bytes()).unwrap()] {
            assert_eq!(decoded.duplicates, ["spec.list[1].n", "spec.x", "spec.x.y", "a", "a"]);
            assert_eq!(decoded.object, json!({"a": 3, "spec": {"x": {"y": 2}, "list": [{"n": 1}, {"n": 2}]}}));
        }
    }

    #[test]
    fn yaml_is_read_as_kubectl_reads_it() {
        let text = r#"
            text: hello
            quoted: "80"
            number: 80
            float: 1.5
            mode: 0644
            hex: 0x1F
            yes: yes
            off: Off
            none: ~
            empty:
            date: 2024-01-02
            8080: key
            block: |
              a
              b
            base: &base {a: 1, b: 2}
            merged: {<<: *base, b: 3}
            alias: *base
        "#;
        assert_eq!(
            yaml_value(text),
            json!({
                "text": "hello", "quoted": "80", "number": 80, "float": 1.5, "mode": 420, "hex": 31, "yes": true, "off": false,
                "none": null, "empty": null, "date": "2024-01-02", "8080": "key", "block": "a\nb\n",
                "base": {"a": 1, "b": 2}, "merged": {"a": 1, "b": 3}, "alias": {"a": 1, "b": 2}
            })
        );
    }

    #[test]
    fn what_is_written_as_yaml_is_read_back() {
        let value = json!({
            "words": ["yes", "off", "y", "null", "~", "", " a ", "0644", "1e3", "2024-01-02", "1:30", "- a", "a: b", "#", "é", "true"],
            "text": "#!/bin/sh\n  set -e\n\necho $1\n", "long": "word ".repeat(60), "tail": "a\n\n", "control": "\u{1}\t\r\n",
            "numbers": [0, -1, 1.5, 9007199254740993i64], "none": null, "empty": {"map": {}, "list": []}, "yes": {"8080": [[1], {"a": [{}]}]},
        });
        let text = to_yaml(&value);
        assert_eq!(yaml_value(&format!("# not JSON\n{text}")), value, "{text}");
    }

    #[test]
    fn hostile_yaml_and_json_end_in_a_400() {
        let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let list = vec![format!("*a{}", i - 1); 10].join(", ");
            laughs += &format!("a{i}: &a{i} [{list}]\n");
        }
        let bodies = [
            laughs,
            "a: &a [*a]".into(),
            "[".repeat(100_000),
            "{a: ".repeat(100_000),
            (0..2000).map(|i| format!("{}a:\n", " ".repeat(i))).collect(),
            "a: .nan".into(),
            "!!binary a: b".into(),
        ];
        for body in bodies {
            assert_eq!(decode(YAML, body.as_bytes()).map_err(|e| e.code), Err(400), "{}", &body[..body.len().min(60)]);
        }
        assert_eq!(decode(JSON, "{\"a\":".repeat(100_000).as_bytes()).unwrap_err().code, 400);
        assert_eq!(decode(JSON, b"{\"a\": 1e999}").unwrap_err().code, 400);
    }
}
