//! The part of SPDY/3.1 that Kubernetes' streams use: SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GOAWAY, data.
//!
//! Source: draft-mbelshe-httpbis-spdy-00 (SPDY/3). No flow control: neither end of Kubernetes' streams does any.

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::limits;

/// Appendix of the draft: what both header compressors begin with.
static DICTIONARY: &[u8] = include_bytes!("spdy.dict");

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FLAG_FIN: u8 = 1;

pub type Headers = Vec<(String, String)>;

#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        id: u32,
    },
    Reset {
        id: u32,
    },
    Data {
        id: u32,
        fin: bool,
        data: Bytes,
    },
    Ping {
        id: u32,
    },
    GoAway,
    /// SETTINGS, HEADERS, WINDOW_UPDATE: read and let be.
    Other,
}

pub struct Reader<R> {
    io: R,
    headers: Inflater,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub fn new(io: R) -> Self {
        Self { io, headers: Inflater::default() }
    }

    /// The next frame, or `None` at the end of the connection.
    pub async fn next(&mut self) -> io::Result<Option<Frame>> {
        let mut head = [0u8; 8];
        match self.io.read_exact(&mut head).await {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(e) => return Err(e),
        }
        let flags = head[4];
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if length > limits::STREAM_MESSAGE_BYTES_MAX {
            return Err(bad("frame too large"));
        }
        let mut body = BytesMut::zeroed(length);
        self.io.read_exact(&mut body).await?;
        let fin = flags & FLAG_FIN != 0;
        if head[0] & 0x80 == 0 {
            let id = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            return Ok(Some(Frame::Data { id, fin, data: body.freeze() }));
        }
        let id = |at: usize| -> io::Result<u32> {
            let four = body.get(at..at + 4).ok_or_else(|| bad("frame too short"))?;
            Ok(u32::from_be_bytes([four[0], four[1], four[2], four[3]]) & 0x7FFF_FFFF)
        };
        let frame = match u16::from_be_bytes([head[2], head[3]]) {
            SYN_STREAM => {
                let id = id(0)?;
                let block = body.get(10..).ok_or_else(|| bad("frame too short"))?;
                Frame::SynStream { id, fin, headers: parse_headers(&self.headers.inflate(block)?)? }
            }
            SYN_REPLY => {
                // Its block must be inflated all the same: the compressor's state spans frames.
                let id = id(0)?;
                self.headers.inflate(body.get(4..).unwrap_or_default())?;
                Frame::SynReply { id }
            }
            RST_STREAM => Frame::Reset { id: id(0)? },
            PING => Frame::Ping { id: id(0)? },
            GOAWAY => Frame::GoAway,
            8 => {
                self.headers.inflate(body.get(4..).unwrap_or_default())?;
                Frame::Other
            }
            _ => Frame::Other,
        };
        Ok(Some(frame))
    }
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("SPDY: {why}"))
}

/// Inflates header blocks. A stored block that holds the dictionary primes the window, which is what a preset
/// dictionary is; the zlib header and checksum of the dictionary are skipped.
struct Inflater {
    raw: Decompress,
    begun: bool,
}

impl Default for Inflater {
    fn default() -> Self {
        Self { raw: Decompress::new(false), begun: false }
    }
}

impl Inflater {
    fn inflate(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        let mut block = block;
        if !self.begun && !block.is_empty() {
            let preset = block.get(1).is_some_and(|flags| flags & 0x20 != 0);
            block = block.get(if preset { 6 } else { 2 }..).ok_or_else(|| bad("header block too short"))?;
            self.begun = true;
            if preset {
                let length = DICTIONARY.len() as u16;
                let mut stored = vec![0u8];
                stored.extend_from_slice(&length.to_le_bytes());
                stored.extend_from_slice(&(!length).to_le_bytes());
                stored.extend_from_slice(DICTIONARY);
                self.run(&stored)?;
            }
        }
        self.run(block)
    }

    fn run(&mut self, mut input: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(4096);
        loop {
            let (before_in, before_out) = (self.raw.total_in(), out.len());
            let status = self.raw.decompress_vec(input, &mut out, FlushDecompress::Sync).map_err(|_| bad("header block is damaged"))?;
            input = &input[(self.raw.total_in() - before_in) as usize..];
            if out.len() > limits::SPDY_HEADER_BYTES_MAX {
                return Err(bad("header block too large"));
            }
            let full = out.len() == out.capacity();
            if full {
                out.reserve(4096);
            }
            let stuck = self.raw.total_in() == before_in && out.len() == before_out;
            if status == Status::StreamEnd || (input.is_empty() && !full) || (stuck && !full) {
                return Ok(out);
            }
        }
    }
}

fn parse_headers(block: &[u8]) -> io::Result<Headers> {
    let mut rest = block;
    let mut number = || -> io::Result<(u32, &[u8])> { take_number(&mut rest) };
    let count = number()?.0;
    if count > 256 {
        return Err(bad("too many headers"));
    }
    let mut headers = Vec::new();
    let text = |rest: &mut &[u8]| -> io::Result<String> {
        let length = take_number(rest)?.0 as usize;
        let bytes = rest.get(..length).ok_or_else(|| bad("header block too short"))?;
        *rest = &rest[length..];
        String::from_utf8(bytes.to_vec()).map_err(|_| bad("header is not UTF-8"))
    };
    for _ in 0..count {
        let name = text(&mut rest)?.to_ascii_lowercase();
        headers.push((name, text(&mut rest)?));
    }
    Ok(headers)
}

fn take_number<'a>(rest: &mut &'a [u8]) -> io::Result<(u32, &'a [u8])> {
    let four = rest.get(..4).ok_or_else(|| bad("header block too short"))?;
    *rest = &rest[4..];
    Ok((u32::from_be_bytes([four[0], four[1], four[2], four[3]]), *rest))
}

/// Encodes frames; one per connection, for the compressor's state spans frames.
pub struct Writer {
    deflate: Compress,
}

impl Default for Writer {
    fn default() -> Self {
        // Without the preset dictionary: a reader learns that from the zlib header.
        Self { deflate: Compress::new(Compression::fast(), true) }
    }
}

impl Writer {
    pub fn syn_reply(&mut self, id: u32) -> io::Result<Bytes> {
        let block = self.block(&[])?;
        let mut body = BytesMut::with_capacity(4 + block.len());
        body.put_u32(id);
        body.put_slice(&block);
        Ok(control(SYN_REPLY, 0, &body))
    }

    /// Tests play the client's part.
    #[cfg(test)]
    pub fn syn_stream(&mut self, id: u32, headers: &[(&str, &str)]) -> io::Result<Bytes> {
        let block = self.block(headers)?;
        let mut body = BytesMut::new();
        body.put_u32(id);
        body.put_u32(0);
        body.put_u16(0);
        body.put_slice(&block);
        Ok(control(SYN_STREAM, 0, &body))
    }

    fn block(&mut self, headers: &[(&str, &str)]) -> io::Result<Vec<u8>> {
        let mut plain = BytesMut::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for text in [name, value] {
                plain.put_u32(text.len() as u32);
                plain.put_slice(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let start = self.deflate.total_in();
        loop {
            let done = (self.deflate.total_in() - start) as usize;
            self.deflate.compress_vec(&plain[done..], &mut out, FlushCompress::Sync).map_err(io::Error::other)?;
            if (self.deflate.total_in() - start) as usize == plain.len() && out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(1024);
        }
    }
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + body.len());
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u32(u32::from(flags) << 24 | body.len() as u32);
    out.put_slice(body);
    out.freeze()
}

pub fn ping(id: u32) -> Bytes {
    control(PING, 0, &id.to_be_bytes())
}

/// Refuses a stream (status 3, REFUSED_STREAM).
pub fn refuse(id: u32) -> Bytes {
    let mut body = BytesMut::new();
    body.put_u32(id);
    body.put_u32(3);
    control(RST_STREAM, 0, &body)
}

pub fn goaway() -> Bytes {
    control(GOAWAY, 0, &[0; 8])
}

/// Data frames of at most 32 KiB; with `fin` the last one closes this half of the stream.
pub fn data(id: u32, fin: bool, bytes: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(bytes.len() + 8);
    let mut chunks = bytes.chunks(32 * 1024).peekable();
    if chunks.peek().is_none() {
        out.put_u32(id);
        out.put_u32(u32::from(fin) << 24);
    }
    while let Some(chunk) = chunks.next() {
        out.put_u32(id);
        let last = fin && chunks.peek().is_none();
        out.put_u32(u32::from(last) << 24 | chunk.len() as u32);
        out.put_slice(chunk);
    }
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(bytes: &[u8]) -> io::Result<Vec<Frame>> {
        let mut reader = Reader::new(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = reader.next().await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[tokio::test]
    async fn reads_back_what_it_writes() {
        let mut w = Writer::default();
        let mut bytes = Vec::new();
        bytes.extend(w.syn_stream(1, &[("Streamtype", "error"), ("port", "80")]).unwrap());
        bytes.extend(w.syn_reply(1).unwrap());
        bytes.extend(w.syn_stream(3, &[("Streamtype", "data"), ("port", "80")]).unwrap());
        bytes.extend(data(3, true, b"hello"));
        bytes.extend(ping(7));
        bytes.extend(goaway());
        let h = |t: &str| vec![("streamtype".to_string(), t.to_string()), ("port".into(), "80".into())];
        let expect = [
            Frame::SynStream { id: 1, fin: false, headers: h("error") },
            Frame::SynReply { id: 1 },
            Frame::SynStream { id: 3, fin: false, headers: h("data") },
            Frame::Data { id: 3, fin: true, data: Bytes::from_static(b"hello") },
            Frame::Ping { id: 7 },
            Frame::GoAway,
        ];
        assert_eq!(all(&bytes).await.unwrap(), expect);
    }

    #[tokio::test]
    async fn torn_and_hostile_bytes_are_errors_not_panics() {
        let mut w = Writer::default();
        let whole = w.syn_stream(1, &[("a", "b")]).unwrap();
        for cut in 0..whole.len() {
            let _ = all(&whole[..cut]).await;
        }
        for at in 0..whole.len() {
            let mut flipped = whole.to_vec();
            flipped[at] ^= 0xFF;
            let _ = all(&flipped).await;
        }
        assert!(all(&[0x80, 3, 0, 1, 0, 0xFF, 0xFF, 0xFF]).await.is_err(), "a frame of 16 MiB");
    }
}
