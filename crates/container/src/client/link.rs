//! The agent's line to one shim: calls out, answers and events in.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use driver::{Error, Result};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};

use super::{Shared, failed, lock};
use crate::limits;
use crate::proto::{self, Hello, Message, Request};

pub struct Link {
    pub pid: i32,
    pub own_network: bool,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<Message>>>,
    next_id: AtomicU64,
    down: watch::Sender<bool>,
    /// The shim has been asked to end: its hanging up is no loss.
    ending: AtomicBool,
}

/// Connects by a name that is short however long the path is.
pub async fn dial(dir: &Path) -> io::Result<UnixStream> {
    let dir = File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{}", dir.as_raw_fd(), proto::SOCKET)).await
}

/// Frames of a stream; a read that is dropped loses nothing.
pub struct Frames {
    pub stream: OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Frames {
    pub fn new(stream: OwnedReadHalf) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// `None` when the other side has hung up.
    pub async fn next(&mut self) -> io::Result<Option<(u8, Vec<u8>)>> {
        loop {
            let whole = proto::parse(&self.buffer).map_err(io::Error::other)?;
            if let Some((channel, payload, used)) = whole {
                let frame = (channel, payload.to_vec());
                self.buffer.drain(..used);
                return Ok(Some(frame));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

impl Link {
    /// Connects and says hello; from then on the shim tells its events.
    pub async fn open(shared: &Arc<Shared>, uid: &str, dir: &Path) -> io::Result<(Arc<Self>, Hello)> {
        let (reader, mut writer) = dial(dir).await?.into_split();
        let hello = Request { id: 0, call: "hello".into(), args: serde_json::json!({ "version": proto::VERSION }) };
        writer.write_all(&proto::json_frame(&hello)).await?;
        let mut frames = Frames::new(reader);
        let first = tokio::time::timeout(limits::CALL, frames.next()).await.map_err(io::Error::other)??;
        let message: Option<Message> = first.and_then(|(_, payload)| serde_json::from_slice(&payload).ok());
        let hello = message.and_then(|m| m.hello).ok_or_else(|| io::Error::other("the shim does not say hello"))?;
        let link = Arc::new(Self {
            pid: hello.pid,
            own_network: hello.pod.netns.is_some(),
            writer: tokio::sync::Mutex::new(writer),
            waiting: Mutex::default(),
            next_id: AtomicU64::new(1),
            down: watch::channel(false).0,
            ending: AtomicBool::new(false),
        });
        tokio::spawn(listen(Arc::downgrade(shared), Arc::downgrade(&link), uid.to_string(), frames));
        Ok((link, hello))
    }

    pub fn is_down(&self) -> bool {
        *self.down.borrow()
    }

    pub fn expect_end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Waits for the shim to hang up; false if it does not.
    pub async fn ended(&self) -> bool {
        let mut down = self.down.subscribe();
        tokio::time::timeout(limits::KILL, down.wait_for(|d| *d)).await.is_ok()
    }

    pub async fn hello(&self) -> Result<Hello> {
        let answer = self.call("hello", serde_json::json!({ "version": proto::VERSION })).await?;
        answer.hello.ok_or_else(|| Error::Failed("the shim does not say hello".into()))
    }

    pub async fn call(&self, call: &str, args: impl Serialize) -> Result<Message> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let args = serde_json::to_value(args).map_err(|e| failed(call, e))?;
        let (tx, rx) = oneshot::channel();
        lock(&self.waiting).insert(id, tx);
        let frame = proto::json_frame(&Request { id, call: call.to_string(), args });
        let exchange = async {
            if !self.is_down() {
                self.writer.lock().await.write_all(&frame).await.map_err(|e| failed("the pod's shim", e))?;
            }
            rx.await.map_err(|_| Error::Failed("the pod's shim is gone".into()))
        };
        let answer = tokio::time::timeout(limits::CALL, exchange).await;
        lock(&self.waiting).remove(&id);
        let message = answer.map_err(|_| Error::Failed(format!("the pod's shim does not answer {call:?}")))??;
        match message.error {
            Some(failure) => Err(failure.into()),
            None => Ok(message),
        }
    }
}

/// Passes on what the shim says, until it hangs up or nobody holds the link any more.
async fn listen(shared: Weak<Shared>, link: Weak<Link>, uid: String, mut frames: Frames) {
    while let Ok(Some((channel, payload))) = frames.next().await {
        let (Some(shared), Some(link)) = (shared.upgrade(), link.upgrade()) else { return };
        // Kinds of frames and fields that only a newer shim knows are none of ours.
        let Some(message) = (channel == proto::JSON).then(|| serde_json::from_slice::<Message>(&payload).ok()).flatten() else { continue };
        if let Some(container) = message.event {
            shared.tell_container(&uid, container);
        } else if let Some(waiting) = message.id.and_then(|id| lock(&link.waiting).remove(&id)) {
            let _ = waiting.send(message);
        }
    }
    let Some(link) = link.upgrade() else { return };
    link.down.send_replace(true);
    lock(&link.waiting).clear();
    if let Some(shared) = shared.upgrade().filter(|_| !link.ending.load(Ordering::Relaxed)) {
        drop(link);
        shared.lost(uid).await;
    }
}
