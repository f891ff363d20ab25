//! Port-forward: SPDY inside a WebSocket (kubectl since 1.31), SPDY as it is (older clients), and channel pairs of
//! `v4.channel.k8s.io` (the Python client).
//!
//! Each connection to a port is a data stream and an error stream; an error is one message on the latter.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Status;
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use ports::{Frame, NodeRequest, Session};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::Target;
use super::spdy;
use super::upgrade::{Socket, Upgrade, bytes_of, goodbye, socket};
use crate::request::Query;
use crate::respond::Body;
use crate::{Server, limits};

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS: &str = "v4.channel.k8s.io";
const SPDY_PROTOCOL: &str = "portforward.k8s.io";

/// `GET|POST …/pods/NAME/portforward`.
pub async fn port_forward(
    server: &Arc<Server>,
    target: Target,
    query: &Query,
    request: &mut Request<Body>,
) -> Result<Response<Body>, Status> {
    let phase = target.object["status"]["phase"].as_str().unwrap_or_default();
    if phase != "Running" {
        return Err(Status::bad_request(format!("unable to forward port because pod is not running. Current status={phase}")));
    }
    let upgrade = Upgrade::of(request, &[TUNNEL, CHANNELS], &[SPDY_PROTOCOL])?;
    let mut ports = Vec::new();
    for text in query.all("ports").chain(query.all("port")).flat_map(|p| p.split(',')).filter(|p| !p.is_empty()) {
        ports.push(port_number(text).ok_or_else(|| Status::bad_request(format!("invalid port {text:?}")))?);
    }
    let response = upgrade.response();
    let (target, stop) = (Arc::new(target), server.stopping.child_token());
    match upgrade {
        Upgrade::WebSocket { protocol: TUNNEL, on, .. } => tokio::spawn(async move {
            if let Some(socket) = socket(on).await {
                Mux::serve(bytes_of(socket), target, stop).await;
            }
        }),
        Upgrade::WebSocket { on, .. } => {
            if ports.is_empty() || ports.len() > 64 {
                return Err(Status::bad_request("query parameter ports: 1 to 64 ports are required"));
            }
            tokio::spawn(async move {
                if let Some(socket) = socket(on).await {
                    channels(socket, target, ports, stop).await;
                }
            })
        }
        Upgrade::Spdy { on, .. } => tokio::spawn(async move {
            if let Ok(upgraded) = on.await {
                Mux::serve(TokioIo::new(upgraded), target, stop).await;
            }
        }),
    };
    Ok(response)
}

fn port_number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|p| *p > 0)
}

async fn open(target: &Target, port: u16) -> Result<Session, Status> {
    let (namespace, pod, uid) = (target.namespace.clone(), target.pod.clone(), target.uid.clone());
    target.handler.open(NodeRequest::PortForward { namespace, pod, uid, port }).await
}

/// The two streams of one forwarded connection, while they find each other.
#[derive(Default)]
struct Pair {
    port: u16,
    data: Option<(u32, mpsc::Receiver<Bytes>)>,
    error: Option<u32>,
}

/// One SPDY connection: reads frames, answers them, and hands data to the tasks of its pairs.
struct Mux {
    target: Arc<Target>,
    writer: spdy::Writer,
    out: mpsc::Sender<Bytes>,
    waiting: BTreeMap<String, Pair>,
    /// Data streams with a session; the value is gone when the client has closed its half.
    streams: BTreeMap<u32, mpsc::Sender<Bytes>>,
    /// Streams opened and not yet seen closed by both sides.
    open: usize,
    done: mpsc::Sender<u32>,
}

impl Mux {
    async fn serve<T: AsyncRead + AsyncWrite + Send + 'static>(io: T, target: Arc<Target>, stop: CancellationToken) {
        let (read, mut write) = tokio::io::split(io);
        let (out, mut queue) = mpsc::channel::<Bytes>(ports::SESSION_FRAMES_MAX);
        let writer = tokio::spawn(async move {
            while let Some(frame) = queue.recv().await {
                if write.write_all(&frame).await.is_err() || write.flush().await.is_err() {
                    return;
                }
            }
            let _ = write.write_all(&spdy::goaway()).await;
            let _ = write.shutdown().await;
        });
        let (done, mut ended) = mpsc::channel(limits::PORT_FORWARD_STREAMS_MAX);
        let mut mux =
            Mux { target, writer: spdy::Writer::default(), out, waiting: BTreeMap::new(), streams: BTreeMap::new(), open: 0, done };
        let mut reader = spdy::Reader::new(read);
        // Frames are read in a task of their own: `next` must not be dropped half-way by a `select!`.
        let (frames_in, mut frames) = mpsc::channel(1);
        let reading = tokio::spawn(async move {
            while let Ok(Some(frame)) = reader.next().await {
                if frames_in.send(frame).await.is_err() {
                    return;
                }
            }
        });
        loop {
            let frame = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(id) = ended.recv() => {
                    mux.streams.remove(&id);
                    mux.open = mux.open.saturating_sub(2);
                    continue;
                }
                frame = frames.recv() => frame,
            };
            let Some(frame) = frame else { break };
            if mux.frame(frame).await.is_err() {
                break;
            }
        }
        reading.abort();
        drop(mux);
        let _ = tokio::time::timeout(limits::STREAM_CLOSE_GRACE, writer).await;
    }

    async fn send(&self, frame: Bytes) -> Result<(), ()> {
        self.out.send(frame).await.map_err(|_| ())
    }

    /// `Err` ends the connection.
    async fn frame(&mut self, frame: spdy::Frame) -> Result<(), ()> {
        match frame {
            spdy::Frame::SynStream { id, headers, .. } => self.stream(id, &headers).await,
            spdy::Frame::Data { id, fin, data } => {
                if let Some(stream) = self.streams.get(&id) {
                    // An error means that the pod's side is gone: the client learns it from the closed stream.
                    if !data.is_empty() {
                        let _ = stream.send(data).await;
                    }
                    if fin {
                        self.streams.remove(&id);
                    }
                }
                Ok(())
            }
            spdy::Frame::Reset { id } => {
                self.streams.remove(&id);
                Ok(())
            }
            spdy::Frame::Ping { id } => self.send(spdy::ping(id)).await,
            spdy::Frame::GoAway => Err(()),
            spdy::Frame::SynReply { .. } | spdy::Frame::Other => Ok(()),
        }
    }

    async fn stream(&mut self, id: u32, headers: &spdy::Headers) -> Result<(), ()> {
        let header = |name: &str| headers.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v.as_str());
        let Some(port) = port_number(header("port")) else { return self.send(spdy::refuse(id)).await };
        if self.open >= limits::PORT_FORWARD_STREAMS_MAX {
            return self.send(spdy::refuse(id)).await;
        }
        // Clients before 1.3 gave no request id: their error stream directly precedes its data stream.
        let request = match (header("requestid"), header("streamtype")) {
            ("", "error") => id.to_string(),
            ("", _) => id.saturating_sub(2).to_string(),
            (given, _) => given.to_string(),
        };
        let reply = self.writer.syn_reply(id).map_err(|_| ())?;
        self.send(reply).await?;
        self.open += 1;
        let mut pair = self.waiting.remove(&request).unwrap_or_default();
        pair.port = port;
        match header("streamtype") {
            "error" => pair.error = Some(id),
            _ => {
                let (input, from_client) = mpsc::channel(ports::SESSION_FRAMES_MAX);
                self.streams.insert(id, input);
                pair.data = Some((id, from_client));
            }
        }
        match pair {
            Pair { port, data: Some((data, from_client)), error: Some(error) } => {
                let (target, out, done) = (self.target.clone(), self.out.clone(), self.done.clone());
                tokio::spawn(async move {
                    forward(&target, port, data, error, from_client, &out).await;
                    let _ = done.send(data).await;
                });
            }
            half => {
                self.waiting.insert(request, half);
            }
        }
        Ok(())
    }
}

/// Carries one connection until both sides are done.
async fn forward(target: &Target, port: u16, data: u32, error: u32, mut from_client: mpsc::Receiver<Bytes>, out: &mpsc::Sender<Bytes>) {
    let mut failure = None;
    match open(target, port).await {
        Err(status) => failure = Some(format!("error forwarding port {port} to pod {}: {}", target.uid, status.message)),
        Ok(Session { input, mut output }) => {
            let upload = tokio::spawn(async move {
                while let Some(bytes) = from_client.recv().await {
                    if input.send(Frame::new(Frame::STDIN, bytes)).await.is_err() {
                        return;
                    }
                }
                let _ = input.send(Frame::new(Frame::CLOSE, vec![Frame::STDIN])).await;
                // The session lives until the pod's side ends it.
                input.closed().await;
            });
            while let Some(frame) = output.recv().await {
                match frame.channel {
                    Frame::STDOUT if out.send(spdy::data(data, false, &frame.data)).await.is_err() => break,
                    Frame::ERROR => {
                        failure = failure_of(&frame.data).map(|m| format!("error forwarding port {port} to pod {}: {m}", target.uid))
                    }
                    _ => {}
                }
            }
            drop(output);
            upload.abort();
        }
    }
    let _ = out.send(spdy::data(error, true, failure.unwrap_or_default().as_bytes())).await;
    let _ = out.send(spdy::data(data, true, &[])).await;
}

/// The message of a `Status` that is a failure.
fn failure_of(json: &[u8]) -> Option<String> {
    let status: api::Value = serde_json::from_slice(json).unwrap_or_default();
    (status["status"] != "Success").then(|| status["message"].as_str().unwrap_or("the connection failed").to_string())
}

/// `v4.channel.k8s.io`: port `i` of the query has its data on channel `2i` and its error on `2i + 1`; each channel
/// begins with the port, little-endian.
async fn channels(socket: Socket, target: Arc<Target>, ports: Vec<u16>, stop: CancellationToken) {
    let (mut sink, mut stream) = socket.split();
    let (out, mut queue) = mpsc::channel::<Bytes>(ports::SESSION_FRAMES_MAX);
    let mut inputs = Vec::new();
    for (i, port) in ports.into_iter().enumerate() {
        let data = (2 * i) as u8;
        for channel in [data, data + 1] {
            let [low, high] = port.to_le_bytes();
            let _ = sink.send(Message::Binary(Bytes::from(vec![channel, low, high]))).await;
        }
        let (input, from_client) = mpsc::channel(ports::SESSION_FRAMES_MAX);
        inputs.push(input);
        let (target, out) = (target.clone(), out.clone());
        tokio::spawn(async move { channel_pair(&target, port, data, from_client, &out).await });
    }
    drop(out);
    let reading = tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            let Message::Binary(bytes) = message else {
                if matches!(message, Message::Close(_)) {
                    return;
                }
                continue;
            };
            let Some((&channel, _)) = bytes.split_first() else { continue };
            if channel % 2 == 0
                && let Some(input) = inputs.get(usize::from(channel / 2))
            {
                let _ = input.send(bytes.slice(1..)).await;
            }
        }
    });
    loop {
        let message = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            message = queue.recv() => message,
        };
        let Some(message) = message else { break };
        if sink.send(Message::Binary(message)).await.is_err() {
            break;
        }
    }
    let _ = sink.send(goodbye()).await;
    let _ = tokio::time::timeout(limits::STREAM_CLOSE_GRACE, reading).await;
}

async fn channel_pair(target: &Target, port: u16, channel: u8, mut from_client: mpsc::Receiver<Bytes>, out: &mpsc::Sender<Bytes>) {
    let message = |channel: u8, data: &[u8]| {
        let mut bytes = BytesMut::with_capacity(data.len() + 1);
        bytes.extend_from_slice(&[channel]);
        bytes.extend_from_slice(data);
        bytes.freeze()
    };
    match open(target, port).await {
        Err(status) => {
            let _ = out.send(message(channel + 1, status.message.as_bytes())).await;
        }
        Ok(Session { input, mut output }) => {
            let upload = tokio::spawn(async move {
                while let Some(bytes) = from_client.recv().await {
                    if input.send(Frame::new(Frame::STDIN, bytes)).await.is_err() {
                        return;
                    }
                }
            });
            while let Some(frame) = output.recv().await {
                let sent = match frame.channel {
                    Frame::STDOUT => out.send(message(channel, &frame.data)).await,
                    Frame::ERROR => match failure_of(&frame.data) {
                        Some(text) => out.send(message(channel + 1, text.as_bytes())).await,
                        None => Ok(()),
                    },
                    _ => Ok(()),
                };
                if sent.is_err() {
                    break;
                }
            }
            upload.abort();
        }
    }
}
