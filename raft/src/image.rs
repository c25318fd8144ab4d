//! The image in memory of what the caller has made durable: the log, its snapshot and the hard state.
//!
//! The engine writes to it only in `advance`, that is, after the caller's fsync (R1). It must never do I/O itself.
//!
//! The log may start before the snapshot that is handed out: a member that lags a little is then served from the
//! log, and is spared a snapshot. On disk there is no such difference, so a restart begins at the snapshot.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError};

/// What an entry costs in a message beside its data, roughly: the limit on a message is a soft one.
const ENTRY_OVERHEAD_BYTES: u64 = 12;

/// A log without a gap and a snapshot of a place in it. Index 0 of the snapshot is the founding of the log.
pub struct Image {
    /// Index and term before the first entry; never above the snapshot, and its term stays readable.
    start: (u64, u64),
    entries: VecDeque<Entry>,
    snapshot: Snapshot,
    hard_state: HardState,
}

impl Image {
    /// An image that ends at `index`, with the configuration that holds there.
    pub fn new(index: u64, term: u64, conf_state: ConfState, data: Bytes) -> Self {
        let mut image = Self {
            start: (index, term),
            entries: VecDeque::new(),
            snapshot: Snapshot::default(),
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

    /// The index before the first entry that is still here.
    pub fn start(&self) -> u64 {
        self.start.0
    }

    /// The configuration that holds at the snapshot.
    pub fn conf_state(&self) -> &ConfState {
        self.snapshot.get_metadata().get_conf_state()
    }

    pub fn last(&self) -> u64 {
        self.start() + self.entries.len() as u64
    }

    /// Put `entries` where they belong: everything from their first index on is replaced, and what lies before the
    /// log is left out. `false`, and nothing changed, if they would leave a gap.
    #[must_use]
    pub fn append(&mut self, entries: Vec<Entry>) -> bool {
        let start = self.start();
        let Some(first) = entries.first().map(|entry| entry.index) else {
            return true;
        };
        if first > self.last() + 1 {
            return false;
        }
        self.entries.truncate(first.saturating_sub(start + 1) as usize);
        self.entries
            .extend(entries.into_iter().filter(|e| e.index > start));
        true
    }

    /// Take over a snapshot that the leader sent: the whole log before it is gone.
    pub fn restore(&mut self, snapshot: Snapshot) {
        let metadata = snapshot.get_metadata();
        self.start = (metadata.index, metadata.term);
        self.entries.clear();
        self.snapshot = snapshot;
    }

    /// Let `data` stand for everything up to `index`, and drop those entries but for the last `keep` of them. The
    /// entry at `index` must be in the log. Costs what is dropped, not what stays.
    pub fn compact(&mut self, index: u64, conf_state: ConfState, data: Bytes, keep: u64) {
        let term = self.entries[(index - self.start() - 1) as usize].term;
        self.set_snapshot(index, term, conf_state, data);
        let dropped = index.saturating_sub(keep).saturating_sub(self.start()) as usize;
        if let Some(last) = self.entries.drain(..dropped).next_back() {
            self.start = (last.index, last.term);
        }
    }

    /// Whether the snapshot can be given to `member`: one that does not name it is thrown away by it.
    pub fn serves(&self, member: u64) -> bool {
        let conf_state = self.conf_state();
        conf_state.voters.contains(&member) || conf_state.learners.contains(&member)
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
        let first = self.start() + 1;
        if low < first {
            return Err(Error::Store(StorageError::Compacted));
        }
        let range = self
            .entries
            .range((low - first) as usize..(high - first) as usize);
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let count = range
            .clone()
            .take_while(|entry| {
                size += entry.data.len() as u64 + ENTRY_OVERHEAD_BYTES;
                size <= limit
            })
            .count();
        Ok(range.take(count.max(1)).cloned().collect())
    }

    fn term(&self, index: u64) -> Result<u64> {
        let (start, term) = self.start;
        if index < start {
            return Err(Error::Store(StorageError::Compacted));
        }
        if index == start {
            return Ok(term);
        }
        match self.entries.get((index - start - 1) as usize) {
            Some(entry) => Ok(entry.term),
            None => Err(Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.start() + 1)
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> Result<Snapshot> {
        let index = self.snapshot_index();
        if index == 0 || index < request_index || !self.serves(to) {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        Ok(self.snapshot.clone())
    }
}
