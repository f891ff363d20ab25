//! The protocol between agent and edge: frames of a length (four bytes, big-endian) and JSON.
//!
//! The agent speaks, the edge answers each message with one. Versions: an agent must be able to feed an older edge, so
//! messages and sections are only ever added; an edge ignores sections it does not know, and an agent reads the edge's
//! version from its greeting before it sends what older ones do not know.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::limits::FRAME_BYTES_MAX;
use crate::metrics::Counts;

pub const VERSION: u32 = 1;
/// The sections an edge of this version knows.
pub const PROTOCOL_SECTIONS: [&str; 3] = [super::ROUTES, super::BACKENDS, super::DNS];

/// The edge's counters.
pub type Stats = Counts;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Message {
    Hello {
        version: u32,
        #[serde(default)]
        pid: u32,
        /// The edge's answer: revisions of what it has applied, by section.
        #[serde(default)]
        revisions: BTreeMap<String, u64>,
    },
    /// Sections that changed; each is whole.
    Push {
        id: u64,
        sections: BTreeMap<String, Box<RawValue>>,
    },
    Ack {
        id: u64,
        revisions: BTreeMap<String, u64>,
        problems: Vec<String>,
    },
    Stats,
    Counted {
        counts: Counts,
    },
}

pub async fn write<W: AsyncWrite + Unpin>(to: &mut W, message: &Message) -> io::Result<()> {
    let json = serde_json::to_vec(message)?;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_be_bytes()).await?;
    to.write_all(&json).await?;
    to.flush().await
}

pub async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Message> {
    let length = from.read_u32().await? as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes is too long")));
    }
    let mut json = Vec::with_capacity(length.min(1 << 20));
    from.take(length as u64).read_to_end(&mut json).await?;
    if json.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&json)?)
}
