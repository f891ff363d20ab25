//! One image layer from a tar stream into a directory that overlayfs can use as a lower layer.
//!
//! Source: OCI image-spec 1.1 `layer.md`; overlayfs' on-disk form of whiteouts (character device 0/0) and opaque
//! directories (`trusted.overlay.opaque`). The archive is hostile until proven otherwise: every step is one `*at` call with
//! one plain name under a directory descriptor that was itself reached without following a link, so nothing outside the
//! layer's directory can be named, let alone touched. Links are resolved by us, over this layer and those below it, as a
//! process inside the finished root would see them.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{self as sys, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use tar::{Archive, Entry, EntryType};

use crate::digest::Hashing;
use crate::{Digest, Error, Result, limits};

const OPAQUE: &str = "trusted.overlay.opaque";
const DIR: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// Unpacks `stream` (tar, tar+gzip or tar+zstd, told by its first bytes) into `target`, an empty directory; `lowers` are the
/// layers beneath, topmost first. Returns the digest of the uncompressed tar: the layer's diff_id, for the caller to compare.
pub fn unpack(stream: impl Read, target: &Path, lowers: &[&Path]) -> Result<Digest> {
    let mut tree = Tree::open(target, lowers)?;
    let mut hashed = Hashing::new(decompress(stream)?);
    let mut archive = Archive::new(&mut hashed);
    let (mut bytes, mut entries) = (0u64, 0u64);
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        entries += 1;
        bytes = bytes.saturating_add(entry.size());
        if entries > limits::LAYER_ENTRIES_MAX || bytes > limits::LAYER_BYTES_MAX {
            return Err(Error::Invalid("the layer unpacks to more than is allowed".into()));
        }
        tree.take(&mut entry)?;
    }
    tree.finish()?;
    io::copy(&mut hashed, &mut io::sink()).map_err(broken)?;
    Ok(hashed.digest().1)
}

/// Undoes gzip or zstd, told by the magic number; anything else passes as it is.
pub fn decompress<'a>(mut stream: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let mut magic = [0u8; 4];
    let mut n = 0;
    while n < 4 {
        match stream.read(&mut magic[n..]).map_err(broken)? {
            0 => break,
            k => n += k,
        }
    }
    let whole = io::Cursor::new(magic[..n].to_vec()).chain(stream);
    Ok(match &magic[..n] {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            Box::new(ruzstd::decoding::StreamingDecoder::new(whole).map_err(|e| Error::Invalid(format!("zstd: {e}")))?)
        }
        _ => Box::new(whole),
    })
}

fn broken(e: io::Error) -> Error {
    Error::Invalid(format!("the layer is not a readable archive: {e}"))
}

fn failed(path: &[OsString]) -> impl Fn(rustix::io::Errno) -> Error {
    let shown = path.join(OsStr::new("/"));
    move |e| Error::Io(format!("unpack /{}", shown.to_string_lossy()), e.into())
}

/// What stands at a place of the merged view, and in which layer (0 is this one).
struct Found {
    layer: usize,
    kind: FileType,
}

/// The layer being written over the ones below it.
struct Tree {
    /// This layer first, then the lower ones, topmost first.
    layers: Vec<OwnedFd>,
    /// Directory times are set at the end: filling a directory changes them.
    times: Vec<(Vec<OsString>, i64)>,
    /// The directory of the last entry; archives list a directory's files together.
    cached: Option<(Vec<OsString>, Vec<OsString>)>,
}

impl Tree {
    fn open(target: &Path, lowers: &[&Path]) -> Result<Self> {
        let open = |p: &Path| sys::open(p, DIR, Mode::empty()).map_err(|e| Error::Io(format!("open {}", p.display()), e.into()));
        let layers = std::iter::once(&target).chain(lowers).map(|p| open(p)).collect::<Result<_>>()?;
        Ok(Self { layers, times: Vec::new(), cached: None })
    }

    /// Opens a directory of one layer by its real path, following nothing.
    fn dir(&self, layer: usize, path: &[OsString]) -> rustix::io::Result<OwnedFd> {
        let mut fd = sys::openat(&self.layers[layer], ".", DIR, Mode::empty())?;
        for name in path {
            fd = sys::openat(&fd, name, DIR, Mode::empty())?;
        }
        Ok(fd)
    }

    /// Looks for `name` in the directory `dir` (a real path) as the merged view shows it.
    fn find(&self, dir: &[OsString], name: &OsStr) -> Result<Option<Found>> {
        'layers: for layer in 0..self.layers.len() {
            let mut fd = sys::openat(&self.layers[layer], ".", DIR, Mode::empty()).map_err(failed(dir))?;
            let mut opaque = false;
            for part in dir {
                match sys::openat(&fd, part, DIR, Mode::empty()) {
                    Ok(next) => fd = next,
                    Err(rustix::io::Errno::NOENT) if opaque => return Ok(None),
                    Err(rustix::io::Errno::NOENT) => continue 'layers,
                    // A whiteout or another file hides all that is below.
                    Err(_) => return Ok(None),
                }
                opaque |= is_opaque(&fd);
            }
            match sys::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if is_whiteout(&stat) => return Ok(None),
                Ok(stat) => return Ok(Some(Found { layer, kind: FileType::from_raw_mode(stat.st_mode) })),
                Err(_) if opaque => return Ok(None),
                Err(_) => {}
            }
        }
        Ok(None)
    }

    /// The real path of a directory, made in this layer where it is missing, after following the links on its way.
    fn resolve(&mut self, path: &[OsString]) -> Result<Vec<OsString>> {
        if let Some((asked, real)) = &self.cached
            && asked == path
        {
            return Ok(real.clone());
        }
        let mut todo: Vec<OsString> = path.iter().rev().cloned().collect();
        let mut real: Vec<OsString> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            match name.as_bytes() {
                b"" | b"." => continue,
                b".." => {
                    real.pop();
                    continue;
                }
                _ => {}
            }
            match self.find(&real, &name)? {
                Some(found) if found.kind == FileType::Symlink => {
                    links += 1;
                    if links > limits::LINKS_FOLLOWED_MAX {
                        return Err(Error::Invalid(format!("too many links on the way to {}", show(path))));
                    }
                    let fd = self.dir(found.layer, &real).map_err(failed(path))?;
                    let target = sys::readlinkat(&fd, &name, Vec::new()).map_err(failed(path))?.into_bytes();
                    if target.first() == Some(&b'/') {
                        real.clear();
                    }
                    todo.extend(split(&target).into_iter().rev());
                }
                Some(found) if found.kind == FileType::Directory => {
                    self.copy_up_dir(&real, &name, found.layer)?;
                    real.push(name);
                }
                Some(_) => return Err(Error::Invalid(format!("{} is not a directory on the way to {}", show(&real), show(path)))),
                None => {
                    let fd = self.dir(0, &real).map_err(failed(path))?;
                    remove(fd.as_fd(), &name).map_err(failed(path))?;
                    sys::mkdirat(&fd, &name, Mode::from_raw_mode(0o755)).map_err(failed(path))?;
                    real.push(name);
                }
            }
        }
        self.cached = Some((path.to_vec(), real.clone()));
        Ok(real)
    }

    /// A directory known only from below gets its twin here: in overlayfs the upper one's attributes win.
    fn copy_up_dir(&self, parent: &[OsString], name: &OsStr, layer: usize) -> Result<()> {
        if layer == 0 {
            return Ok(());
        }
        let here = self.dir(0, parent).map_err(failed(parent))?;
        let below = self.dir(layer, parent).and_then(|fd| sys::openat(&fd, name, DIR, Mode::empty())).map_err(failed(parent))?;
        let stat = sys::fstat(&below).map_err(failed(parent))?;
        sys::mkdirat(&here, name, Mode::from_raw_mode(0o700)).map_err(failed(parent))?;
        let made = sys::openat(&here, name, DIR, Mode::empty()).map_err(failed(parent))?;
        copy_attributes(made.as_fd(), &stat).map_err(failed(parent))
    }

    fn take<R: Read>(&mut self, entry: &mut Entry<R>) -> Result<()> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let path = split(&entry.path_bytes());
        if path.iter().any(|p| p.as_bytes().contains(&0)) {
            return Err(Error::Invalid("a name in the layer holds a NUL byte".into()));
        }
        let mut path: Vec<OsString> = path.into_iter().filter(|p| p != "." && !p.is_empty()).collect();
        if path.iter().any(|p| p == "..") {
            return Err(Error::Invalid(format!("{} leaves the layer by '..'", show(&path))));
        }
        let Some(name) = path.pop() else {
            // The root itself: only its attributes.
            let root = self.dir(0, &[]).map_err(failed(&[]))?;
            return attributes(root.as_fd(), entry, &[]);
        };
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(&path, hidden);
        }
        let parent = self.resolve(&path)?;
        let mut full = parent.clone();
        full.push(name.clone());
        let dir = self.dir(0, &parent).map_err(failed(&full))?;
        match kind {
            EntryType::Directory => self.directory(dir.as_fd(), &name, entry, full),
            EntryType::Link => self.hard_link(dir.as_fd(), &name, entry, &full),
            _ => {
                remove(dir.as_fd(), &name).map_err(failed(&full))?;
                self.forget(&full);
                leaf(dir.as_fd(), &name, entry, kind, &full)
            }
        }
    }

    /// A directory may have been replaced by something else: what was resolved through it is resolved again.
    fn forget(&mut self, changed: &[OsString]) {
        if self.cached.as_ref().is_some_and(|(_, real)| real.starts_with(changed)) {
            self.cached = None;
        }
    }

    fn directory<R: Read>(&mut self, dir: BorrowedFd, name: &OsStr, entry: &mut Entry<R>, full: Vec<OsString>) -> Result<()> {
        let here = sys::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let is_dir = here.as_ref().is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
        let hid_lower = here.as_ref().is_some_and(is_whiteout);
        if !is_dir {
            remove(dir, name).map_err(failed(&full))?;
            self.forget(&full);
            sys::mkdirat(dir, name, Mode::from_raw_mode(0o700)).map_err(failed(&full))?;
        }
        let made = sys::openat(dir, name, DIR, Mode::empty()).map_err(failed(&full))?;
        if hid_lower {
            sys::fsetxattr(&made, OPAQUE, b"y", XattrFlags::empty()).map_err(failed(&full))?;
        }
        attributes(made.as_fd(), entry, &full)?;
        self.times.push((full, entry.header().mtime().unwrap_or(0) as i64));
        Ok(())
    }

    fn hard_link<R: Read>(&mut self, dir: BorrowedFd, name: &OsStr, entry: &mut Entry<R>, full: &[OsString]) -> Result<()> {
        let target = entry.link_name_bytes().ok_or_else(|| Error::Invalid(format!("{} links to nothing", show(full))))?;
        let mut target: Vec<OsString> = split(&target).into_iter().filter(|p| p != "." && !p.is_empty()).collect();
        let last = target.pop().filter(|l| l != "..").ok_or_else(|| Error::Invalid(format!("{} links to nothing", show(full))))?;
        let parent = self.resolve(&target)?;
        let found =
            self.find(&parent, &last)?.ok_or_else(|| Error::Invalid(format!("{} links to a file that is not there", show(full))))?;
        let from = self.dir(0, &parent).map_err(failed(full))?;
        if found.layer > 0 {
            self.copy_up_file(&parent, &last, found, from.as_fd()).map_err(|e| Error::Io(format!("unpack {}", show(full)), e))?;
        }
        let same = parent.len() + 1 == full.len() && full.starts_with(&parent) && full.last() == Some(&last);
        if same {
            return Ok(());
        }
        remove(dir, name).map_err(failed(full))?;
        self.forget(full);
        sys::linkat(&from, &last, dir, name, AtFlags::empty()).map_err(failed(full))
    }

    /// A hard link to a lower layer's file: the file has to be here too, for links cannot cross layers.
    fn copy_up_file(&self, parent: &[OsString], name: &OsStr, found: Found, here: BorrowedFd) -> io::Result<()> {
        let below = self.dir(found.layer, parent)?;
        if found.kind == FileType::Symlink {
            let target = sys::readlinkat(&below, name, Vec::new())?;
            return Ok(sys::symlinkat(target, here, name)?);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut source = File::from(sys::openat(&below, name, flags, Mode::empty())?);
        let stat = sys::fstat(&source)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("a hard link to a special file of a lower layer"));
        }
        let mut copy = File::from(sys::openat(here, name, CREATE, Mode::from_raw_mode(0o600))?);
        io::copy(&mut source, &mut copy)?;
        Ok(copy_attributes(copy.as_fd(), &stat)?)
    }

    fn whiteout(&mut self, dir: &[OsString], hidden: &[u8]) -> Result<()> {
        if hidden == b".wh..opq" {
            let parent = self.resolve(dir)?;
            let fd = self.dir(0, &parent).map_err(failed(dir))?;
            return sys::fsetxattr(&fd, OPAQUE, b"y", XattrFlags::empty()).map_err(failed(dir));
        }
        if hidden.starts_with(b".wh.") {
            return Ok(()); // aufs' own bookkeeping
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::Invalid(format!("a whiteout in {} names no file", show(dir))));
        }
        let name = OsStr::from_bytes(hidden);
        let parent = self.resolve(dir)?;
        let fd = self.dir(0, &parent).map_err(failed(dir))?;
        // What this layer itself brings stays: whiteouts are about the layers below.
        match sys::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let own = sys::openat(&fd, name, DIR, Mode::empty()).map_err(failed(dir))?;
                sys::fsetxattr(&own, OPAQUE, b"y", XattrFlags::empty()).map_err(failed(dir))
            }
            Ok(_) => Ok(()),
            Err(_) => sys::mknodat(&fd, name, FileType::CharacterDevice, Mode::empty(), 0).map_err(failed(dir)),
        }
    }

    fn finish(&mut self) -> Result<()> {
        for (path, mtime) in std::mem::take(&mut self.times).into_iter().rev() {
            // A later entry may have replaced the directory: then it has no time to set.
            if let Ok(dir) = self.dir(0, &path) {
                let _ = sys::futimens(&dir, &times(mtime));
            }
        }
        sys::syncfs(&self.layers[0]).map_err(failed(&[]))
    }
}

const CREATE: OFlags = OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Files, symbolic links, devices and pipes: everything that is no directory and no hard link.
fn leaf<R: Read>(dir: BorrowedFd, name: &OsStr, entry: &mut Entry<R>, kind: EntryType, full: &[OsString]) -> Result<()> {
    let header = entry.header();
    match kind {
        EntryType::Symlink => {
            let target = entry.link_name_bytes().ok_or_else(|| Error::Invalid(format!("{} links to nothing", show(full))))?;
            sys::symlinkat(OsStr::from_bytes(&target), dir, name).map_err(failed(full))?;
            let (uid, gid) = owner(entry)?;
            sys::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(failed(full))?;
            let mtime = entry.header().mtime().unwrap_or(0) as i64;
            sys::utimensat(dir, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(failed(full))
        }
        EntryType::Char | EntryType::Block | EntryType::Fifo => {
            let number = |n: io::Result<Option<u32>>| n.ok().flatten().unwrap_or(0);
            let device = sys::makedev(number(header.device_major()), number(header.device_minor()));
            let file_type = match kind {
                EntryType::Char => FileType::CharacterDevice,
                EntryType::Block => FileType::BlockDevice,
                _ => FileType::Fifo,
            };
            if file_type == FileType::CharacterDevice && device == 0 {
                return Err(Error::Invalid(format!("{} is a whiteout of overlayfs, which a layer must not hold", show(full))));
            }
            sys::mknodat(dir, name, file_type, Mode::from_raw_mode(0o600), device).map_err(failed(full))?;
            let made = sys::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).map_err(failed(full))?;
            let (uid, gid) = owner(entry)?;
            sys::chownat(&made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).map_err(failed(full))?;
            let mode = Mode::from_raw_mode(entry.header().mode().unwrap_or(0o644) & 0o7777);
            sys::chmodat(dir, name, mode, AtFlags::empty()).map_err(failed(full))
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let mut file = File::from(sys::openat(dir, name, CREATE, Mode::from_raw_mode(0o600)).map_err(failed(full))?);
            io::copy(entry, &mut file).map_err(|e| Error::Io(format!("unpack {}", show(full)), e))?;
            attributes(file.as_fd(), entry, full)
        }
        other => Err(Error::Invalid(format!("{} is of a kind ({other:?}) that layers do not have", show(full)))),
    }
}

fn owner<R: Read>(entry: &Entry<R>) -> Result<(Uid, Gid)> {
    // A blank field is 0, as Go's reader has it.
    let id = |n: io::Result<u64>| u32::try_from(n.unwrap_or(0)).ok().filter(|n| *n != u32::MAX);
    let uid = id(entry.header().uid()).ok_or_else(|| Error::Invalid("an owner in the layer is out of range".into()))?;
    let gid = id(entry.header().gid()).ok_or_else(|| Error::Invalid("a group in the layer is out of range".into()))?;
    Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
}

/// Owner, mode, extended attributes and time of an open file or directory, from the archive.
fn attributes<R: Read>(fd: BorrowedFd, entry: &mut Entry<R>, full: &[OsString]) -> Result<()> {
    let (uid, gid) = owner(entry)?;
    sys::fchown(fd, Some(uid), Some(gid)).map_err(failed(full))?;
    sys::fchmod(fd, Mode::from_raw_mode(entry.header().mode().unwrap_or(0o644) & 0o7777)).map_err(failed(full))?;
    if let Some(extensions) = entry.pax_extensions().map_err(broken)? {
        for extension in extensions {
            let extension = extension.map_err(broken)?;
            let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
            // `trusted.overlay.*` would let a layer speak to overlayfs itself.
            if name == b"security.capability" || name.starts_with(b"user.") {
                sys::fsetxattr(fd, OsStr::from_bytes(name), extension.value_bytes(), XattrFlags::empty()).map_err(failed(full))?;
            }
        }
    }
    let mtime = entry.header().mtime().unwrap_or(0) as i64;
    sys::futimens(fd, &times(mtime)).map_err(failed(full))
}

fn copy_attributes(to: BorrowedFd, stat: &sys::Stat) -> rustix::io::Result<()> {
    sys::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    sys::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    sys::futimens(to, &times(stat.st_mtime))
}

fn times(mtime: i64) -> Timestamps {
    let at = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: at, last_modification: at }
}

/// Removes a name and, if it is a directory, everything beneath; nothing there is fine.
pub(crate) fn remove(dir: BorrowedFd, name: &OsStr) -> rustix::io::Result<()> {
    match sys::unlinkat(dir, name, AtFlags::empty()) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::ISDIR) => {
            let fd = sys::openat(dir, name, DIR, Mode::empty())?;
            for child in sys::Dir::read_from(&fd)? {
                let child = child?;
                let child_name = OsStr::from_bytes(child.file_name().to_bytes());
                if child_name != "." && child_name != ".." {
                    remove(fd.as_fd(), child_name)?;
                }
            }
            sys::unlinkat(dir, name, AtFlags::REMOVEDIR)
        }
        other => other,
    }
}

fn is_whiteout(stat: &sys::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn is_opaque(fd: &OwnedFd) -> bool {
    let mut value = [0u8; 4];
    sys::fgetxattr(fd, OPAQUE, &mut value[..]).is_ok_and(|n| value[..n] == *b"y")
}

fn split(path: &[u8]) -> Vec<OsString> {
    path.split(|b| *b == b'/').map(|p| OsString::from_vec(p.to_vec())).collect()
}

fn show(path: &[OsString]) -> String {
    format!("/{}", path.join(OsStr::new("/")).to_string_lossy())
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
