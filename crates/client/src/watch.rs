//! A watch: one JSON document a line, decoded as it comes.

use std::marker::PhantomData;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::error::status_of;
use crate::limits::WATCH_LINE_BYTES_MAX;
use crate::{Body, Error};

/// Lines of a body. Cancel safe: a dropped `next` loses nothing.
pub struct Lines {
    body: Body,
    buffer: BytesMut,
    /// Bytes of `buffer` already searched for a line's end.
    searched: usize,
    ended: bool,
}

impl Lines {
    pub fn new(body: Body) -> Self {
        Self { body, buffer: BytesMut::new(), searched: 0, ended: false }
    }

    /// The next line without its end; `None` after the last. A last line without an end is given too.
    pub async fn next(&mut self) -> Option<std::io::Result<Bytes>> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(self.searched + at).freeze();
                self.buffer.advance(1);
                self.searched = 0;
                return Some(Ok(line));
            }
            self.searched = self.buffer.len();
            if self.ended {
                self.searched = 0;
                return (!self.buffer.is_empty()).then(|| Ok(self.buffer.split().freeze()));
            }
            if self.buffer.len() > WATCH_LINE_BYTES_MAX {
                self.ended = true;
                self.buffer.clear();
                self.searched = 0;
                return Some(Err(std::io::Error::other(format!("a line has more than {WATCH_LINE_BYTES_MAX} bytes"))));
            }
            match self.body.frame().await {
                None => self.ended = true,
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(e)) => {
                    self.ended = true;
                    self.buffer.clear();
                    self.searched = 0;
                    return Some(Err(e));
                }
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent<K> {
    Added(K),
    Modified(K),
    Deleted(K),
    /// Nothing of this kind changed up to this revision. `initial_events_end`: the present state has been told.
    Bookmark {
        resource_version: String,
        initial_events_end: bool,
    },
}

/// Events of one watch. It ends with `None`: ask again from the last revision seen.
pub struct Watch<K> {
    lines: Lines,
    path: String,
    kind: PhantomData<fn() -> K>,
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct WireBookmark {
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
}

#[derive(Deserialize)]
struct WireCode {
    #[serde(default)]
    code: u16,
}

impl<K: DeserializeOwned> Watch<K> {
    pub fn new(body: Body, path: &str) -> Self {
        Self { lines: Lines::new(body), path: path.into(), kind: PhantomData }
    }

    /// Cancel safe. An ERROR event is an [`Error::Api`].
    pub async fn next(&mut self) -> Option<Result<WatchEvent<K>, Error>> {
        loop {
            match self.lines.next().await? {
                Ok(line) if line.is_empty() => continue,
                Ok(line) => return Some(self.parse(&line)),
                Err(e) => return Some(Err(e.into())),
            }
        }
    }

    fn parse(&self, line: &[u8]) -> Result<WatchEvent<K>, Error> {
        let bad = |e| Error::decode(&self.path, e);
        let wire: Wire<'_> = serde_json::from_slice(line).map_err(bad)?;
        let object = wire.object.get();
        match wire.kind {
            "ADDED" => serde_json::from_str(object).map(WatchEvent::Added).map_err(bad),
            "MODIFIED" => serde_json::from_str(object).map(WatchEvent::Modified).map_err(bad),
            "DELETED" => serde_json::from_str(object).map(WatchEvent::Deleted).map_err(bad),
            "BOOKMARK" => {
                let metadata = serde_json::from_str::<WireBookmark>(object).map_err(bad)?.metadata;
                let mark = metadata.annotations.as_ref().and_then(|a| a.get("k8s.io/initial-events-end"));
                let initial_events_end = mark.is_some_and(|v| v == "true");
                Ok(WatchEvent::Bookmark { resource_version: metadata.resource_version.unwrap_or_default(), initial_events_end })
            }
            // ERROR, and whatever else is not an event: a Status.
            _ => {
                let code = serde_json::from_str::<WireCode>(object).map_err(bad)?.code;
                Err(status_of(if code == 0 { 500 } else { code }, object.as_bytes()).into())
            }
        }
    }
}
