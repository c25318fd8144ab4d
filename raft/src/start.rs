//! Where a node starts from, and how it is set: what the caller made durable must not contradict itself.
//!
//! R4 lives here: check_quorum and pre_vote are on, reads are Safe and the priority is 0. None of them is a setting.

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, HardState};
use raft::{Config, ReadOnlyOption};

use crate::codec::{self, Malformed};
use crate::image::Image;

/// Why a call did not do what was asked. None of them changed the node.
#[derive(Debug)]
pub enum Refused {
    /// The caller broke the order of calls.
    Order(String),
    /// An argument cannot be meant.
    Value(String),
    /// The proposal was not taken.
    Dropped(&'static str),
}

pub type Answer<T> = Result<T, Refused>;

/// What a log starts from: a snapshot, or its founding at index 0.
pub struct Base {
    pub index: u64,
    pub term: u64,
    pub data: Bytes,
    pub voters: Vec<u64>,
    pub learners: Vec<u64>,
}

/// What the caller made durable last.
pub struct Durable {
    pub term: u64,
    pub vote: u64,
    pub commit: u64,
    pub applied: u64,
}

/// The node's times in ticks, and its bounds.
pub struct Limits {
    pub election_tick: usize,
    pub heartbeat_tick: usize,
    pub max_size_per_message: u64,
    pub max_inflight_messages: usize,
    pub max_uncommitted_size: u64,
    /// Whether a commit is told in a message of its own, or waits for the next entries or heartbeat.
    pub tell_commits: bool,
}

impl From<Malformed> for Refused {
    fn from(malformed: Malformed) -> Self {
        Refused::Value(malformed.0.to_owned())
    }
}

/// The image of what is durable: the stored batches laid over the base in their order.
pub fn image(
    base: Base,
    durable: &Durable,
    batches: impl Iterator<Item = Result<Vec<Entry>, Malformed>>,
) -> Answer<Image> {
    let conf_state = ConfState {
        voters: base.voters,
        learners: base.learners,
        ..ConfState::default()
    };
    check_base(&conf_state, base.data.len())?;
    let mut image = Image::new(base.index, base.term, conf_state, base.data);
    for batch in batches {
        let batch = batch?;
        let first = batch.first().map_or(0, |entry| entry.index);
        if !image.append(batch) {
            let last = image.last();
            let text = format!("a stored batch starts at {first}, the log before it ends at {last}");
            return Err(Refused::Value(text));
        }
    }
    let last = image.last();
    let commit = durable.commit.max(base.index);
    let applied = durable.applied.max(base.index);
    if commit > last || applied > commit {
        let text = format!("applied {applied}, commit {commit} and last index {last} contradict");
        return Err(Refused::Value(text));
    }
    image.set_hard_state(HardState {
        term: durable.term,
        vote: durable.vote,
        commit,
        ..HardState::default()
    });
    Ok(image)
}

/// Whether a log can start from these members and a snapshot of that size.
pub fn check_base(conf_state: &ConfState, data_bytes: usize) -> Answer<()> {
    if conf_state.voters.is_empty() || !codec::distinct_members(conf_state) {
        let text = "voters and learners must be distinct ids above 0, with at least one voter";
        return Err(Refused::Value(text.to_owned()));
    }
    if data_bytes > codec::SNAPSHOT_BYTES_MAX {
        let text = format!("a snapshot has at most {} bytes", codec::SNAPSHOT_BYTES_MAX);
        return Err(Refused::Value(text));
    }
    Ok(())
}

/// Whether `member` has any part in a configuration.
pub fn names(conf_state: &ConfState, member: u64) -> bool {
    let parts = [
        &conf_state.voters,
        &conf_state.voters_outgoing,
        &conf_state.learners,
        &conf_state.learners_next,
    ];
    parts.iter().any(|ids| ids.contains(&member))
}

pub fn config(raft_id: u64, limits: &Limits, applied: u64) -> Config {
    Config {
        id: raft_id,
        election_tick: limits.election_tick,
        heartbeat_tick: limits.heartbeat_tick,
        applied,
        max_size_per_msg: limits.max_size_per_message,
        max_inflight_msgs: limits.max_inflight_messages,
        max_uncommitted_size: limits.max_uncommitted_size,
        check_quorum: true,
        pre_vote: true,
        read_only_option: ReadOnlyOption::Safe,
        priority: 0,
        skip_bcast_commit: !limits.tell_commits,
        ..Config::default()
    }
}
