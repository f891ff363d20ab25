//! The router's listeners: connections in, requests out to [`crate::proxy::Router`], and a stop that lets them finish.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use client::CancellationToken;
use http::header::{CONNECTION, HeaderValue};
use http::{StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::body::Body;
use crate::headers::Client;
use crate::limits::{
    CONNECTIONS_MAX, DRAIN_LINGER, DRAIN_WITHIN, H2_PING_EVERY, H2_PING_WITHIN, HEADERS_BYTES_MAX, HEADERS_WITHIN, STREAMS_MAX, TLS_WITHIN,
};
use crate::proxy::Router;

/// Serves plain HTTP and HTTPS until told to stop, then lets requests in flight end, for [`DRAIN_WITHIN`] at most.
pub async fn serve(router: Arc<Router>, http: TcpListener, https: TcpListener, stop: CancellationToken) -> io::Result<()> {
    let tls = router.certificates().server_config().map_err(io::Error::other)?;
    let server = Arc::new(Server { router, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)), builder: builder(), stop: stop.clone() });
    let graceful = GracefulShutdown::new();
    let plain = server.clone().accept(http, None, &graceful, &stop);
    let secure = server.accept(https, Some(tls), &graceful, &stop);
    let (plain, secure) = tokio::join!(plain, secure);
    plain.and(secure)?;
    // A connection accepted a moment ago has its request still on the way. Answers say `Connection: close` by now.
    tokio::time::sleep(DRAIN_LINGER).await;
    if timeout(DRAIN_WITHIN, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests still in flight after {DRAIN_WITHIN:?} are cut off");
    }
    Ok(())
}

struct Server {
    router: Arc<Router>,
    room: Arc<Semaphore>,
    builder: Builder<TokioExecutor>,
    stop: CancellationToken,
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN).max_buf_size(HEADERS_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADERS_BYTES_MAX as u32)
        .keep_alive_interval(H2_PING_EVERY)
        .keep_alive_timeout(H2_PING_WITHIN)
        .adaptive_window(true);
    builder
}

impl Server {
    async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        graceful: &GracefulShutdown,
        stop: &CancellationToken,
    ) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let port = listener.local_addr()?.port();
        loop {
            let next = async {
                let permit = self.room.clone().acquire_owned().await.map_err(io::Error::other)?;
                Ok::<_, io::Error>((listener.accept().await?, permit))
            };
            let accepted = tokio::select! { biased; () = stop.cancelled() => return Ok(()), next = next => next };
            let ((stream, peer), permit) = match accepted {
                Ok(accepted) => accepted,
                // Out of descriptors, or the client left before we looked: neither ends the router.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (server, tls, watcher) = (self.clone(), tls.clone(), graceful.watcher());
            tokio::spawn(async move {
                server.connection(stream, peer, port, tls, watcher).await;
                drop(permit);
            });
        }
    }

    async fn connection(&self, stream: TcpStream, peer: SocketAddr, port: u16, tls: Option<Arc<ServerConfig>>, watcher: Watcher) {
        let _ = stream.set_nodelay(true);
        let client = Client { address: peer.ip(), tls: tls.is_some(), port };
        match tls {
            None => self.requests(stream, client, watcher).await,
            Some(config) => {
                let handshake = tokio_rustls::TlsAcceptor::from(config).accept(stream);
                if let Ok(Ok(stream)) = timeout(TLS_WITHIN, handshake).await {
                    self.requests(stream, client, watcher).await;
                }
            }
        }
    }

    async fn requests<S>(&self, stream: S, client: Client, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request: http::Request<Incoming>| answer(self.router.clone(), request, client, self.stop.clone()));
        let connection = self.builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        // Errors here are clients that left or broke the protocol; hyper has answered what can be answered.
        let _ = watcher.watch(connection).await;
    }
}

async fn answer(
    router: Arc<Router>,
    request: http::Request<Incoming>,
    client: Client,
    stop: CancellationToken,
) -> Result<http::Response<Body>, Infallible> {
    let keeps = request.version() == Version::HTTP_11;
    let mut response = router.handle(request, client).await;
    if stop.is_cancelled() && keeps && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}
