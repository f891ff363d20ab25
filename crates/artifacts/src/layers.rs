//! Unpacked layers, shared by every image that stands on the same ones.
//!
//! A layer's directory is named by its ChainID (image-spec `config.md`), for what a name in it means can depend on the
//! layers below. It appears by a rename after everything in it is synced.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::{BlobStore, Digest, Error, Result, unpack};

#[derive(Clone)]
pub struct LayerStore {
    root: PathBuf,
    /// One unpacking of a chain at a time; the second waits and finds it done.
    busy: Arc<Mutex<BTreeMap<Digest, Arc<Mutex<()>>>>>,
}

/// `ChainID(L0|…|Ln) = Digest(ChainID(L0|…|Ln-1) + " " + DiffID(Ln))`
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

impl LayerStore {
    pub fn open(root: &Path) -> Result<Self> {
        let root = root.join("layers");
        fs::create_dir_all(&root).map_err(Error::io("create layers"))?;
        for entry in fs::read_dir(&root).map_err(Error::io("list layers"))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(".tmp-") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(Self { root, busy: Arc::default() })
    }

    pub fn path(&self, chain: &Digest) -> PathBuf {
        self.root.join(chain.hex())
    }

    /// The directories of an image's layers, lowest first, unpacked if they are not yet. Blocking.
    pub fn ensure(&self, blobs: &BlobStore, layers: &[(Digest, Digest)]) -> Result<Vec<PathBuf>> {
        let diff_ids: Vec<Digest> = layers.iter().map(|(_, diff_id)| diff_id.clone()).collect();
        let mut below: Vec<PathBuf> = Vec::new();
        for (chain, (blob, diff_id)) in chain_ids(&diff_ids).iter().zip(layers) {
            let path = self.path(chain);
            let lock = self.busy.lock().unwrap_or_else(|e| e.into_inner()).entry(chain.clone()).or_default().clone();
            let _one = lock.lock().unwrap_or_else(|e| e.into_inner());
            if !path.exists() {
                self.unpack(blobs, chain, blob, diff_id, &below)?;
            }
            self.busy.lock().unwrap_or_else(|e| e.into_inner()).remove(chain);
            below.push(path);
        }
        Ok(below)
    }

    fn unpack(&self, blobs: &BlobStore, chain: &Digest, blob: &Digest, diff_id: &Digest, below: &[PathBuf]) -> Result<()> {
        let work = self.root.join(format!(".tmp-{}", chain.hex()));
        let _ = fs::remove_dir_all(&work);
        fs::create_dir(&work).map_err(Error::io("create layer"))?;
        let lowers: Vec<&Path> = below.iter().rev().map(PathBuf::as_path).collect();
        let result = unpack::unpack(std::io::BufReader::with_capacity(1 << 20, blobs.file(blob)?), &work, &lowers);
        let result = match result {
            Ok(actual) if actual == *diff_id => fs::rename(&work, self.path(chain)).map_err(Error::io("name layer")),
            Ok(actual) => Err(Error::DigestMismatch { expected: diff_id.to_string(), actual: actual.to_string() }),
            Err(e) => Err(e),
        };
        if result.is_err() {
            let _ = fs::remove_dir_all(&work);
        }
        result?;
        crate::blobs::sync_dir(&self.root).map_err(Error::io("sync layers"))
    }

    /// ChainIDs that are unpacked here.
    pub fn list(&self) -> Vec<Digest> {
        let Ok(entries) = fs::read_dir(&self.root) else { return Vec::new() };
        entries.flatten().filter_map(|e| Digest::parse(&format!("sha256:{}", e.file_name().to_str()?)).ok()).collect()
    }

    pub fn remove(&self, chain: &Digest) -> Result<()> {
        // Renamed first: a half-removed layer must never be taken for a whole one.
        let gone = self.root.join(format!(".tmp-gone-{}", chain.hex()));
        match fs::rename(self.path(chain), &gone) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(Error::io("remove layer"))?,
        }
        fs::remove_dir_all(&gone).map_err(Error::io("remove layer"))
    }
}
