//! A process that the shim has started, a container's first or an exec'd one: its descriptors and how far it is.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::log::Log;
use crate::limits;
use crate::process::Child;
use crate::sys::Failure;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// A container's first process.
    Main { name: String, attempt: u32 },
    /// Runs for a connection.
    Exec { conn: u64 },
}

pub struct Running {
    pub role: Role,
    pub pid: i32,
    /// Open until the program has begun or failed to.
    pub sync: Option<OwnedFd>,
    pub ready: bool,
    pub failure: Option<Failure>,
    /// Wait status, once reaped.
    pub status: Option<i32>,
    /// stdout and stderr; a terminal is the first.
    pub out: [Option<OwnedFd>; 2],
    pub input: Option<OwnedFd>,
    pub unfed: Vec<u8>,
    pub close_input: bool,
    pub log: Option<Log>,
    pub started_at_ms: i64,
    /// Who asked for the start, to be answered.
    pub starters: Vec<(u64, u64)>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// A size that came before the terminal.
    pub size: Option<(u16, u16)>,
    /// Reading goes on until then after its end.
    pub drain_until: Option<Instant>,
}

impl Running {
    pub fn new(role: Role, child: Child, tty: bool, stdin: bool) -> Self {
        Self {
            role,
            pid: child.pid,
            sync: Some(child.sync),
            ready: false,
            failure: None,
            status: None,
            out: [child.stdout, child.stderr],
            input: child.stdin,
            unfed: Vec::new(),
            close_input: false,
            log: None,
            started_at_ms: 0,
            starters: Vec::new(),
            stdin,
            stdin_once: false,
            tty,
            size: None,
            drain_until: None,
        }
    }

    pub fn terminal(&mut self, master: OwnedFd) {
        if crate::process::nonblocking(&master).is_err() {
            return;
        }
        if let Some((width, height)) = self.size {
            crate::sys::resize(&master, width, height);
        }
        self.input = if self.stdin { master.try_clone().ok() } else { None };
        self.out = [Some(master), None];
    }

    pub fn resize(&mut self, width: u16, height: u16) {
        self.size = Some((width, height));
        if let Some(master) = self.out[0].as_ref().filter(|_| self.tty) {
            crate::sys::resize(master, width, height);
        }
    }

    pub fn feed(&mut self, data: &[u8]) {
        if self.input.is_some() || self.sync.is_some() {
            self.unfed.extend_from_slice(data);
            self.pump();
        }
    }

    /// Writes what waits for its stdin, as far as that takes it.
    pub fn pump(&mut self) {
        let Some(input) = &self.input else { return };
        while !self.unfed.is_empty() {
            match rustix::io::write(input, &self.unfed) {
                Ok(n) => drop(self.unfed.drain(..n)),
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    self.unfed = Vec::new();
                    self.input = None;
                    return;
                }
            }
        }
        if self.close_input && !self.tty {
            self.input = None;
        }
    }

    pub fn is_fed_up(&self) -> bool {
        self.unfed.len() >= limits::STDIN_QUEUE_HIGH
    }

    /// Exit code as shells and kubectl show it, and the signal.
    pub fn code(&self) -> (i32, Option<i32>) {
        let status = self.status.unwrap_or_default();
        match libc::WIFSIGNALED(status) {
            true => (128 + libc::WTERMSIG(status), Some(libc::WTERMSIG(status))),
            false => (libc::WEXITSTATUS(status), None),
        }
    }
}
