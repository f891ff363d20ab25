//! What a proxy has to do to headers: nothing of one connection may leak into the next (RFC 9110 §7.6.1), and nobody may
//! read a message's end elsewhere than we do.

use std::net::IpAddr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::uri::PathAndQuery;
use http::{Request, Uri, Version};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// Who a request came from and how.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    pub address: IpAddr,
    pub tls: bool,
    /// The port it was accepted on.
    pub port: u16,
}

impl Client {
    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

/// Host (lower case, no port) and authority (as given) of a request; why not, where it is malformed.
pub fn authority<B>(request: &Request<B>) -> Result<(String, String), &'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let header = hosts.next().map(|h| h.to_str().map_err(|_| "the Host header is not plain text")).transpose()?;
    if hosts.next().is_some() {
        return Err("there is more than one Host header");
    }
    // A target in absolute form and HTTP/2's :authority outrank the header (RFC 9112 §3.2.2).
    let given = request.uri().authority().map(|a| a.as_str()).or(header);
    let Some(given) = given else {
        return if request.version() < Version::HTTP_11 { Ok((String::new(), String::new())) } else { Err("there is no Host header") };
    };
    if given.contains('@') || (!given.is_empty() && given.parse::<http::uri::Authority>().is_err()) {
        return Err("the host is malformed");
    }
    let name = match given.rfind(':') {
        Some(colon) if !given[colon..].contains(']') => &given[..colon],
        _ => given,
    };
    Ok((name.trim_end_matches('.').to_ascii_lowercase(), given.to_string()))
}

/// Whether a path has an element `.` or `..`, plain or percent-encoded. Routing such a path by prefix and letting the
/// endpoint resolve it would lead around the route table.
pub fn has_dot_segments(path: &str) -> bool {
    path.split('/').any(|element| {
        let mut rest = element;
        let mut dots = 0;
        while !rest.is_empty() {
            rest = match rest.as_bytes() {
                [b'.', ..] => &rest[1..],
                [b'%', b'2', b'e' | b'E', ..] => &rest[3..],
                _ => return false,
            };
            dots += 1;
        }
        matches!(dots, 1 | 2)
    })
}

/// The protocol that both sides are to switch to, if the client asks for one we pass on.
pub fn upgrade<B>(request: &Request<B>) -> Option<HeaderValue> {
    let asked = request.headers().get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok());
    let named = asked.flat_map(|v| v.split(',')).any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = request.headers().get(UPGRADE)?;
    // HTTP/2 over a tunnel would carry requests past the route table.
    let h2c = protocol.to_str().map_or(true, |p| p.split(',').any(|p| p.trim().to_ascii_lowercase().starts_with("h2c")));
    (named && !h2c && request.version() == Version::HTTP_11).then(|| protocol.clone())
}

/// Removes what belongs to one connection only.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|token| HeaderName::from_bytes(token.trim().as_bytes()).ok())
        .collect();
    let trailers_wanted = headers.get_all(TE).iter().any(|v| v.as_bytes().eq_ignore_ascii_case(b"trailers"));
    // Where both lengths are told, the framing was read by the encoding: the other must not travel on.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    for name in named {
        // Headers that mean something from end to end are not ours to lose because a client lists them.
        if !matches!(name, HOST | CONTENT_LENGTH | http::header::AUTHORIZATION | http::header::COOKIE) {
            headers.remove(name);
        }
    }
    for name in
        [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS]
    {
        headers.remove(name);
    }
    if trailers_wanted {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Makes a request ready for an endpoint. What a client says about whom it forwards for is not believed: this is the
/// edge.
pub fn prepare<B>(request: &mut Request<B>, authority: &str, client: Client, upgrade: Option<HeaderValue>, h2: bool) {
    let headers = request.headers_mut();
    remove_hop_by_hop(headers);
    // `100 Continue` has been settled between the client and us.
    headers.remove(EXPECT);
    headers.remove(FORWARDED);
    let set = |headers: &mut HeaderMap, name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    let address = client.address.to_string();
    set(headers, FORWARDED_FOR, &address);
    set(headers, REAL_IP, &address);
    set(headers, FORWARDED_PROTO, client.scheme());
    set(headers, FORWARDED_HOST, authority);
    set(headers, FORWARDED_PORT, &client.port.to_string());
    if h2 {
        headers.remove(HOST);
    } else {
        set(headers, HOST, authority);
    }
    if let Some(protocol) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = if h2 {
        let absolute =
            Uri::builder().scheme("http").authority(if authority.is_empty() { "localhost" } else { authority }).path_and_query(path);
        absolute.build().unwrap_or_default()
    } else {
        Uri::from(path)
    };
    *request.version_mut() = if h2 { Version::HTTP_2 } else { Version::HTTP_11 };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut r = Request::builder().uri("/x?y=1");
        for (name, value) in headers {
            r = r.header(*name, *value);
        }
        r.body(()).unwrap()
    }

    #[test]
    fn hop_by_hop_headers_go_and_trailers_stay_wanted() {
        let mut r = request(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
            ("accept", "*/*"),
            ("cookie", "a=b"),
        ]);
        remove_hop_by_hop(r.headers_mut());
        let mut left: Vec<_> = r.headers().keys().map(|k| k.as_str()).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "cookie", "te"]);
    }

    #[test]
    fn connection_may_not_name_what_others_rely_on() {
        let mut r = request(&[
            ("connection", "authorization, host, content-length"),
            ("authorization", "x"),
            ("host", "h"),
            ("content-length", "1"),
        ]);
        remove_hop_by_hop(r.headers_mut());
        assert_eq!(r.headers().len(), 3);
    }

    #[test]
    fn hosts_lose_port_case_and_closing_dot() {
        for (given, name) in
            [("Shop.Example:8080", "shop.example"), ("shop.example.", "shop.example"), ("[::1]:80", "[::1]"), ("10.0.0.1", "10.0.0.1")]
        {
            assert_eq!(authority(&request(&[("host", given)])).unwrap().0, name);
        }
        assert!(authority(&request(&[])).is_err());
        assert!(authority(&request(&[("host", "a"), ("host", "b")])).is_err());
        assert!(authority(&request(&[("host", "user@a")])).is_err());
        assert!(authority(&request(&[("host", "a b")])).is_err());
    }

    #[test]
    fn dot_segments_are_seen_through_their_encodings() {
        for path in ["/a/../b", "/a/.", "/%2e%2E/b", "/a/.%2e"] {
            assert!(has_dot_segments(path), "{path}");
        }
        for path in ["/a.b", "/...", "/", "/a/..b", "/.well-known/x", "/a//b", "/%2e%2e%2e"] {
            assert!(!has_dot_segments(path), "{path}");
        }
    }

    #[test]
    fn only_upgrades_that_stay_inside_a_request_are_passed_on() {
        assert!(upgrade(&request(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])).is_some());
        assert!(upgrade(&request(&[("upgrade", "websocket")])).is_none());
        assert!(upgrade(&request(&[("connection", "upgrade"), ("upgrade", "h2c")])).is_none());
    }

    #[test]
    fn the_endpoint_hears_of_the_client_from_us_alone() {
        let mut r = request(&[("host", "h"), ("x-forwarded-for", "6.6.6.6"), ("forwarded", "for=6.6.6.6"), ("x-forwarded-proto", "https")]);
        let client = Client { address: "192.0.2.7".parse().unwrap(), tls: false, port: 80 };
        prepare(&mut r, "h", client, None, false);
        assert_eq!(r.headers()["x-forwarded-for"], "192.0.2.7");
        assert_eq!(r.headers()["x-forwarded-proto"], "http");
        assert!(!r.headers().contains_key("forwarded"));
        assert_eq!(r.uri().to_string(), "/x?y=1");
    }
}
