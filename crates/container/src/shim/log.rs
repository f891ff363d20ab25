//! A container's log file in CRI's format, `2026-11-24T03:40:06.123456789Z stdout F text`, rotated by size. A disk that is
//! full or gone costs lines, never the container: what could not be written is counted, and said when writing works again.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use base::{Clock, SystemClock};

use crate::limits;

const STREAMS: [&str; 2] = ["stdout", "stderr"];

pub struct Log {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    size_max: u64,
    /// Begun lines, a stream each.
    begun: [Vec<u8>; 2],
    lost_bytes: u64,
}

impl Log {
    pub fn open(dir: &Path, container: &str, attempt: u32) -> io::Result<Self> {
        let dir = dir.join(container);
        fs::create_dir_all(&dir)?;
        let mut log = Self {
            path: dir.join(format!("{attempt}.log")),
            file: None,
            size: 0,
            size_max: limits::LOG_FILE_MAX,
            begun: [Vec::new(), Vec::new()],
            lost_bytes: 0,
        };
        log.reopen()?;
        Ok(log)
    }

    fn reopen(&mut self) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options().create(true).append(true).mode(0o640).open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn numbered(&self, n: u32) -> PathBuf {
        match n {
            0 => self.path.clone(),
            n => PathBuf::from(format!("{}.{n}", self.path.display())),
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        for n in (0..limits::LOG_FILES - 1).rev() {
            match fs::rename(self.numbered(n), self.numbered(n + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        self.reopen()
    }

    /// Takes what a process wrote to stdout (0) or stderr (1).
    pub fn take(&mut self, stream: usize, data: &[u8]) {
        let stamp = stamp();
        let mut out = Vec::with_capacity(data.len() + 64);
        let mut rest = data;
        while !rest.is_empty() {
            let begun = &mut self.begun[stream];
            let room = limits::LOG_LINE_MAX - begun.len();
            match rest.iter().take(room + 1).position(|b| *b == b'\n') {
                Some(end) => {
                    entry(&mut out, &stamp, stream, 'F', &[begun, &rest[..end]]);
                    begun.clear();
                    rest = &rest[end + 1..];
                }
                None if rest.len() > room => {
                    entry(&mut out, &stamp, stream, 'P', &[begun, &rest[..room]]);
                    begun.clear();
                    rest = &rest[room..];
                }
                None => {
                    begun.extend_from_slice(rest);
                    rest = &[];
                }
            }
        }
        self.append(&out);
    }

    /// No more comes from a stream: a line without an end is written as it is.
    pub fn close(&mut self, stream: usize) {
        let begun = std::mem::take(&mut self.begun[stream]);
        if !begun.is_empty() {
            let mut out = Vec::new();
            entry(&mut out, &stamp(), stream, 'F', &[&begun]);
            self.append(&out);
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut all = Vec::new();
        if self.lost_bytes > 0 {
            let text = format!("[{} bytes of this log could not be written]", self.lost_bytes);
            entry(&mut all, &stamp(), 1, 'F', &[text.as_bytes()]);
        }
        all.extend_from_slice(bytes);
        match self.write(&all) {
            Ok(()) => self.lost_bytes = 0,
            Err(_) => self.lost_bytes += bytes.len() as u64,
        }
    }

    /// All or nothing: a torn entry is cut off again.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + bytes.len() as u64 > self.size_max {
            self.rotate()?;
        }
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        match file.write_all(bytes) {
            Ok(()) => self.size += bytes.len() as u64,
            Err(e) => {
                let _ = file.set_len(self.size);
                return Err(e);
            }
        }
        Ok(())
    }
}

fn stamp() -> String {
    format!("{:.9}", SystemClock.now())
}

fn entry(out: &mut Vec<u8>, stamp: &str, stream: usize, tag: char, parts: &[&[u8]]) {
    let _ = write!(out, "{stamp} {} {tag} ", STREAMS[stream]);
    parts.iter().for_each(|p| out.extend_from_slice(p));
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<(String, char, String)> {
        let text = fs::read_to_string(path).unwrap();
        let split = |l: &str| {
            let parts: Vec<&str> = l.splitn(4, ' ').collect();
            assert_eq!(parts[0].len(), 30, "{l}");
            (parts[1].to_string(), parts[2].chars().next().unwrap(), parts[3].to_string())
        };
        text.lines().map(split).collect()
    }

    #[test]
    fn lines_come_whole_whatever_the_reads() {
        let text = "first\n\nthird with words\nno end";
        for cut in 0..text.len() {
            let dir = tempfile::tempdir().unwrap();
            let mut log = Log::open(dir.path(), "web", 0).unwrap();
            log.take(0, &text.as_bytes()[..cut]);
            log.take(1, b"error\n");
            log.take(0, &text.as_bytes()[cut..]);
            log.close(0);
            log.close(1);
            let all = lines(&dir.path().join("web/0.log"));
            let out: Vec<&str> = all.iter().filter(|l| l.0 == "stdout").map(|l| l.2.as_str()).collect();
            assert_eq!(out, ["first", "", "third with words", "no end"], "cut at {cut}");
            assert!(all.iter().all(|l| l.1 == 'F'));
        }
    }

    #[test]
    fn long_lines_are_written_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path(), "web", 3).unwrap();
        let long = vec![b'x'; limits::LOG_LINE_MAX * 2 + 5];
        for chunk in long.chunks(1000) {
            log.take(0, chunk);
        }
        log.take(0, b"\n");
        let exact = vec![b'y'; limits::LOG_LINE_MAX];
        log.take(0, &exact);
        log.take(0, b"\n");
        let all = lines(&dir.path().join("web/3.log"));
        assert_eq!(all.iter().map(|l| (l.1, l.2.len())).collect::<Vec<_>>(), [('P', 16384), ('P', 16384), ('F', 5), ('F', 16384)]);
    }

    #[test]
    fn files_rotate_and_losses_are_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path(), "web", 0).unwrap();
        log.size_max = 1000;
        for i in 0..200 {
            log.take(0, format!("line {i}\n").as_bytes());
        }
        let path = |n: u32| log.numbered(n);
        assert!((0..limits::LOG_FILES).all(|n| fs::metadata(path(n)).unwrap().len() <= 1000));
        assert!(!path(limits::LOG_FILES).exists());
        assert_eq!(lines(&path(0)).last().unwrap().2, "line 199");

        log.file = Some(File::options().write(true).open("/dev/full").unwrap());
        log.size = 0;
        log.take(0, b"gone\n");
        log.reopen().unwrap();
        log.size_max = u64::MAX;
        log.take(0, b"back\n");
        let all = lines(&log.path);
        assert!(all[all.len() - 2].2.ends_with("bytes of this log could not be written]"), "{all:?}");
        assert_eq!(all.last().unwrap().2, "back");
    }
}
