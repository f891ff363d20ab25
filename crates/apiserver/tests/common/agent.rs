//! An agent that runs exec as processes of this machine, forwards ports to loopback and tells a fixed log.

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use api::{Reason, Status};
use async_trait::async_trait;
use bytes::Bytes;
use ports::{Frame, NodeHandler, NodeRequest, SESSION_FRAMES_MAX, Session};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

#[derive(Default, Clone)]
pub struct Agent {
    pub asked: Arc<Mutex<Vec<NodeRequest>>>,
    pub resized: Arc<Mutex<Vec<String>>>,
}

type Ends = (mpsc::Receiver<Frame>, mpsc::Sender<Frame>);

fn session() -> (Session, Ends) {
    let (input, from_client) = mpsc::channel(SESSION_FRAMES_MAX);
    let (to_client, output) = mpsc::channel(SESSION_FRAMES_MAX);
    (Session { input, output }, (from_client, to_client))
}

#[async_trait]
impl NodeHandler for Agent {
    async fn open(&self, request: NodeRequest) -> Result<Session, Status> {
        self.asked.lock().unwrap().push(request.clone());
        let (ours, ends) = session();
        match request {
            NodeRequest::Logs { options, container, .. } => {
                tokio::spawn(logs(ends, options.follow, container));
            }
            NodeRequest::Exec { command, tty: false, .. } => {
                let child = tokio::process::Command::new(&command[0])
                    .args(&command[1..])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .kill_on_drop(true)
                    .spawn()
                    .map_err(|e| Status::new(Reason::InternalError, format!("{}: {e}", command[0])))?;
                tokio::spawn(process(ends, child));
            }
            NodeRequest::Exec { .. } | NodeRequest::Attach { .. } => {
                tokio::spawn(echo(self.clone(), ends));
            }
            NodeRequest::PortForward { port, .. } => {
                let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
                let stream = stream.map_err(|e| Status::new(Reason::InternalError, format!("port {port}: {e}")))?;
                tokio::spawn(forward(ends, stream));
            }
            NodeRequest::Stats => return Err(Status::bad_request("no stats")),
        }
        Ok(ours)
    }
}

fn done(code: i32) -> Frame {
    let status = if code == 0 {
        r#"{"metadata":{},"status":"Success"}"#.to_string()
    } else {
        format!(
            r#"{{"metadata":{{}},"status":"Failure","reason":"NonZeroExitCode","message":"command terminated with non-zero exit code: exit status {code}","details":{{"causes":[{{"reason":"ExitCode","message":"{code}"}}]}}}}"#
        )
    };
    Frame::new(Frame::ERROR, status)
}

async fn logs((_input, out): Ends, follow: bool, container: String) {
    for i in 0..3 {
        let _ = out.send(Frame::new(Frame::STDOUT, format!("{container} line {i}\n"))).await;
        if follow {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
}

async fn pump(mut from: impl tokio::io::AsyncRead + Unpin, channel: u8, out: mpsc::Sender<Frame>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 || out.send(Frame::new(channel, Bytes::copy_from_slice(&buffer[..n]))).await.is_err() {
            return;
        }
    }
}

async fn process((mut input, out): Ends, mut child: tokio::process::Child) {
    let mut stdin = child.stdin.take();
    let stdout = tokio::spawn(pump(child.stdout.take().unwrap(), Frame::STDOUT, out.clone()));
    let stderr = tokio::spawn(pump(child.stderr.take().unwrap(), Frame::STDERR, out.clone()));
    let feeding = tokio::spawn(async move {
        while let Some(frame) = input.recv().await {
            match frame.channel {
                Frame::STDIN => {
                    if let Some(pipe) = &mut stdin {
                        let _ = pipe.write_all(&frame.data).await;
                    }
                }
                Frame::CLOSE => drop(stdin.take()),
                _ => {}
            }
        }
    });
    let _ = tokio::join!(stdout, stderr);
    let code = child.wait().await.ok().and_then(|s| s.code()).unwrap_or(137);
    let _ = out.send(done(code)).await;
    feeding.abort();
}

/// A terminal that says what it was told, and ends at `exit`.
async fn echo(agent: Agent, (mut input, out): Ends) {
    while let Some(frame) = input.recv().await {
        match frame.channel {
            Frame::STDIN if frame.data.starts_with(b"exit") => break,
            Frame::STDIN => {
                let _ = out.send(Frame::new(Frame::STDOUT, frame.data)).await;
            }
            Frame::RESIZE => agent.resized.lock().unwrap().push(String::from_utf8_lossy(&frame.data).into_owned()),
            Frame::CLOSE => break,
            _ => {}
        }
    }
    let _ = out.send(done(0)).await;
}

async fn forward((mut input, out): Ends, stream: tokio::net::TcpStream) {
    let (read, mut write) = stream.into_split();
    let reading = tokio::spawn(pump(read, Frame::STDOUT, out));
    while let Some(frame) = input.recv().await {
        match frame.channel {
            Frame::STDIN if write.write_all(&frame.data).await.is_err() => break,
            Frame::CLOSE => {
                let _ = write.shutdown().await;
            }
            _ => {}
        }
    }
    reading.abort();
}
