//! One object as it goes over the wire, built once from what is stored.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::Revision;

/// An object at one revision. Its JSON carries `metadata.resourceVersion`; everything is shared, cloning the `Arc` is all
/// that a list does.
#[derive(Debug)]
pub struct Object {
    /// `<group>/<plural>/<namespace>/<name>`, the map's key too.
    pub key: Arc<str>,
    pub revision: Revision,
    /// `metadata.uid`, empty if there is none.
    pub uid: Box<str>,
    /// `metadata.labels`, by key.
    labels: Box<[(Box<str>, Box<str>)]>,
    /// A comma, then the JSON: with it an object is one chunk of a list.
    text: Bytes,
    /// Where the revision's digits are in `text`; empty if the value has no metadata to put them in.
    digits: Range<usize>,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

#[derive(Deserialize)]
struct Meta<'a> {
    #[serde(borrow)]
    uid: Option<Cow<'a, str>>,
    #[serde(borrow)]
    labels: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}

const FIELD: &[u8] = br#""resourceVersion":""#;

impl Object {
    /// From a stored value (without `resourceVersion`). What is not an object with metadata is kept as it is.
    pub fn new(key: Arc<str>, revision: Revision, value: &[u8]) -> Self {
        let plain = |key| {
            let text = [b",", value].concat().into();
            Self { key, revision, uid: "".into(), labels: [].into(), text, digits: 0..0 }
        };
        let Ok(metadata) = serde_json::from_slice::<Head<'_>>(value).map(|h| h.metadata.get()) else { return plain(key) };
        let Ok(meta) = serde_json::from_str::<Meta<'_>>(metadata) else { return plain(key) };
        // `metadata` is a part of `value`: this is its offset, and the field goes right behind its brace.
        let at = metadata.as_ptr() as usize - value.as_ptr() as usize + 1;
        let digits = revision.to_string();
        let last = if metadata[1..].trim_start().starts_with('}') { &b"\""[..] } else { &b"\","[..] };
        let start = 1 + at + FIELD.len();
        let text = [b",", &value[..at], FIELD, digits.as_bytes(), last, &value[at..]].concat();
        let labels = meta.labels.unwrap_or_default().into_iter().map(|(k, v)| (k.into(), v.into()));
        Self {
            key,
            revision,
            uid: meta.uid.unwrap_or_default().into(),
            labels: labels.collect(),
            text: text.into(),
            digits: start..start + digits.len(),
        }
    }

    /// The same state under another revision: what a watcher is told of an object that went.
    pub fn at_revision(&self, revision: Revision) -> Self {
        let digits = if self.digits.is_empty() { String::new() } else { revision.to_string() };
        let text = [&self.text[..self.digits.start], digits.as_bytes(), &self.text[self.digits.end..]].concat();
        Self {
            key: self.key.clone(),
            revision,
            uid: self.uid.clone(),
            labels: self.labels.clone(),
            text: text.into(),
            digits: self.digits.start..self.digits.start + digits.len(),
        }
    }

    /// The wire bytes.
    pub fn json(&self) -> Bytes {
        self.text.slice(1..)
    }

    /// `,` and the wire bytes: an item of a list that is not its first.
    pub fn item(&self) -> Bytes {
        self.text.clone()
    }

    pub fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }

    /// Empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.key.rsplit('/').nth(1).unwrap_or_default()
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok().map(|at| &*self.labels[at].1)
    }

    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels.iter().map(|(k, v)| (&**k, &**v))
    }

    /// What it costs to keep.
    pub(super) fn bytes(&self) -> usize {
        self.text.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(value: &str, revision: Revision, expect: &str) {
        let object = Object::new("core/pods/ns/web".into(), revision, value.as_bytes());
        assert_eq!(object.json(), expect);
        assert_eq!(object.item(), format!(",{expect}"));
    }

    #[test]
    fn the_revision_is_spliced_into_the_metadata_and_nowhere_else() {
        check(r#"{"kind":"Pod","metadata":{"name":"web"}}"#, 7, r#"{"kind":"Pod","metadata":{"resourceVersion":"7","name":"web"}}"#);
        check(r#"{"metadata":{ }}"#, 7, r#"{"metadata":{"resourceVersion":"7" }}"#);
        check(
            r#"{"spec":{"metadata":{"a":1}},"metadata":{"a":2}}"#,
            12,
            r#"{"spec":{"metadata":{"a":1}},"metadata":{"resourceVersion":"12","a":2}}"#,
        );
        for odd in ["1", "[]", "{}", r#"{"metadata":null}"#, r#"{"metadata":[1]}"#, "not json", ""] {
            check(odd, 7, odd);
        }
    }

    #[test]
    fn the_same_state_may_be_told_under_another_revision() {
        let value = json!({"metadata": {"name": "web", "uid": "u-1", "labels": {"b": "2", "a": "1\"x"}}}).to_string();
        let object = Object::new("core/pods/ns/web".into(), 9, value.as_bytes());
        let later = object.at_revision(1234);
        let json: Value = serde_json::from_slice(&later.json()).unwrap();
        assert_eq!((json["metadata"]["resourceVersion"].as_str(), later.revision), (Some("1234"), 1234));
        assert_eq!((later.label("a"), later.label("b"), later.label("c")), (Some("1\"x"), Some("2"), None));
        assert_eq!((&*later.uid, later.name(), later.namespace()), ("u-1", "web", "ns"));
        assert_eq!(later.at_revision(9).json(), object.json());
    }

    proptest! {
        #[test]
        fn splicing_changes_only_the_revision(name in ".{0,12}", label in ".{0,12}", revision in 1u64.., other in 1u64..) {
            let mut value = json!({"metadata": {"name": name, "labels": {"l": label}}, "spec": {"metadata": {"name": label}}});
            let object = Object::new("k/p/n/x".into(), revision, value.to_string().as_bytes());
            prop_assert_eq!(object.label("l"), value["metadata"]["labels"]["l"].as_str());
            for (object, revision) in [(object.at_revision(other), other), (object, revision)] {
                value["metadata"]["resourceVersion"] = revision.to_string().into();
                let wire: Value = serde_json::from_slice(&object.json()).unwrap();
                prop_assert_eq!(&wire, &value);
            }
        }
    }
}
