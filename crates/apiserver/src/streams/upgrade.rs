//! From an HTTP/1.1 request to a connection of our own: WebSocket (RFC 6455) and `Upgrade: SPDY/3.1`.

use api::{Reason, Status};
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

use crate::limits;
use crate::respond::{self, Body};

pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// What a request asks to become.
pub enum Upgrade {
    /// With the protocol chosen; empty when the client named none.
    WebSocket {
        protocol: &'static str,
        accept: String,
        on: OnUpgrade,
    },
    Spdy {
        protocol: Option<String>,
        on: OnUpgrade,
    },
}

fn tokens<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).map(str::trim)
}

impl Upgrade {
    /// `protocols` are the WebSocket subprotocols served, `spdy` the values of `X-Stream-Protocol-Version`.
    pub fn of(request: &mut Request<Body>, protocols: &[&'static str], spdy: &[&str]) -> Result<Upgrade, Status> {
        let headers = request.headers();
        let asked = tokens(headers, &UPGRADE).next().unwrap_or_default().to_ascii_lowercase();
        let upgrading = tokens(headers, &CONNECTION).any(|t| t.eq_ignore_ascii_case("upgrade"));
        if !upgrading || asked.is_empty() {
            return Err(Status::bad_request("Upgrade request required"));
        }
        match asked.as_str() {
            "websocket" => {
                let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| Status::bad_request("Sec-WebSocket-Key is missing"))?;
                let accept = derive_accept_key(key.as_bytes());
                let offered: Vec<&str> = tokens(headers, &SEC_WEBSOCKET_PROTOCOL).filter(|t| !t.is_empty()).collect();
                let protocol =
                    if offered.is_empty() { Some("") } else { offered.iter().find_map(|o| protocols.iter().find(|p| *p == o).copied()) };
                let protocol = protocol.ok_or_else(|| {
                    Status::bad_request(format!("no WebSocket protocol in common: asked for {offered:?}, served are {protocols:?}"))
                })?;
                Ok(Upgrade::WebSocket { protocol, accept, on: hyper::upgrade::on(request) })
            }
            "spdy/3.1" if !spdy.is_empty() => {
                let name = http::HeaderName::from_static("x-stream-protocol-version");
                let offered: Vec<String> = tokens(headers, &name).map(String::from).collect();
                let protocol = offered.iter().find(|o| spdy.contains(&o.as_str())).cloned();
                if protocol.is_none() && !offered.is_empty() {
                    return Err(Status::new(
                        Reason::Forbidden,
                        format!("unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {spdy:?}"),
                    ));
                }
                Ok(Upgrade::Spdy { protocol, on: hyper::upgrade::on(request) })
            }
            other => Err(Status::bad_request(format!("unable to upgrade to {other:?}"))),
        }
    }

    /// The `101 Switching Protocols` of this upgrade.
    pub fn response(&self) -> Response<Body> {
        let mut response = Response::new(respond::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        match self {
            Upgrade::WebSocket { protocol, accept, .. } => {
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                if let Ok(value) = HeaderValue::from_str(accept) {
                    headers.insert(SEC_WEBSOCKET_ACCEPT, value);
                }
                if !protocol.is_empty() {
                    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
                }
            }
            Upgrade::Spdy { protocol, .. } => {
                headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
                if let Some(value) = protocol.as_deref().and_then(|p| HeaderValue::from_str(p).ok()) {
                    headers.insert(http::HeaderName::from_static("x-stream-protocol-version"), value);
                }
            }
        }
        response
    }
}

/// The WebSocket after the handshake; `None` when the client is gone.
pub async fn socket(on: OnUpgrade) -> Option<Socket> {
    let upgraded = on.await.ok()?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(limits::STREAM_MESSAGE_BYTES_MAX))
        .max_frame_size(Some(limits::STREAM_MESSAGE_BYTES_MAX));
    Some(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await)
}

/// The end that clients take for a good one: without a code they report an error.
pub fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Default::default() }))
}

/// A WebSocket whose binary messages are one stream of bytes, as `SPDY/3.1+portforward.k8s.io` has it.
pub fn bytes_of(socket: Socket) -> DuplexStream {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let (mut sink, mut stream) = socket.split();
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            let wrote = match message {
                Message::Binary(data) => far_write.write_all(&data).await,
                Message::Text(text) => far_write.write_all(text.as_bytes()).await,
                Message::Close(_) => break,
                _ => Ok(()),
            };
            if wrote.is_err() {
                break;
            }
        }
        let _ = far_write.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match far_read.read(&mut buffer).await {
                Ok(n) if n > 0 => {
                    if sink.send(Message::Binary(bytes::Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
                        return;
                    }
                }
                _ => break,
            }
        }
        let _ = sink.send(goodbye()).await;
    });
    near
}
