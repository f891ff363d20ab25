//! Lifecycle hooks, and commands run in a container for hooks and probes.

use std::time::Duration;

use driver::{Exec, Frame};
use k8s_openapi::api::core::v1::{Container as Spec, LifecycleHandler};

use super::PodCx;
use crate::limits::EXEC_OUTPUT_BYTES;
use crate::probe;

/// Runs a hook to its end. The caller bounds its time.
pub(super) async fn run(cx: &PodCx, container: &Spec, handler: &LifecycleHandler) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        return match run_exec(cx, &container.name, &command).await? {
            (0, _) => Ok(()),
            (code, output) => {
                let words = command.iter().map(|w| format!("{w:?}")).collect::<Vec<_>>().join(" ");
                Err(format!("command [{words}] exited with {code}: {output}"))
            }
        };
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    if let Some(get) = &handler.http_get {
        let target = probe::http_target(cx, container, get)?;
        return probe::http::get(&target, "kube-lifecycle/1.33").await.map(drop);
    }
    if let Some(tcp) = &handler.tcp_socket {
        let (host, port) = probe::tcp_target(cx, container, tcp)?;
        return probe::tcp(&host, port).await;
    }
    Err("invalid handler: no exec, httpGet, tcpSocket or sleep".into())
}

/// Runs a command beside a container's own: its exit code and the head of its output.
pub(crate) async fn run_exec(cx: &PodCx, container: &str, command: &[String]) -> Result<(i32, String), String> {
    let exec = Exec { args: command.to_vec(), ..Exec::default() };
    let mut session = cx.driver.exec(&cx.uid, container, &exec).await.map_err(|e| e.to_string())?;
    let mut output = Vec::new();
    while let Some(frame) = session.output.recv().await {
        match frame {
            Frame::Stdout(data) | Frame::Stderr(data) => {
                let room = EXEC_OUTPUT_BYTES.saturating_sub(output.len());
                output.extend_from_slice(&data[..data.len().min(room)]);
            }
            Frame::Exit(Ok(code)) => return Ok((code, String::from_utf8_lossy(&output).into_owned())),
            Frame::Exit(Err(why)) => return Err(why),
            Frame::Stdin(_) | Frame::CloseStdin | Frame::Resize { .. } => {}
        }
    }
    Err("the command's session ended without an exit code".into())
}
