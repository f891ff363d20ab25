//! Encryption at rest: AES-256-GCM, the store's key as associated data, so that a value cannot be moved to another key.
//!
//! The key file has one line a key, `<id> <key>` in hexadecimal; the first seals, all unseal. Putting a new line first
//! rotates; what is written from then on is sealed with it.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::Error;
use crate::directory::write_whole;

const ID_BYTES: usize = 8;
const KEY_BYTES: usize = 32;

pub struct Keyring {
    /// Newest first, never empty.
    keys: Vec<([u8; ID_BYTES], LessSafeKey)>,
    origin: PathBuf,
    random: SystemRandom,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyring({}, {} keys)", self.origin.display(), self.keys.len())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(out)
}

fn new_line(random: &SystemRandom) -> Result<String, Error> {
    let mut bytes = [0; ID_BYTES + KEY_BYTES];
    random.fill(&mut bytes).map_err(|_| Error::Open("the system's random generator failed".into()))?;
    Ok(format!("{} {}\n", hex(&bytes[..ID_BYTES]), hex(&bytes[ID_BYTES..])))
}

impl Keyring {
    /// Reads the key file, or makes one (mode 0600) with a new key.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |e: std::io::Error| Error::Open(format!("encryption keys: {}: {e}", path.display()));
        if !path.exists() {
            write_whole(path, &new_line(&SystemRandom::new())?).map_err(failed)?;
        }
        let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            let text = format!("encryption keys: {} has mode {mode:04o}: others can read it; make it 0600", path.display());
            return Err(Error::Open(text));
        }
        Self::parse(&std::fs::read_to_string(path).map_err(failed)?, path)
    }

    /// Puts a new key first in a key file. A running server uses it after its next start.
    pub fn rotate(path: &Path) -> Result<(), Error> {
        let failed = |e: std::io::Error| Error::Open(format!("encryption keys: {}: {e}", path.display()));
        let old = std::fs::read_to_string(path).map_err(failed)?;
        write_whole(path, &(new_line(&SystemRandom::new())? + &old)).map_err(failed)
    }

    /// A key that dies with the process, for tests.
    pub fn ephemeral() -> Result<Self, Error> {
        Self::parse(&new_line(&SystemRandom::new())?, Path::new("memory"))
    }

    fn parse(text: &str, origin: &Path) -> Result<Self, Error> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            let parsed = line.trim().split_once(' ').and_then(|(id, key)| Some((unhex(id)?, unhex::<KEY_BYTES>(key)?)));
            let key = parsed.and_then(|(id, key)| Some((id, LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).ok()?))));
            let bad = || Error::Open(format!("encryption keys: {} line {} is not `<id> <key>`", origin.display(), number + 1));
            keys.push(key.ok_or_else(bad)?);
        }
        if keys.is_empty() {
            return Err(Error::Open(format!("encryption keys: {} is empty", origin.display())));
        }
        Ok(Self { keys, origin: origin.into(), random: SystemRandom::new() })
    }

    /// Key id, nonce, ciphertext, tag.
    pub fn seal(&self, key: &str, value: &[u8]) -> Result<Vec<u8>, Error> {
        let failed = || Error::ReadOnly("a value could not be encrypted".into());
        let (id, sealing) = &self.keys[0];
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| failed())?;
        let mut out = [&id[..], &nonce, value].concat();
        let body = &mut out[ID_BYTES + NONCE_LEN..];
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = sealing.seal_in_place_separate_tag(nonce, Aad::from(key), body).map_err(|_| failed())?;
        out.extend_from_slice(tag.as_ref());
        Ok(out)
    }

    pub fn unseal(&self, key: &str, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let damaged = || Error::Open(format!("{key}: the encrypted value is damaged"));
        let (id, rest) = sealed.split_at_checked(ID_BYTES).ok_or_else(damaged)?;
        let (nonce, body) = rest.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let Some((_, opening)) = self.keys.iter().find(|(known, _)| known == id) else {
            let text = format!("{key}: encrypted with key {}, which is not in {}: restore that file", hex(id), self.origin.display());
            return Err(Error::Open(text));
        };
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut body = body.to_vec();
        let length = opening.open_in_place(nonce, Aad::from(key), &mut body).map_err(|_| damaged())?.len();
        body.truncate(length);
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_opens_only_under_its_key_and_unchanged() {
        let ring = Keyring::ephemeral().unwrap();
        let sealed = ring.seal("core/secrets/a/b", b"hunter2").unwrap();
        assert!(!sealed.windows(7).any(|w| w == b"hunter2"));
        assert_ne!(sealed, ring.seal("core/secrets/a/b", b"hunter2").unwrap(), "nonces repeat");
        assert_eq!(ring.unseal("core/secrets/a/b", &sealed).unwrap(), b"hunter2");
        assert!(ring.unseal("core/secrets/a/c", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert!(ring.unseal("core/secrets/a/b", &bent).is_err(), "byte {at}");
            assert!(ring.unseal("core/secrets/a/b", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_rotated_file_still_opens_what_the_old_key_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("encryption.keys");
        let old = Keyring::open(&path).unwrap().seal("k", b"v").unwrap();
        Keyring::rotate(&path).unwrap();
        let ring = Keyring::open(&path).unwrap();
        assert_eq!(ring.unseal("k", &old).unwrap(), b"v");
        let new = ring.seal("k", b"v").unwrap();
        assert_ne!(new[..ID_BYTES], old[..ID_BYTES]);
        let lost = Keyring::ephemeral().unwrap().unseal("k", &new).unwrap_err().to_string();
        assert!(lost.contains("which is not in"), "{lost}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Keyring::open(&path).unwrap_err().to_string().contains("mode 0640"));
    }
}
