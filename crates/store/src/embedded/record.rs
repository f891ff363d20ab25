//! One row of the log, and the index that is built from all of them.
//!
//! The log is the only table: `(revision, number within it) -> record`, appended to and trimmed, never changed. A value is
//! stored once; what a key was before is a pointer to an older row. The newest row is never trimmed: it carries the revision
//! counter, and each row how far history was trimmed when it was written.

use std::collections::{BTreeMap, VecDeque};

use crate::{Error, Revision};

/// Where a record is in the log.
pub(super) type Position = (u64, u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body<'a> {
    Plain(&'a [u8]),
    Sealed(&'a [u8]),
    Deleted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub key: &'a str,
    pub body: Body<'a>,
    pub previous: Option<Position>,
    pub compacted: Revision,
}

const DELETED: u8 = 1;
const SEALED: u8 = 2;
const HAS_PREVIOUS: u8 = 4;

impl<'a> Record<'a> {
    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, bytes) = match self.body {
            Body::Plain(bytes) => (0, bytes),
            Body::Sealed(bytes) => (SEALED, bytes),
            Body::Deleted => (DELETED, &[][..]),
        };
        let flags = kind | if self.previous.is_some() { HAS_PREVIOUS } else { 0 };
        let (revision, number) = self.previous.unwrap_or_default();
        let mut out = Vec::with_capacity(25 + self.key.len() + bytes.len());
        out.push(flags);
        out.extend_from_slice(&self.compacted.to_le_bytes());
        out.extend_from_slice(&revision.to_le_bytes());
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&(self.key.len() as u32).to_le_bytes());
        out.extend_from_slice(self.key.as_bytes());
        out.extend_from_slice(bytes);
        out
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, Error> {
        Self::parse(bytes).ok_or_else(|| Error::Open("the store is damaged: a record cannot be read".into()))
    }

    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (flags, rest) = bytes.split_first()?;
        let (compacted, rest) = rest.split_first_chunk::<8>()?;
        let (revision, rest) = rest.split_first_chunk::<8>()?;
        let (number, rest) = rest.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (key, bytes) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        let body = match flags & (DELETED | SEALED) {
            0 => Body::Plain(bytes),
            SEALED => Body::Sealed(bytes),
            DELETED => Body::Deleted,
            _ => return None,
        };
        let previous = (u64::from_le_bytes(*revision), u32::from_le_bytes(*number));
        Some(Self {
            key: std::str::from_utf8(key).ok()?,
            body,
            previous: (flags & HAS_PREVIOUS != 0).then_some(previous),
            compacted: u64::from_le_bytes(*compacted),
        })
    }
}

/// A row and its length.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub at: Position,
    size: usize,
}

/// What the log amounts to, in memory: where each key's newest record is, and what may be trimmed.
#[derive(Debug, Default, Clone)]
pub(super) struct Index {
    pub at: BTreeMap<Box<str>, Place>,
    /// Length of all rows.
    pub bytes: usize,
    /// The newest revision.
    pub revision: Revision,
    /// History up to here is gone.
    pub compacted: Revision,
    /// Rows that hold no key's present state, in the order of the revision that made them so, with their size.
    old: VecDeque<(Revision, Place)>,
    old_bytes: usize,
    /// Rows after `compacted`, a revision each.
    history: VecDeque<(Revision, usize)>,
    history_events: usize,
}

impl Index {
    /// Takes the next row of the log into account. `size` is its length.
    pub(super) fn add(&mut self, at: Position, record: &Record<'_>, size: usize) {
        let (revision, place) = (at.0, Place { at, size });
        self.bytes += size;
        let previous = if record.body == Body::Deleted {
            let previous = self.at.remove(record.key);
            self.old.extend(previous.map(|p| (revision, p)));
            self.old_bytes += previous.map_or(0, |p| p.size);
            Some(place)
        } else if let Some(present) = self.at.get_mut(record.key) {
            Some(std::mem::replace(present, place))
        } else {
            self.at.insert(record.key.into(), place);
            None
        };
        self.old.extend(previous.map(|p| (revision, p)));
        self.old_bytes += previous.map_or(0, |p| p.size);
        self.revision = revision;
        self.history_events += 1;
        match self.history.back_mut() {
            Some((last, events)) if *last == revision => *events += 1,
            _ => self.history.push_back((revision, 1)),
        }
        self.forget(record.compacted);
    }

    /// History up to `to` is gone.
    pub(super) fn forget(&mut self, to: Revision) {
        self.compacted = self.compacted.max(to.min(self.revision));
        while let Some((revision, events)) = self.history.front()
            && *revision <= self.compacted
        {
            self.history_events -= events;
            self.history.pop_front();
        }
    }

    /// Forgets what is over the bounds.
    pub(super) fn bound(&mut self, events_max: usize, bytes_max: usize) {
        while self.history_events > events_max
            && let Some((revision, _)) = self.history.front()
        {
            self.forget(*revision);
        }
        let mut bytes = self.old_bytes;
        for (by, place) in &self.old {
            if bytes <= bytes_max {
                break;
            }
            bytes -= place.size;
            self.compacted = self.compacted.max(*by);
        }
        self.forget(self.compacted);
    }

    /// Rows that may be trimmed, oldest first. They stay in the index until [`Index::trimmed`].
    pub(super) fn trimmable(&self, max: usize) -> impl Iterator<Item = Position> {
        let to = self.compacted;
        // The newest row carries the counter.
        let newest = self.revision;
        self.old.iter().take(max).take_while(move |(by, old)| *by <= to && old.at.0 < newest).map(|(_, old)| old.at)
    }

    pub(super) fn trimmed(&mut self, rows: usize) {
        let size: usize = self.old.drain(..rows).map(|(_, old)| old.size).sum();
        self.old_bytes -= size;
        self.bytes -= size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_their_encoding_and_damage_is_an_error() {
        for body in [Body::Plain(b"value"), Body::Sealed(b""), Body::Deleted] {
            for previous in [None, Some((7, 3))] {
                let record = Record { key: "core/pods/a/b", body, previous, compacted: 5 };
                let bytes = record.encode();
                assert_eq!(Record::decode(&bytes).unwrap(), record);
                assert!(Record::decode(&bytes[..20]).is_err());
                assert!(Record::decode(&[&[3], &bytes[1..]].concat()).is_err());
            }
        }
    }

    #[test]
    fn only_what_nothing_needs_is_trimmed() {
        let mut index = Index::default();
        let put = |previous| Record { key: "a", body: Body::Plain(b""), previous, compacted: 0 };
        index.add((1, 0), &put(None), 10);
        index.add((2, 0), &put(Some((1, 0))), 10);
        index.add((3, 0), &Record { key: "a", body: Body::Deleted, previous: Some((2, 0)), compacted: 0 }, 5);
        assert_eq!(index.trimmable(9).count(), 0);
        index.forget(2);
        assert_eq!(index.trimmable(9).collect::<Vec<_>>(), [(1, 0)], "2 was present when 3 deleted it");
        index.forget(3);
        assert_eq!(index.trimmable(9).collect::<Vec<_>>(), [(1, 0), (2, 0)], "the newest row stays");
        index.add((4, 0), &put(None), 10);
        assert_eq!(index.trimmable(9).collect::<Vec<_>>(), [(1, 0), (2, 0), (3, 0)]);
        index.trimmed(3);
        assert_eq!((index.old_bytes, index.bytes, index.history_events), (0, 10, 1));
        index.add((5, 0), &put(Some((4, 0))), 10);
        index.bound(1, 1000);
        assert_eq!(index.compacted, 4);
        index.bound(9, 9);
        assert_eq!(index.compacted, 5, "bytes are bounded too");
    }
}
