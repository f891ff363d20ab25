//! One connection to the shim: bytes in, bytes out, never blocking.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::limits;
use crate::proto;

/// What a connection is for; its first frame decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    New,
    /// The agent's line of calls and events.
    Control,
    /// The process it belongs to dies with it.
    Exec(u64),
    Attach {
        process: u64,
        /// It has sent input, so `stdinOnce` ends with it.
        fed: bool,
    },
}

pub struct Conn {
    pub stream: UnixStream,
    pub role: Role,
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    /// Since when nothing has been taken although much waits.
    pub stalled: Option<Instant>,
    /// To be closed when all is written.
    pub closing: bool,
    pub dead: bool,
}

impl Conn {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, role: Role::New, input: Vec::new(), output: Vec::new(), written: 0, stalled: None, closing: false, dead: false }
    }

    pub fn waiting(&self) -> usize {
        self.output.len() - self.written
    }

    /// Too much waits: its source must not be read now.
    pub fn is_full(&self) -> bool {
        self.waiting() >= limits::OUT_QUEUE_HIGH
    }

    pub fn send(&mut self, frame: &[u8]) {
        if !self.dead {
            self.output.extend_from_slice(frame);
            self.flush();
        }
    }

    pub fn say(&mut self, message: &proto::Message) {
        self.send(&proto::json_frame(message));
    }

    pub fn flush(&mut self) {
        while self.waiting() > 0 && !self.dead {
            match self.stream.write(&self.output[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    self.stalled = None;
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => self.dead = true,
            }
        }
        if self.waiting() == 0 {
            self.output = Vec::new();
            self.written = 0;
            self.dead |= self.closing;
        } else if self.written > limits::OUT_QUEUE_HIGH {
            self.output.drain(..self.written);
            self.written = 0;
        }
        if self.is_full() && self.stalled.is_none() {
            self.stalled = Some(Instant::now());
        }
    }

    /// Reads what is there; whole frames come back.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Vec<(u8, Vec<u8>)> {
        match self.stream.read(buffer) {
            Ok(0) => self.dead = true,
            Ok(n) => self.input.extend_from_slice(&buffer[..n]),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {}
            Err(_) => self.dead = true,
        }
        let (mut frames, mut used) = (Vec::new(), 0);
        loop {
            match proto::parse(&self.input[used..]) {
                Ok(Some((channel, payload, len))) => {
                    frames.push((channel, payload.to_vec()));
                    used += len;
                }
                Ok(None) => break,
                Err(_) => {
                    self.dead = true;
                    break;
                }
            }
        }
        self.input.drain(..used);
        if self.input.is_empty() {
            self.input = Vec::new();
        }
        frames
    }
}
