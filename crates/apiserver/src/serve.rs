//! The listener: TLS, HTTP/1.1 and HTTP/2 by ALPN, bounds on what a connection may do, graceful end.
//!
//! Knows connections. Everything about a request is [`crate::Server::handle`]'s.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::{Caller, Server, limits, pki};

/// Serves until `shutdown`, then ends watches and streams, lets requests in flight finish, and returns.
pub async fn serve_tls(server: Arc<Server>, listener: TcpListener, tls: Arc<rustls::ServerConfig>, shutdown: CancellationToken) {
    let acceptor = TlsAcceptor::from(tls);
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(Semaphore::new(limits::CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others will close theirs.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else {
            tracing::warn!(max = limits::CONNECTIONS_MAX, "too many connections: one refused");
            continue;
        };
        let (server, acceptor, watcher) = (server.clone(), acceptor.clone(), graceful.watcher());
        tokio::spawn(async move {
            connection(server, acceptor, stream, watcher).await;
            drop(permit);
        });
    }
    drop(listener);
    server.stop();
    tokio::select! {
        biased;
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(limits::SHUTDOWN_GRACE) => tracing::info!("connections still open after the grace period are cut"),
    }
}

async fn connection(server: Arc<Server>, acceptor: TlsAcceptor, stream: TcpStream, watcher: hyper_util::server::graceful::Watcher) {
    let _ = stream.set_nodelay(true);
    let io = Stalled::new(stream);
    let Ok(Ok(tls)) = tokio::time::timeout(limits::TLS_HANDSHAKE_TIMEOUT, acceptor.accept(io)).await else { return };
    let certificate = tls.get_ref().1.peer_certificates().and_then(|c| c.first());
    let caller = match certificate {
        // The verifier has checked chain and dates; a name that does not parse is nobody's.
        Some(der) => pki::identity_of(der).map_or(Caller::Unproven, Caller::Proven),
        None => Caller::Unproven,
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let (server, caller) = (server.clone(), caller.clone());
        async move { Ok::<_, Infallible>(server.handle(caller, request.map(boxed)).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEADER_READ_TIMEOUT)
        .max_headers(limits::HEADERS_MAX)
        .max_buf_size(limits::HEADER_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::HTTP2_STREAMS_MAX)
        .max_header_list_size(limits::HEADER_BYTES_MAX)
        .keep_alive_interval(limits::HTTP2_PING_INTERVAL)
        .keep_alive_timeout(limits::HTTP2_PING_TIMEOUT);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(tls), service).into_owned();
    if let Err(error) = watcher.watch(serving).await {
        tracing::debug!(%error, "a connection ended");
    }
}

fn boxed(body: Incoming) -> client::Body {
    body.map_err(std::io::Error::other).boxed_unsync()
}

/// Cuts a connection whose peer takes no byte for [`limits::WRITE_STALL_TIMEOUT`] while an answer waits.
struct Stalled<T> {
    io: T,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<T> Stalled<T> {
    fn new(io: T) -> Self {
        Self { io, stalled: None }
    }
}

impl<T: AsyncWrite + Unpin> Stalled<T> {
    fn bounded<R>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut T>, &mut Context<'_>) -> Poll<std::io::Result<R>>,
    ) -> Poll<std::io::Result<R>> {
        match write(Pin::new(&mut self.io), cx) {
            Poll::Ready(done) => {
                self.stalled = None;
                Poll::Ready(done)
            }
            Poll::Pending => {
                let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limits::WRITE_STALL_TIMEOUT)));
                match timer.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Stalled<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Stalled<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        self.bounded(cx, |io, cx| io.poll_write(cx, buf))
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[std::io::IoSlice<'_>]) -> Poll<std::io::Result<usize>> {
        self.bounded(cx, |io, cx| io.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.bounded(cx, |io, cx| io.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.bounded(cx, |io, cx| io.poll_shutdown(cx))
    }
}

/// A body with a bound on its size and on the time it takes: 413 and 408 as `Status`.
pub async fn collect(body: client::Body) -> Result<Bytes, api::Status> {
    use api::{Reason, Status};
    let too_large = || Status::new(Reason::RequestEntityTooLarge, format!("Request entity too large: limit is {}", limits::BODY_BYTES_MAX));
    if http_body::Body::size_hint(&body).lower() > limits::BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let limited = http_body_util::Limited::new(body, limits::BODY_BYTES_MAX);
    match tokio::time::timeout(limits::BODY_READ_TIMEOUT, limited.collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(Status::bad_request(format!("the body could not be read: {error}"))),
        Err(_) => Err(Status::new(Reason::Timeout, format!("the body did not arrive within {} s", limits::BODY_READ_TIMEOUT.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_cut_off() {
        let (near, far) = tokio::io::duplex(16);
        let mut io = Stalled::new(near);
        io.write_all(&[0; 16]).await.unwrap();
        let began = tokio::time::Instant::now();
        assert_eq!(io.write_all(&[0; 1]).await.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed(), limits::WRITE_STALL_TIMEOUT);
        drop(far);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_not_waited_for() {
        let silent = futures_util::stream::pending::<Result<http_body::Frame<Bytes>, std::io::Error>>();
        let status = collect(http_body_util::StreamBody::new(silent).boxed_unsync()).await.unwrap_err();
        assert_eq!((status.code, status.message.as_str()), (504, "the body did not arrive within 30 s"));
    }
}
