//! What the three services share: HTTP/1.1 with keep-alive on threads, a client for each other, and a graceful end.
//!
//! Deliberately small and without a framework: the demonstration must build in seconds and run anywhere.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

pub struct Request {
    pub method: String,
    pub path: String,
    pub body: Vec<u8>,
}

pub struct Response {
    pub status: u16,
    pub content_type: &'static str,
    pub body: Vec<u8>,
}

impl Response {
    pub fn json(value: &serde_json::Value) -> Self {
        Self { status: 200, content_type: "application/json", body: format!("{value}\n").into_bytes() }
    }
    pub fn text(status: u16, text: &str) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: format!("{text}\n").into_bytes() }
    }
    pub fn html(text: String) -> Self {
        Self { status: 200, content_type: "text/html; charset=utf-8", body: text.into_bytes() }
    }
}

/// What the environment says this instance is.
pub fn instance() -> String {
    std::env::var("HOSTNAME").unwrap_or_else(|_| "local".into())
}

pub fn version() -> String {
    std::env::var("VERSION").unwrap_or_else(|_| "1".into())
}

/// Serves on `PORT` (8080) until SIGTERM; requests in flight are finished first.
///
/// Every service answers `/healthz` and, to show what a crash does, `/crash`.
pub fn serve(name: &str, handle: impl Fn(&Request) -> Response + Send + Sync + 'static) -> std::io::Result<()> {
    let port: u16 = std::env::var("PORT").ok().and_then(|p| p.parse().ok()).unwrap_or(8080);
    let ending = Arc::new(AtomicBool::new(false));
    let busy = Arc::new(AtomicUsize::new(0));
    end_on_sigterm(ending.clone(), busy.clone());
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("{name} {} listens on {port} as {}", version(), instance());
    let handle = Arc::new(handle);
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let (handle, ending, busy) = (handle.clone(), ending.clone(), busy.clone());
        std::thread::spawn(move || {
            let _ = connection(stream, &*handle, &ending, &busy);
        });
    }
    Ok(())
}

/// A process that is the first in its container gets no default handling of signals: it has to wait for them itself.
fn end_on_sigterm(ending: Arc<AtomicBool>, busy: Arc<AtomicUsize>) {
    // SAFETY: the set is initialised by sigemptyset; blocking before any other thread exists makes all of them inherit it.
    let set = unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    };
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right type.
        unsafe { libc::sigwait(&set, &mut signal) };
        ending.store(true, Ordering::SeqCst);
        for _ in 0..500 {
            if busy.load(Ordering::SeqCst) == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("ending on signal {signal}");
        std::process::exit(0);
    });
}

fn connection(stream: TcpStream, handle: &dyn Fn(&Request) -> Response, ending: &AtomicBool, busy: &AtomicUsize) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while let Some((request, keep)) = read_request(&mut reader)? {
        busy.fetch_add(1, Ordering::SeqCst);
        let response = match request.path.as_str() {
            "/healthz" => Response::text(200, "ok"),
            "/crash" => {
                eprintln!("asked to crash: {} exits with code 3", instance());
                std::process::exit(3);
            }
            _ => handle(&request),
        };
        let keep = keep && !ending.load(Ordering::SeqCst);
        let head = format!(
            "HTTP/1.1 {} {}\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: {}\r\n\r\n",
            response.status,
            if response.status < 400 { "OK" } else { "Error" },
            response.content_type,
            response.body.len(),
            if keep { "keep-alive" } else { "close" }
        );
        let written = writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&response.body));
        busy.fetch_sub(1, Ordering::SeqCst);
        written?;
        if !keep {
            break;
        }
    }
    Ok(())
}

/// A request and whether the connection may go on; `None` at its end.
fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<(Request, bool)>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default().to_string(), words.next().unwrap_or("/").to_string());
    let (mut length, mut keep) = (0, true);
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim_end().is_empty() {
            break;
        }
        let (name, value) = header.split_once(':').unwrap_or((&header, ""));
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse::<usize>().unwrap_or(0).min(1 << 20),
            "connection" => keep = !value.trim().eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((Request { method, path, body }, keep)))
}

/// Asks another service by its name in the cluster's DNS: `call("catalogue", "GET", "/items", b"")`.
pub fn call(service: &str, method: &str, path: &str, body: &[u8]) -> Result<serde_json::Value, String> {
    let address = std::env::var(format!("{}_ADDRESS", service.to_uppercase())).unwrap_or_else(|_| format!("{service}:80"));
    let fail = |e: std::io::Error| format!("{service} at {address}: {e}");
    let mut stream = TcpStream::connect(&address).map_err(fail)?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(fail)?;
    let head = format!("{method} {path} HTTP/1.1\r\nhost: {service}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).map_err(fail)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(fail)?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("{service} answered nothing"))?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(format!("{service}: {}", body.trim()));
    }
    serde_json::from_str(body).map_err(|e| format!("{service}: {e}"))
}
