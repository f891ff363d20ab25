//! `…/pods/NAME/exec` and `…/attach`: the channels of a process over a WebSocket or SPDY.
//!
//! Source: `k8s.io/apimachinery/pkg/util/remotecommand`: channels 0 stdin, 1 stdout, 2 stderr, 3 error (a `Status`),
//! 4 resize, and in v5 255, which closes the channel its one byte names.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Reason, Status};
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use ports::{Frame, NodeRequest, Session};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::upgrade::{Socket, Upgrade, goodbye, socket};
use super::{Target, spdy};
use crate::request::Query;
use crate::respond::Body;
use crate::{Server, limits};

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const V1: &str = "channel.k8s.io";

/// Which channels the client asked for.
#[derive(Debug, Clone, Copy)]
struct Wants {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wants {
    fn of(query: &Query) -> Result<Wants, Status> {
        let tty = query.flag("tty");
        let wants = Wants { stdin: query.flag("stdin"), stdout: query.flag("stdout"), stderr: query.flag("stderr") && !tty, tty };
        if !wants.stdin && !wants.stdout && !wants.stderr {
            return Err(Status::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        Ok(wants)
    }

    fn output(&self, channel: u8) -> bool {
        match channel {
            Frame::STDOUT => self.stdout,
            Frame::STDERR => self.stderr,
            Frame::ERROR => true,
            _ => false,
        }
    }

    fn input(&self, channel: u8) -> bool {
        match channel {
            Frame::STDIN => self.stdin,
            Frame::RESIZE => self.tty,
            _ => false,
        }
    }
}

pub async fn exec(
    server: &Arc<Server>,
    target: Target,
    query: &Query,
    attach: bool,
    request: &mut Request<Body>,
) -> Result<Response<Body>, Status> {
    let wants = Wants::of(query)?;
    let container = target.container(query.text("container"))?;
    let (namespace, pod, uid) = (target.namespace.clone(), target.pod.clone(), target.uid.clone());
    let Wants { tty, stdin, .. } = wants;
    let asked = if attach {
        NodeRequest::Attach { namespace, pod, uid, container, tty, stdin }
    } else {
        let command: Vec<String> = query.all("command").map(String::from).collect();
        if command.is_empty() {
            return Err(Status::bad_request("you must specify at least one command for the container"));
        }
        NodeRequest::Exec { namespace, pod, uid, container, command, tty, stdin }
    };
    let phase = target.object["status"]["phase"].as_str().unwrap_or_default();
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(Status::bad_request(format!("cannot exec into a container in a completed pod; current phase is {phase}")));
    }
    let upgrade = Upgrade::of(request, &[V5, V4, V1], &[V4])?;
    // Opened before the switch of protocols: what fails is then an ordinary answer that every client can show.
    let session = target.handler.open(asked).await?;
    let response = upgrade.response();
    let stop = server.stopping.child_token();
    tokio::spawn(async move {
        match upgrade {
            Upgrade::WebSocket { on, .. } => {
                if let Some(socket) = socket(on).await {
                    websocket(socket, session, wants, stop).await;
                }
            }
            Upgrade::Spdy { on, .. } => {
                if let Ok(upgraded) = on.await {
                    over_spdy(TokioIo::new(upgraded), session, wants, stop).await;
                }
            }
        }
    });
    Ok(response)
}

fn lost(what: &str) -> Frame {
    let status = Status::new(Reason::InternalError, what);
    Frame::new(Frame::ERROR, serde_json::to_vec(&status).unwrap_or_default())
}

fn message(channel: u8, data: &[u8]) -> Message {
    let mut bytes = BytesMut::with_capacity(data.len() + 1);
    bytes.extend_from_slice(&[channel]);
    bytes.extend_from_slice(data);
    Message::Binary(bytes.freeze())
}

/// The next frame to send; the last one is always an error frame, made here when the agent gives none.
async fn next_output(output: &mut mpsc::Receiver<Frame>, stop: &CancellationToken) -> Frame {
    tokio::select! {
        biased;
        () = stop.cancelled() => lost("the API server is shutting down"),
        frame = output.recv() => frame.unwrap_or_else(|| lost("the connection to the pod was lost")),
    }
}

async fn websocket(socket: Socket, session: Session, wants: Wants, stop: CancellationToken) {
    let Session { input, mut output } = session;
    let (mut sink, mut stream) = socket.split();
    let mut reading = tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => Bytes::from(text),
                Message::Close(_) => return,
                _ => continue,
            };
            let Some(&channel) = bytes.first() else { continue };
            let data = bytes.slice(1..);
            let closes = channel == Frame::CLOSE && data.first() == Some(&Frame::STDIN);
            if (closes || wants.input(channel)) && input.send(Frame { channel, data }).await.is_err() {
                // The process is gone; what the client still says is read and dropped until it closes.
                while let Some(Ok(_)) = stream.next().await {}
                return;
            }
        }
    });
    // An empty message tells the client that the streams stand.
    let first = [(wants.stdout, Frame::STDOUT), (wants.stderr, Frame::STDERR), (true, Frame::ERROR)];
    let hello = first.iter().find(|(wanted, _)| *wanted).map_or(Frame::ERROR, |(_, channel)| *channel);
    let _ = sink.send(message(hello, &[])).await;
    let mut client_gone = false;
    loop {
        let frame = tokio::select! {
            biased;
            frame = next_output(&mut output, &stop) => frame,
            _ = &mut reading => { client_gone = true; break }
        };
        if wants.output(frame.channel) && sink.send(message(frame.channel, &frame.data)).await.is_err() {
            break;
        }
        if frame.channel == Frame::ERROR {
            break;
        }
    }
    let _ = sink.send(goodbye()).await;
    if !client_gone && tokio::time::timeout(limits::STREAM_CLOSE_GRACE, &mut reading).await.is_err() {
        reading.abort();
    }
}

fn channel_of(stream_type: &str) -> Option<u8> {
    Some(match stream_type {
        "stdin" => Frame::STDIN,
        "stdout" => Frame::STDOUT,
        "stderr" => Frame::STDERR,
        "error" => Frame::ERROR,
        "resize" => Frame::RESIZE,
        _ => return None,
    })
}

/// `v4.channel.k8s.io` over SPDY: one stream a channel, named by its `streamType` header.
async fn over_spdy<T: AsyncRead + AsyncWrite + Send + 'static>(io: T, session: Session, wants: Wants, stop: CancellationToken) {
    let Session { input, mut output } = session;
    let (read, mut write) = tokio::io::split(io);
    // Replies and pings come from the reading task, output from this one; one task writes.
    let (out, mut queue) = mpsc::channel::<Bytes>(ports::SESSION_FRAMES_MAX);
    let writing = tokio::spawn(async move {
        while let Some(bytes) = queue.recv().await {
            if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
                return;
            }
        }
        let _ = write.write_all(&spdy::goaway()).await;
        let _ = write.shutdown().await;
    });
    let (ready_in, ready) = tokio::sync::oneshot::channel();
    let replies = out.clone();
    let mut reading = tokio::spawn(async move { read_spdy(read, input, wants, replies, ready_in).await });
    let streams = match tokio::time::timeout(limits::PORT_FORWARD_PAIR_TIMEOUT, ready).await {
        Ok(Ok(streams)) => streams,
        _ => {
            reading.abort();
            return;
        }
    };
    loop {
        let frame = tokio::select! {
            biased;
            frame = next_output(&mut output, &stop) => frame,
            _ = &mut reading => return,
        };
        if let Some(id) = streams.get(&frame.channel).filter(|_| wants.output(frame.channel))
            && out.send(spdy::data(*id, frame.channel == Frame::ERROR, &frame.data)).await.is_err()
        {
            break;
        }
        if frame.channel == Frame::ERROR {
            break;
        }
    }
    for (channel, id) in &streams {
        if *channel != Frame::ERROR {
            let _ = out.send(spdy::data(*id, true, &[])).await;
        }
    }
    drop(out);
    if tokio::time::timeout(limits::STREAM_CLOSE_GRACE, &mut reading).await.is_err() {
        reading.abort();
    }
    let _ = tokio::time::timeout(limits::STREAM_CLOSE_GRACE, writing).await;
}

/// Reads the client's side; tells the streams by channel as soon as all wanted ones stand.
async fn read_spdy<R: AsyncRead + Unpin>(
    read: R,
    input: mpsc::Sender<Frame>,
    wants: Wants,
    replies: mpsc::Sender<Bytes>,
    ready: tokio::sync::oneshot::Sender<BTreeMap<u8, u32>>,
) {
    let mut reader = spdy::Reader::new(read);
    let mut writer = spdy::Writer::default();
    let mut streams: BTreeMap<u8, u32> = BTreeMap::new();
    let mut ready = Some(ready);
    let needed = |streams: &BTreeMap<u8, u32>| {
        let all = [(wants.stdin, Frame::STDIN), (wants.stdout, Frame::STDOUT), (wants.stderr, Frame::STDERR), (true, Frame::ERROR)];
        all.iter().all(|(wanted, channel)| !wanted || streams.contains_key(channel))
    };
    while let Ok(Some(frame)) = reader.next().await {
        match frame {
            spdy::Frame::SynStream { id, headers, .. } => {
                let kind = headers.iter().find(|(n, _)| n == "streamtype").and_then(|(_, v)| channel_of(v));
                let reply = match kind {
                    Some(channel) => {
                        streams.insert(channel, id);
                        writer.syn_reply(id)
                    }
                    None => Ok(spdy::refuse(id)),
                };
                let Ok(reply) = reply else { return };
                if replies.send(reply).await.is_err() {
                    return;
                }
                if needed(&streams)
                    && let Some(ready) = ready.take()
                {
                    let _ = ready.send(streams.clone());
                }
            }
            spdy::Frame::Data { id, fin, data } => {
                let Some(channel) = streams.iter().find(|(_, s)| **s == id).map(|(c, _)| *c) else { continue };
                if wants.input(channel) && !data.is_empty() {
                    let _ = input.send(Frame { channel, data }).await;
                }
                if fin && channel == Frame::STDIN {
                    let _ = input.send(Frame::new(Frame::CLOSE, vec![Frame::STDIN])).await;
                }
            }
            // A send that fails means that the writer has ended, and reading soon does, too.
            spdy::Frame::Ping { id } => drop(replies.send(spdy::ping(id)).await),
            spdy::Frame::GoAway => return,
            _ => {}
        }
    }
}
