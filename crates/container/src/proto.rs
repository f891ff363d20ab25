//! What agent and shim say to each other over `<run>/pods/<uid>/shim.sock`.
//!
//! A stream of frames: length (4 bytes, big endian, of what follows), channel (1 byte), payload. Channel 0 carries JSON,
//! the others bytes. The first frame of a connection is a `Request`: `hello` makes it the agent's line of calls and
//! events, `exec` and `attach` make it a session that ends with the connection. An agent may be newer than its shim:
//! unknown fields are ignored, unknown calls answered as failures.

use std::path::PathBuf;

use driver::{ContainerState, Exec, Pod};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::limits;
use crate::sys::Failure;

/// Raised when something changes that an older side must not misread.
pub const VERSION: u32 = 1;

pub const SOCKET: &str = "shim.sock";
pub const POD_FILE: &str = "pod.json";
pub const STATE_FILE: &str = "state.json";

pub const JSON: u8 = 0;
pub const STDIN: u8 = 1;
pub const STDOUT: u8 = 2;
pub const STDERR: u8 = 3;
pub const CLOSE_STDIN: u8 = 4;

/// `pod.json`: all that a shim is told when it starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodFile {
    pub version: u32,
    pub instance: String,
    pub pod: Pod,
    /// Writable layers: `<roots>/<container>-<attempt>/`.
    pub roots: PathBuf,
    pub cgroup_root: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Request {
    pub id: u64,
    pub call: String,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub args: Value,
}

/// What the shim says on channel 0: an answer to a request, an event, or the end of a session.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hello: Option<Hello>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<ContainerState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit: Option<Ended>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    pub version: u32,
    pub pid: i32,
    pub pod: Pod,
    pub containers: Vec<ContainerState>,
}

/// The end of an exec: a code, or why it never ran.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ended {
    pub code: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Names a container; the attempt is the newest where it is not given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Which {
    pub name: String,
    pub attempt: Option<u32>,
    pub signal: i32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecArgs {
    pub name: String,
    pub exec: Exec,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResizeArgs {
    pub width: u16,
    pub height: u16,
}

/// `state.json`: what is known of a pod whose shim is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateFile {
    pub version: u32,
    pub pid: i32,
    pub containers: Vec<ContainerState>,
}

pub fn frame(channel: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 5);
    out.extend_from_slice(&(payload.len() as u32 + 1).to_be_bytes());
    out.push(channel);
    out.extend_from_slice(payload);
    out
}

pub fn json_frame(message: &impl Serialize) -> Vec<u8> {
    // Structs of strings and numbers: there is nothing in them that JSON cannot say.
    frame(JSON, &serde_json::to_vec(message).unwrap_or_default())
}

#[derive(Debug, thiserror::Error)]
#[error("a frame of {0} bytes")]
pub struct BadFrame(usize);

/// A channel, a payload, and the bytes that the frame takes.
pub type Frame<'a> = (u8, &'a [u8], usize);

/// The first whole frame of what has arrived.
pub fn parse(buffer: &[u8]) -> Result<Option<Frame<'_>>, BadFrame> {
    let Some(head) = buffer.first_chunk::<4>() else { return Ok(None) };
    let len = u32::from_be_bytes(*head) as usize;
    if len == 0 || len > limits::FRAME_MAX {
        return Err(BadFrame(len));
    }
    Ok(buffer.get(4..4 + len).map(|body| (body[0], &body[1..], 4 + len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_from_any_split() {
        let mut stream = frame(STDOUT, b"ahoy");
        stream.extend(json_frame(&Message { id: Some(3), ..Message::default() }));
        stream.extend(frame(CLOSE_STDIN, b""));
        for cut in 0..stream.len() {
            let (mut buffer, mut seen) = (Vec::new(), Vec::new());
            for part in [&stream[..cut], &stream[cut..]] {
                buffer.extend_from_slice(part);
                while let Some((channel, payload, used)) = parse(&buffer).unwrap() {
                    seen.push((channel, payload.to_vec()));
                    buffer.drain(..used);
                }
            }
            assert_eq!(seen, [(STDOUT, b"ahoy".to_vec()), (JSON, b"{\"id\":3}".to_vec()), (CLOSE_STDIN, vec![])]);
        }
        assert!(parse(&[0xff; 8]).is_err());
        assert!(parse(&[0; 8]).is_err());
    }

    #[test]
    fn an_older_side_reads_a_newer_one() {
        let newer = r#"{"id": 1, "call": "hello", "args": {"version": 9, "colour": "blue"}, "trace": "x"}"#;
        assert_eq!(serde_json::from_str::<Request>(newer).unwrap().call, "hello");
        let newer = r#"{"event": {"name": "web", "attempt": 1, "state": "created", "mood": "fine"}, "tide": 3}"#;
        assert!(serde_json::from_str::<Message>(newer).unwrap().event.is_some());
        let failure: Failure = serde_json::from_str(r#"{"kind": "exhausted", "text": "no more"}"#).unwrap();
        assert_eq!(failure.text, "no more");
    }
}
