//! A disk that remembers what was done to it, and one that runs full or breaks.

#![allow(dead_code)] // Each test uses a part of it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

type BackendIoError = std::io::Error;
use store::Opener;

/// What reached the disk, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
    /// The store acknowledged this revision.
    Ack(u64),
}

#[derive(Default)]
pub struct State {
    pub bytes: Vec<u8>,
    pub trace: Vec<Step>,
    pub recording: bool,
    /// The disk has no room beyond this length.
    pub full_at: Option<u64>,
    /// Every write and sync fails with this.
    pub broken: Option<std::io::ErrorKind>,
    pub length_max: u64,
    open: bool,
}

/// All clones are one disk.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<State>>);

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Disk")
    }
}

impl Disk {
    pub fn recording() -> Self {
        let disk = Self::default();
        disk.lock().recording = true;
        disk
    }

    pub fn holding(bytes: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.lock().bytes = bytes;
        disk
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn opener(&self) -> Opener {
        let disk = self.clone();
        Box::new(move || {
            let mut state = disk.lock();
            if std::mem::replace(&mut state.open, true) {
                return Err(redb::DatabaseError::DatabaseAlreadyOpen);
            }
            drop(state);
            redb::Builder::new().set_cache_size(1 << 20).set_check_integrity_on_open(true).create_with_backend(disk.clone())
        })
    }
}

fn io(kind: std::io::ErrorKind) -> BackendIoError {
    std::io::Error::from(kind)
}

impl State {
    fn step(&mut self, step: Step) {
        if self.recording {
            self.trace.push(step);
        }
    }

    fn room(&self, to: u64) -> Result<(), BackendIoError> {
        if let Some(kind) = self.broken {
            return Err(io(kind));
        }
        if self.full_at.is_some_and(|full| to > full) {
            return Err(io(std::io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, BackendIoError> {
        Ok(self.lock().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), BackendIoError> {
        let state = self.lock();
        let from = offset as usize;
        let bytes = state.bytes.get(from..from + out.len()).ok_or_else(|| io(std::io::ErrorKind::UnexpectedEof))?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), BackendIoError> {
        let mut state = self.lock();
        state.room(len)?;
        state.bytes.resize(len as usize, 0);
        state.length_max = state.length_max.max(len);
        state.step(Step::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> Result<(), BackendIoError> {
        let mut state = self.lock();
        state.room(0)?;
        state.step(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), BackendIoError> {
        let mut state = self.lock();
        state.room(offset + data.len() as u64)?;
        apply(&mut state.bytes, offset, data);
        state.step(Step::Write(offset, data.to_vec()));
        Ok(())
    }

    fn close(&self) -> Result<(), BackendIoError> {
        self.lock().open = false;
        Ok(())
    }
}

pub fn apply(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (from, to) = (offset as usize, offset as usize + data.len());
    if bytes.len() < to {
        bytes.resize(to, 0);
    }
    bytes[from..to].copy_from_slice(data);
}
