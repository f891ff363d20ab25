//! The listener: plain HTTP/1.1 and HTTP/2, bounded connections, an end that lets requests finish.

use std::future::Future;
use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::{Peer, Registry, limits};

/// Serves until `shutdown` is done, then drains.
pub async fn serve(registry: Arc<Registry>, listener: TcpListener, shutdown: impl Future<Output = ()>) {
    let slots = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits::HEADER_TIMEOUT);
    let graceful = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, address)) = accepted else {
            // Out of descriptors: accepting again at once would only spin.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let _ = stream.set_nodelay(true);
        let peer = Peer { address: Some(address), local: stream.local_addr().ok() };
        let registry = registry.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let registry = registry.clone();
            async move { Ok::<_, std::convert::Infallible>(registry.handle(peer, request).await) }
        });
        let connection = graceful.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                tracing::debug!("registry connection from {address}: {e}");
            }
            drop(slot);
        });
    }
    let _ = tokio::time::timeout(limits::DRAIN_TIMEOUT, graceful.shutdown()).await;
}
