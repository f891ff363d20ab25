//! `staithe exec`: a command in a container over a WebSocket, with the terminal in raw mode where one is asked for.

use std::io::{IsTerminal, Read, Write};

use anyhow::{Context, Result, bail};
use api::Value;
use base64::Engine as _;
use client::Upgraded;
use futures_util::{SinkExt, StreamExt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Bytes, Message, protocol::Role};

use crate::cli::Exec;
use crate::context::{Ctx, container, query, row, text};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Opens a WebSocket on `path` with one subprotocol.
pub async fn websocket(ctx: &Ctx, path: &str, protocol: &str) -> Result<WebSocketStream<Upgraded>> {
    let mut nonce = [0u8; 16];
    rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty()).context("random bytes")?;
    let request = http::Request::builder()
        .uri(path)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", base64::engine::general_purpose::STANDARD.encode(nonce))
        .header("sec-websocket-protocol", protocol)
        .body(())?;
    let (_, stream) = ctx.transport.upgrade(request).await.map_err(|e| anyhow::anyhow!("{e}"))?;
    Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
}

/// The terminal as it was, put back whatever happens.
struct RawTerminal(Option<Termios>);

impl RawTerminal {
    fn enter(wanted: bool) -> Self {
        let stdin = std::io::stdin();
        if !wanted || !stdin.is_terminal() {
            return Self(None);
        }
        let Ok(before) = tcgetattr(&stdin) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        let _ = tcsetattr(&stdin, OptionalActions::Now, &raw);
        Self(Some(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, before);
        }
    }
}

fn frame(channel: u8, data: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(data.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(data);
    Message::Binary(Bytes::from(bytes))
}

fn size() -> Option<Message> {
    let size = tcgetwinsize(std::io::stdout()).ok()?;
    Some(frame(RESIZE, format!(r#"{{"Width":{},"Height":{}}}"#, size.ws_col, size.ws_row).as_bytes()))
}

/// The exit code that a final `Status` tells.
fn exit_code(status: &[u8]) -> Result<i32> {
    let status: Value = serde_json::from_slice(status).unwrap_or_default();
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array();
    let code = causes.into_iter().flatten().find(|c| c["reason"] == "ExitCode").and_then(|c| c["message"].as_str()?.parse().ok());
    match code {
        Some(code) => Ok(code),
        None => bail!("{}", status["message"].as_str().unwrap_or("the session ended without a result")),
    }
}

pub async fn run(args: &Exec) -> Result<i32> {
    let ctx = Ctx::connect(&args.target)?;
    let pod = ctx.pod(&args.what).await?;
    let name = container(&pod, args.container.as_deref())?;
    let flag = |on: bool| if on { "true" } else { "" };
    let mut pairs = vec![
        ("container", name.as_str()),
        ("stdin", flag(args.stdin)),
        ("stdout", "true"),
        ("stderr", flag(!args.tty)),
        ("tty", flag(args.tty)),
    ];
    pairs.extend(args.command.iter().map(|word| ("command", word.as_str())));
    let path = ctx.path(row("pods")?, text(&pod["metadata"]["name"])) + "/exec" + &query(&pairs);
    let socket = websocket(&ctx, &path, "v5.channel.k8s.io").await?;
    let _terminal = RawTerminal::enter(args.tty && args.stdin);
    session(socket, args.stdin, args.tty).await
}

/// Standard input as messages: a thread of its own reads, for a terminal has no other way to be waited for.
fn stdin_messages() -> tokio::sync::mpsc::Receiver<Message> {
    let (to, from) = tokio::sync::mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0u8; 32 << 10];
        loop {
            let message = match std::io::stdin().lock().read(&mut buffer) {
                Ok(0) | Err(_) => frame(CLOSE, &[STDIN]),
                Ok(n) => frame(STDIN, &buffer[..n]),
            };
            let last = message == frame(CLOSE, &[STDIN]);
            if to.blocking_send(message).is_err() || last {
                return;
            }
        }
    });
    from
}

async fn session(socket: WebSocketStream<Upgraded>, stdin: bool, tty: bool) -> Result<i32> {
    let (mut to, mut from) = socket.split();
    let mut input = stdin.then(stdin_messages);
    let mut resized = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change())?;
    if tty && let Some(message) = size() {
        to.send(message).await?;
    }
    let show = |out: &mut dyn Write, bytes: &[u8]| out.write_all(bytes).and_then(|()| out.flush());
    loop {
        tokio::select! {
            biased;
            message = from.next() => match message {
                Some(Ok(Message::Binary(bytes))) if !bytes.is_empty() => match bytes[0] {
                    STDOUT => show(&mut std::io::stdout(), &bytes[1..])?,
                    STDERR => show(&mut std::io::stderr(), &bytes[1..])?,
                    ERROR => return exit_code(&bytes[1..]),
                    _ => {}
                },
                Some(Ok(Message::Close(_))) | None => bail!("the connection closed before the command ended"),
                Some(Ok(_)) => {}
                Some(Err(e)) => bail!("the connection broke: {e}"),
            },
            _ = resized.recv(), if tty => if let Some(message) = size() { to.send(message).await? },
            message = async { input.as_mut()?.recv().await }, if input.is_some() => match message {
                Some(message) => to.send(message).await?,
                None => input = None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_final_status_tells_the_exit_code() {
        assert_eq!(exit_code(br#"{"status":"Success"}"#).unwrap(), 0);
        let failed = br#"{"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
        assert_eq!(exit_code(failed).unwrap(), 3);
        assert!(exit_code(br#"{"status":"Failure","message":"no such file"}"#).unwrap_err().to_string().contains("no such file"));
    }
}
