//! Reading a container's log: CRI's format, from the end, across rotation, followed while it grows.
//!
//! Files are `<dir>/<container>/<attempt>.log`, the older parts `….log.1`, `….log.2`. The shim writes and rotates them; this
//! only reads. A rotation while reading is seen by the file's identity.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base::Timestamp;
use bytes::Bytes;

use crate::limits::{LOG_CHUNK, LOG_LINE_MAX};

/// What of a log is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub tail: Option<u64>,
    pub limit_bytes: Option<u64>,
}

/// One entry: `time stream tag text`.
struct Entry<'a> {
    time: &'a str,
    text: &'a [u8],
    /// The text ends its line.
    full: bool,
}

/// `None` for what is not an entry (a line torn by a full disk).
fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = parts.next()?;
    let tag = parts.next()?;
    let text = parts.next().unwrap_or_default();
    (stream == b"stdout" || stream == b"stderr").then_some(Entry { time, text, full: tag.first() == Some(&b'F') })
}

/// The parts of one attempt's log, oldest first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let numbered = |n: u32| PathBuf::from(format!("{}.{n}", path.display()));
    let mut older: Vec<PathBuf> = (1..).map(numbered).take_while(|p| p.exists()).collect();
    older.reverse();
    older.push(path.to_path_buf());
    older
}

/// Removes all parts of one attempt's log; what is gone already is fine.
pub fn remove(dir: &Path, attempt: u32) {
    for part in parts(&dir.join(format!("{attempt}.log"))) {
        let _ = std::fs::remove_file(part);
    }
}

/// Attempts that have a log, ascending.
pub fn attempts(dir: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut all: Vec<u32> = entries.filter_map(|e| e.file_name().to_str()?.strip_suffix(".log")?.parse().ok()).collect();
    all.sort_unstable();
    all
}

/// Reads one attempt's log, and goes on where it ended with each call of [`Reader::read`].
pub struct Reader {
    path: PathBuf,
    wanted: Wanted,
    /// Parts that were there at the start and have not been read yet; the newest is last.
    pending: Vec<(PathBuf, u64)>,
    current: Option<BufReader<File>>,
    /// A line whose end has not been written yet.
    begun: Vec<u8>,
    /// The text before was `P`: what follows continues its line.
    inside: bool,
    left: Option<u64>,
}

impl Reader {
    pub fn open(path: &Path, wanted: Wanted) -> io::Result<Self> {
        let pending = match wanted.tail {
            Some(lines) => tail(path, lines)?,
            None => parts(path).into_iter().map(|p| (p, 0)).collect(),
        };
        let left = wanted.limit_bytes;
        Ok(Self {
            path: path.to_path_buf(),
            wanted,
            pending: pending.into_iter().rev().collect(),
            current: None,
            begun: Vec::new(),
            inside: false,
            left,
        })
    }

    /// What can be read now, up to a chunk; empty: nothing more at the moment. Blocking.
    pub fn read(&mut self) -> io::Result<Bytes> {
        let mut out = Vec::new();
        while out.len() < LOG_CHUNK && self.left != Some(0) {
            let Some(file) = &mut self.current else {
                if !self.next_part()? {
                    break;
                }
                continue;
            };
            let room = LOG_LINE_MAX.saturating_sub(self.begun.len()) as u64;
            let n = file.take(room.max(1)).read_until(b'\n', &mut self.begun)?;
            if n == 0 {
                if self.pending.is_empty() && !self.rotated()? {
                    break;
                }
                self.current = None;
                continue;
            }
            if self.begun.ends_with(b"\n") || self.begun.len() >= LOG_LINE_MAX {
                let line = std::mem::take(&mut self.begun);
                self.take(line.strip_suffix(b"\n").unwrap_or(&line), &mut out);
            }
        }
        Ok(out.into())
    }

    /// The limit in bytes is reached: nothing more will come.
    pub fn is_over(&self) -> bool {
        self.left == Some(0)
    }

    /// Opens the next part; false if there is none.
    fn next_part(&mut self) -> io::Result<bool> {
        let (path, at) = match self.pending.pop() {
            Some(next) => next,
            None => (self.path.clone(), 0),
        };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(!self.pending.is_empty()),
            Err(e) => return Err(e),
        };
        file.seek(SeekFrom::Start(at))?;
        self.current = Some(BufReader::with_capacity(LOG_CHUNK, file));
        Ok(true)
    }

    /// The newest part is another file by now, and this one is read to its end.
    fn rotated(&mut self) -> io::Result<bool> {
        let Some(current) = &self.current else { return Ok(false) };
        let ours = current.get_ref().metadata()?;
        match std::fs::metadata(&self.path) {
            Ok(m) => Ok((m.ino(), m.dev()) != (ours.ino(), ours.dev())),
            Err(_) => Ok(false),
        }
    }

    fn take(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(entry) = parse(line) else { return };
        if let Some(since) = self.wanted.since
            && entry.time.parse::<Timestamp>().is_ok_and(|t| t < since)
        {
            return;
        }
        let before = out.len();
        if self.wanted.timestamps && !self.inside {
            out.extend_from_slice(entry.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(entry.text);
        if entry.full {
            out.push(b'\n');
        }
        self.inside = !entry.full;
        if let Some(left) = &mut self.left {
            let written = (out.len() - before) as u64;
            if written > *left {
                out.truncate(before + usize::try_from(*left).unwrap_or(0));
            }
            *left = left.saturating_sub(written);
        }
    }
}

/// Where the last `lines` entries begin: parts with offsets, oldest first. Reads backwards, only as far as needed.
fn tail(path: &Path, lines: u64) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut wanted = lines;
    let mut found = Vec::new();
    for part in parts(path).into_iter().rev() {
        let mut file = match File::open(&part) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let (offset, had) = line_start(&mut file, wanted)?;
        found.push((part, offset));
        wanted -= had;
        if wanted == 0 {
            break;
        }
    }
    found.reverse();
    Ok(found)
}

/// The offset at which the last `lines` lines of a file begin, and how many of them it has.
fn line_start(file: &mut File, lines: u64) -> io::Result<(u64, u64)> {
    let end = file.metadata()?.len();
    if lines == 0 {
        return Ok((end, 0));
    }
    let (mut at, mut found) = (end, 0);
    let mut chunk = vec![0u8; LOG_CHUNK];
    while at > 0 {
        let size = at.min(LOG_CHUNK as u64);
        at -= size;
        let chunk = &mut chunk[..size as usize];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(chunk)?;
        for (i, _) in chunk.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            let position = at + i as u64 + 1;
            // The last line's own end begins nothing.
            if position == end {
                continue;
            }
            found += 1;
            if found == lines {
                return Ok((position, lines));
            }
        }
    }
    let has_any = end > 0;
    Ok((0, found + u64::from(has_any)))
}

/// The end of a log as text, for termination messages.
pub fn tail_text(path: &Path, lines: i64, bytes_max: usize) -> String {
    let wanted = Wanted { tail: u64::try_from(lines).ok(), ..Wanted::default() };
    let mut text = Vec::new();
    if let Ok(mut reader) = Reader::open(path, wanted) {
        while let Ok(chunk) = reader.read() {
            if chunk.is_empty() {
                break;
            }
            text.extend_from_slice(&chunk);
        }
    }
    let start = text.len().saturating_sub(bytes_max);
    String::from_utf8_lossy(&text[start..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn line(n: u32, tag: &str, text: &str) -> String {
        format!("2026-01-01T00:00:{n:02}.000000001Z stdout {tag} {text}\n")
    }

    fn read(path: &Path, wanted: Wanted) -> String {
        let mut reader = Reader::open(path, wanted).unwrap();
        let mut all = Vec::new();
        loop {
            let chunk = reader.read().unwrap();
            if chunk.is_empty() {
                return String::from_utf8(all).unwrap();
            }
            all.extend_from_slice(&chunk);
        }
    }

    #[test]
    fn what_is_wanted_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let text: String =
            (0..5).map(|n| line(n, "F", &format!("l{n}"))).chain([line(5, "P", "par"), line(5, "F", "tial"), "torn".into()]).collect();
        std::fs::write(&path, text).unwrap();
        let tail = |n| Wanted { tail: Some(n), ..Wanted::default() };
        let since = Wanted { since: Some("2026-01-01T00:00:04Z".parse().unwrap()), ..Wanted::default() };
        for (wanted, want) in [
            (Wanted::default(), "l0\nl1\nl2\nl3\nl4\npartial\n"),
            (since, "l4\npartial\n"),
            (tail(4), "l4\npartial\n"),
            (tail(0), ""),
            (tail(100), "l0\nl1\nl2\nl3\nl4\npartial\n"),
            (Wanted { limit_bytes: Some(4), ..Wanted::default() }, "l0\nl"),
            (Wanted { timestamps: true, ..tail(3) }, "2026-01-01T00:00:05.000000001Z partial\n"),
        ] {
            assert_eq!(read(&path, wanted), want);
        }
        assert_eq!(tail_text(&path, 80, 5), "tial\n");
    }

    #[test]
    fn tails_and_reads_cross_rotated_parts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(dir.path().join("0.log.2"), line(0, "F", "a") + &line(0, "F", "b")).unwrap();
        std::fs::write(dir.path().join("0.log.1"), line(1, "F", "c")).unwrap();
        std::fs::write(&path, line(2, "F", "d")).unwrap();
        assert_eq!(read(&path, Wanted::default()), "a\nb\nc\nd\n");
        assert_eq!(read(&path, Wanted { tail: Some(3), ..Wanted::default() }), "b\nc\nd\n");
        std::fs::write(dir.path().join("1.log"), "").unwrap();
        assert_eq!(attempts(dir.path()), [0, 1]);
    }

    #[test]
    fn a_followed_log_goes_on_over_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, line(0, "F", "a")).unwrap();
        let mut reader = Reader::open(&path, Wanted::default()).unwrap();
        assert_eq!(&reader.read().unwrap()[..], b"a\n");
        let mut file = File::options().append(true).open(&path).unwrap();
        let half = line(1, "F", "bcd");
        file.write_all(&half.as_bytes()[..half.len() - 3]).unwrap();
        assert!(reader.read().unwrap().is_empty());
        file.write_all(&half.as_bytes()[half.len() - 3..]).unwrap();
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&path, line(2, "F", "e")).unwrap();
        assert_eq!(&reader.read().unwrap()[..], b"bcd\ne\n");
        assert!(reader.read().unwrap().is_empty());
    }
}
