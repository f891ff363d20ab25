//! `staithe port-forward`: local TCP ports that end in a pod, one WebSocket a connection.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::{Bytes, Message};

use crate::cli::PortForward;
use crate::context::{Ctx, query, row, text};
use crate::verbs::exec::websocket;

fn parse(text: &str) -> Result<(u16, u16)> {
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    let port = |p: &str| p.parse::<u16>().with_context(|| format!("{text:?} is not LOCAL:REMOTE, as 8080:80"));
    Ok((port(local)?, port(remote)?))
}

pub async fn run(args: &PortForward) -> Result<()> {
    let ports = args.ports.iter().map(|p| parse(p)).collect::<Result<Vec<_>>>()?;
    let ctx = Arc::new(Ctx::connect(&args.target)?);
    let pod = ctx.pod(&args.what).await?;
    let name = text(&pod["metadata"]["name"]).to_string();
    let mut tasks = Vec::new();
    for (local, remote) in ports {
        let listener = TcpListener::bind((args.address, local)).await.with_context(|| format!("port {local} on {}", args.address))?;
        println!("Forwarding {} to {name}:{remote}", listener.local_addr()?);
        let (ctx, name) = (ctx.clone(), name.clone());
        tasks.push(tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (ctx, name) = (ctx.clone(), name.clone());
                tokio::spawn(async move {
                    if let Err(e) = forward(&ctx, &name, remote, stream).await {
                        eprintln!("error: port {remote}: {e:#}");
                    }
                });
            }
        }));
    }
    for task in tasks {
        task.await?;
    }
    Ok(())
}

/// `v4.channel.k8s.io`: channel 0 is data, 1 is errors; the first message of each names the port.
async fn forward(ctx: &Ctx, pod: &str, port: u16, stream: TcpStream) -> Result<()> {
    let path = ctx.path(row("pods")?, pod) + "/portforward" + &query(&[("ports", &port.to_string())]);
    let (mut to, mut from) = websocket(ctx, &path, "v4.channel.k8s.io").await?.split();
    let (mut read, mut write) = stream.into_split();
    let up = async {
        let mut buffer = vec![0u8; 32 << 10];
        loop {
            let n = read.read(&mut buffer[1..]).await?;
            if n == 0 {
                to.close().await?;
                return Ok::<_, anyhow::Error>(());
            }
            buffer[0] = 0;
            to.send(Message::Binary(Bytes::copy_from_slice(&buffer[..=n]))).await?;
        }
    };
    let down = async {
        let mut named = [false; 2];
        while let Some(message) = from.next().await {
            let Message::Binary(bytes) = message? else { continue };
            let Some(channel) = bytes.first().copied().filter(|c| *c < 2) else { continue };
            if !std::mem::replace(&mut named[channel as usize], true) && bytes.len() == 3 {
                continue;
            }
            match channel {
                0 => write.write_all(&bytes[1..]).await?,
                _ if bytes.len() > 1 => bail!("{}", String::from_utf8_lossy(&bytes[1..])),
                _ => {}
            }
        }
        Ok(())
    };
    tokio::select! {
        biased;
        result = down => result,
        result = up => result,
    }
}
