//! `grpc.health.v1.Health/Check` by hand: two small messages need no code generator.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, Request};

use super::refused;

const NAMES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// `Ok` when the service says SERVING. `at` is `address:port`.
pub(super) async fn check(at: &str, service: &str) -> Result<(), String> {
    let stream =
        tokio::net::TcpStream::connect(at).await.map_err(|e| format!("error: health rpc probe failed: dial tcp {at}: {}", refused(&e)))?;
    let failed = |e: h2::Error| format!("error: health rpc probe failed: {e}");
    let (sender, connection) = h2::client::handshake(stream).await.map_err(failed)?;
    let driver = tokio::spawn(connection);
    let result = call(sender, at, service).await;
    driver.abort();
    result
}

async fn call(sender: h2::client::SendRequest<Bytes>, at: &str, service: &str) -> Result<(), String> {
    let failed = |e: h2::Error| format!("error: health rpc probe failed: {e}");
    let mut sender = sender.ready().await.map_err(failed)?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{at}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.33")
        .body(())
        .map_err(|e| e.to_string())?;
    let (response, mut body) = sender.send_request(request, false).map_err(failed)?;
    body.send_data(encode(service), true).map_err(failed)?;
    let (head, mut answer) = response.await.map_err(failed)?.into_parts();
    let mut message = BytesMut::new();
    while let Some(chunk) = answer.data().await {
        let chunk = chunk.map_err(failed)?;
        let _ = answer.flow_control().release_capacity(chunk.len());
        message.extend_from_slice(&chunk[..chunk.len().min(1024usize.saturating_sub(message.len()))]);
    }
    let trailers = answer.trailers().await.map_err(failed)?.unwrap_or_default();
    judge(at, &head.headers, &trailers, &message)
}

fn judge(at: &str, head: &HeaderMap, trailers: &HeaderMap, message: &[u8]) -> Result<(), String> {
    let status = trailers.get("grpc-status").or_else(|| head.get("grpc-status")).and_then(|v| v.to_str().ok()).unwrap_or("0");
    let text = trailers.get("grpc-message").or_else(|| head.get("grpc-message")).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match status {
        "0" => {}
        "12" => return Err(format!("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {text}")),
        code => return Err(format!("error: health rpc probe of {at} failed: rpc error: code = {code} desc = {text}")),
    }
    match decode(message) {
        1 => Ok(()),
        other => {
            let name = usize::try_from(other).ok().and_then(|n| NAMES.get(n)).copied().unwrap_or("UNKNOWN");
            Err(format!("service unhealthy (responded with \"{name}\")"))
        }
    }
}

/// `HealthCheckRequest { string service = 1; }` with gRPC's five bytes before it.
fn encode(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(0));
    framed.put_slice(&message);
    framed.freeze()
}

fn varint(out: &mut BytesMut, mut n: u64) {
    while n >= 0x80 {
        out.put_u8((n as u8 & 0x7f) | 0x80);
        n >>= 7;
    }
    out.put_u8(n as u8);
}

/// `HealthCheckResponse { ServingStatus status = 1; }`; what cannot be read is 0, UNKNOWN.
fn decode(framed: &[u8]) -> u64 {
    let Some(message) = framed.get(5..) else { return 0 };
    match message {
        [0x08, rest @ ..] => {
            let (mut value, mut shift) = (0u64, 0u32);
            for byte in rest.iter().take(10) {
                value |= u64::from(byte & 0x7f) << shift.min(63);
                if byte & 0x80 == 0 {
                    return value;
                }
                shift += 7;
            }
            0
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_what_protobuf_says() {
        assert_eq!(&encode("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&encode("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        for (bytes, status) in [(&[0, 0, 0, 0, 2, 8, 1][..], 1), (&[0, 0, 0, 0, 0], 0), (&[0, 0, 0, 0, 2, 8, 2], 2), (&[], 0)] {
            assert_eq!(decode(bytes), status);
        }
        let trailers = |status: &str| HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), status.parse().unwrap())]);
        assert!(judge("x", &HeaderMap::new(), &trailers("0"), &[0, 0, 0, 0, 2, 8, 1]).is_ok());
        let why = judge("x", &HeaderMap::new(), &trailers("0"), &[0, 0, 0, 0, 2, 8, 2]).unwrap_err();
        assert_eq!(why, "service unhealthy (responded with \"NOT_SERVING\")");
        assert!(judge("x", &HeaderMap::new(), &trailers("12"), &[]).unwrap_err().contains("does not implement"));
    }

    /// A health server of three lines over h2: the whole exchange.
    #[tokio::test]
    async fn asks_over_http2() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                let mut out = respond.send_response(head, false).unwrap();
                out.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), false).unwrap();
                out.send_trailers(HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), "0".parse().unwrap())])).unwrap();
            }
        });
        assert_eq!(check(&at, "web").await, Ok(()));
    }
}
