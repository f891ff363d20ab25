//! Bytes of lists and watch events, put together from what the cache holds.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::Object;
use crate::Revision;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    Added,
    Modified,
    Deleted,
}

impl EventType {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// `{"type":"…","object":…}` and a newline.
pub fn event(kind: EventType, object: &Object) -> Bytes {
    event_of(kind.as_str(), &object.json())
}

/// The same around any JSON: a converted object, a Table row, an ERROR's Status.
pub fn event_of(kind: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + kind.len() + 24);
    out.put_slice(br#"{"type":""#);
    out.put_slice(kind.as_bytes());
    out.put_slice(br#"","object":"#);
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}

/// A BOOKMARK: nothing of this kind up to `revision` is untold. `initial_events_end` ends what `sendInitialEvents` began.
pub fn bookmark(api_version: &str, kind: &str, revision: Revision, initial_events_end: bool) -> Bytes {
    let mark = if initial_events_end { r#","annotations":{"k8s.io/initial-events-end":"true"}"# } else { "" };
    let object = format!(
        r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{{"resourceVersion":"{revision}","creationTimestamp":null{mark}}}}}"#
    );
    event_of("BOOKMARK", object.as_bytes())
}

/// An ERROR event, the last of its watch.
pub fn error(status: &api::Status) -> Bytes {
    // A Status is strings and numbers: it always serialises.
    event_of("ERROR", &serde_json::to_vec(status).unwrap_or_default())
}

/// A list as chunks: its head, one shared chunk an object, its tail. Nothing of the objects is copied.
/// `kind` is the list's (`PodList`); `remaining` is told only with a `continue_token`.
pub fn list<'a>(
    api_version: &str,
    kind: &str,
    revision: Revision,
    continue_token: &str,
    remaining: Option<usize>,
    objects: impl IntoIterator<Item = &'a Arc<Object>>,
) -> Vec<Bytes> {
    let mut page = String::new();
    if !continue_token.is_empty() {
        page = format!(r#","continue":{}"#, serde_json::Value::from(continue_token));
        if let Some(n) = remaining {
            page += &format!(r#","remainingItemCount":{n}"#);
        }
    }
    let head = format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{{"resourceVersion":"{revision}"{page}}},"items":["#);
    let mut out = vec![Bytes::from(head)];
    for (i, object) in objects.into_iter().enumerate() {
        out.push(if i == 0 { object.json() } else { object.item() });
    }
    out.push(Bytes::from_static(b"]}"));
    out
}
