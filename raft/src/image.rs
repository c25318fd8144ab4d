//! The image in memory of what the caller has made durable: the log, its snapshot and the hard state.
//!
//! The engine writes to it only in `advance`, that is, after the caller's fsync (R1). It must never do I/O itself.

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

/// What an entry costs in a message beside its data, roughly: the limit on a message is a soft one.
const ENTRY_OVERHEAD_BYTES: u64 = 12;

/// A snapshot and the entries after it, without a gap. Index 0 of the snapshot is the founding of the log.
pub struct Image {
    snapshot: Snapshot,
    entries: Vec<Entry>,
    hard_state: HardState,
}

impl Image {
    /// An image that ends at `index`, with the configuration that holds there.
    pub fn new(index: u64, term: u64, conf_state: ConfState, data: Bytes) -> Self {
        let mut image = Self {
            snapshot: Snapshot::default(),
            entries: Vec::new(),
            hard_state: HardState::default(),
        };
        image.set_snapshot(index, term, conf_state, data);
        image
    }

    fn set_snapshot(&mut self, index: u64, term: u64, conf_state: ConfState, data: Bytes) {
        self.snapshot.data = data;
        let metadata = self.snapshot.mut_metadata();
        metadata.index = index;
        metadata.term = term;
        metadata.set_conf_state(conf_state);
    }

    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    pub fn snapshot_index(&self) -> u64 {
        self.snapshot.get_metadata().index
    }

    /// The configuration that holds where the image starts.
    pub fn conf_state(&self) -> &ConfState {
        self.snapshot.get_metadata().get_conf_state()
    }

    pub fn last(&self) -> u64 {
        self.snapshot_index() + self.entries.len() as u64
    }

    /// Put `entries` where they belong: everything from their first index on is replaced, and what the snapshot
    /// covers is left out. `false`, and nothing changed, if they would leave a gap.
    #[must_use]
    pub fn append(&mut self, entries: Vec<Entry>) -> bool {
        let base = self.snapshot_index();
        let Some(first) = entries.first().map(|entry| entry.index) else {
            return true;
        };
        if first > self.last() + 1 {
            return false;
        }
        self.entries.truncate(first.saturating_sub(base + 1) as usize);
        self.entries
            .extend(entries.into_iter().filter(|e| e.index > base));
        true
    }

    /// Take over a snapshot that the leader sent: the whole log before it is gone.
    pub fn restore(&mut self, snapshot: Snapshot) {
        self.entries.clear();
        self.snapshot = snapshot;
    }

    /// Drop the entries up to `index`, which `data` now stands for. The entry at `index` must be in the log.
    pub fn compact(&mut self, index: u64, conf_state: ConfState, data: Bytes) {
        let count = (index - self.snapshot_index()) as usize;
        let term = self.entries[count - 1].term;
        self.entries.drain(..count);
        self.set_snapshot(index, term, conf_state, data);
    }
}

impl Storage for Image {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state().clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<Entry>> {
        let base = self.snapshot_index() + 1;
        if low < base {
            return Err(Error::Store(StorageError::Compacted));
        }
        let range = &self.entries[(low - base) as usize..(high - base) as usize];
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let count = range
            .iter()
            .take_while(|entry| {
                size += entry.data.len() as u64 + ENTRY_OVERHEAD_BYTES;
                size <= limit
            })
            .count();
        Ok(range[..count.max(1).min(range.len())].to_vec())
    }

    fn term(&self, index: u64) -> Result<u64> {
        let base = self.snapshot_index();
        if index < base {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index == base {
            return Ok(self.snapshot.get_metadata().term);
        }
        match self.entries.get((index - base - 1) as usize) {
            Some(entry) => Ok(entry.term),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.snapshot_index() + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> Result<Snapshot> {
        let index = self.snapshot_index();
        if index == 0 || index < request_index {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.snapshot.clone())
    }
}
