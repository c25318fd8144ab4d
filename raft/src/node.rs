//! One node of raft-rs with the order of calls kept and the frames of others judged.
//!
//! Free of Python, so that what it does can be read at one sight:
//! - R1: whoever stores an entry after a configuration change stores with it that the change was committed.
//! - R2: nothing changes the node between `ready` and `advance`; what is out of order is refused before raft sees it.
//! - R3: [`Node::admit`] decides which well-formed message of a peer is let in.
//! - R12: configuration changes are applied before anything after them counts as applied. The rest of it, and all
//!   that concerns the members, is in `members.rs`.

use std::collections::{HashSet, VecDeque};

use bytes::{Bytes, BytesMut};
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Message, MessageType, Snapshot};
use raft::{RawNode, Ready, SnapshotStatus, StateRole};
use slog::{o, Discard, Logger};

use crate::codec::{self, Malformed};
use crate::image::Image;
use crate::start::{self, Answer, Base, Durable, Limits, Refused};

/// What is valid after `advance`.
pub struct Advance {
    pub messages: Vec<Message>,
    pub committed: Vec<Entry>,
    pub commit: Option<u64>,
}

/// What a node does not want to hear at present.
#[derive(Clone, Copy)]
pub struct Refuse {
    /// Requests for a vote, and the order to campaign at once (R6).
    pub votes: bool,
    /// The order to campaign at once (R10).
    pub campaign: bool,
}

pub struct Node {
    pub raw: RawNode<Image>,
    /// The Ready to advance, and the hard state that was handed out with it.
    outstanding: Option<(Ready, Option<HardState>)>,
    /// What was fsynced last, as far as that is certain.
    durable: HardState,
    /// The last index whose entry was handed out as committed.
    handed_out: u64,
    /// Configuration changes handed out and not applied yet, in order.
    pub unapplied_changes: VecDeque<(u64, Bytes)>,
    /// Which configuration holds from which index on; the first is at or below the snapshot.
    pub configurations: Vec<(u64, ConfState)>,
    granted_votes: usize,
    /// Senders that are let in although the applied configuration does not name them.
    pub vouched: HashSet<u64>,
}

impl Node {
    /// A node that stands where the caller's durable state stands.
    ///
    /// # Panics
    /// raft-rs finds a contradiction that is not looked for here.
    pub fn new(
        raft_id: u64,
        limits: &Limits,
        base: Base,
        durable: &Durable,
        batches: impl Iterator<Item = Result<Vec<Entry>, Malformed>>,
    ) -> Answer<Self> {
        let start = base.index;
        let applied = durable.applied.max(start);
        let image = start::image(base, durable, batches)?;
        let configuration = (applied, image.conf_state().clone());
        let config = start::config(raft_id, limits, applied);
        let raw = RawNode::new(&config, image, &Logger::root(Discard, o!()))
            .map_err(|error| Refused::Value(error.to_string()))?;
        Ok(Self {
            raw,
            outstanding: None,
            durable: HardState {
                term: durable.term,
                vote: durable.vote,
                commit: durable.commit.max(start),
                ..HardState::default()
            },
            handed_out: applied,
            unapplied_changes: VecDeque::new(),
            configurations: vec![configuration],
            granted_votes: 0,
            vouched: HashSet::new(),
        })
    }

    pub fn check_order(&self) -> Answer<()> {
        match &self.outstanding {
            None => Ok(()),
            Some((ready, _)) => Err(Refused::Order(format!(
                "Ready {} must be advanced first: nothing may be called in between",
                ready.number()
            ))),
        }
    }

    pub fn durable(&self) -> &HardState {
        &self.durable
    }

    /// Votes for this node's own candidacy or leadership of the current term, its own included; else 0.
    pub fn granted_votes(&self) -> usize {
        match self.raw.raft.state {
            StateRole::Candidate | StateRole::Leader => self.granted_votes,
            StateRole::Follower | StateRole::PreCandidate => 0,
        }
    }

    pub fn tick(&mut self) {
        self.counting_votes(|raw| {
            raw.tick();
        });
    }

    /// A learner or a removed member does not: raft-rs would let it win, as a leader without a vote, or panic.
    pub fn campaign(&mut self) {
        if !self.raw.raft.promotable() {
            return;
        }
        self.counting_votes(|raw| {
            let _ = raw.campaign();
        });
    }

    pub fn ping(&mut self) {
        self.raw.ping();
    }

    /// raft-rs forgets the votes when it becomes leader: they are counted as it goes.
    fn counting_votes<T>(&mut self, change: impl FnOnce(&mut RawNode<Image>) -> T) -> T {
        let before = self.raw.raft.state;
        let answer = change(&mut self.raw);
        match (before, self.raw.raft.state) {
            // The vote that won is the last one; a single voter wins by its own.
            (StateRole::Candidate, StateRole::Leader) => self.granted_votes += 1,
            (StateRole::Leader, StateRole::Leader) => {}
            (_, StateRole::Leader) => self.granted_votes = 1,
            _ => self.granted_votes = self.raw.raft.prs().tally_votes().0,
        }
        answer
    }

    /// Step what is let in of `messages`; the number stepped.
    pub fn receive(&mut self, sender: u64, messages: Vec<Message>, refuse: Refuse) -> usize {
        let alone = messages.len() == 1;
        let mut stepped = 0;
        for message in messages {
            let whole = alone || message.get_msg_type() != MessageType::MsgSnapshot;
            if !whole || !self.admit(sender, &message, refuse) || self.is_beyond_log(&message) {
                continue;
            }
            let answer = self.counting_votes(|raw| raw.step(message));
            stepped += usize::from(answer.is_ok());
        }
        stepped
    }

    /// R3, R6 and R10. A message that fails here never touches raft: a forged term would depose a healthy leader.
    fn admit(&self, sender: u64, message: &Message, refuse: Refuse) -> bool {
        let raft = &self.raw.raft;
        if message.from != sender || message.to != raft.id || sender == raft.id {
            return false;
        }
        let known = raft.prs().get(sender).is_some() || self.vouched.contains(&sender);
        if message.term == 0 || !known {
            return false;
        }
        match message.get_msg_type() {
            MessageType::MsgAppend
            | MessageType::MsgAppendResponse
            | MessageType::MsgSnapshot
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVoteResponse => message.context.is_empty(),
            MessageType::MsgHeartbeat | MessageType::MsgHeartbeatResponse => true,
            MessageType::MsgRequestPreVote => !refuse.votes && message.context.is_empty(),
            MessageType::MsgTimeoutNow => !refuse.votes && !refuse.campaign && message.context.is_empty(),
            // Only a real vote of a leadership transfer carries this word; it overrides the leader's stickiness.
            MessageType::MsgRequestVote => {
                let context: &[u8] = &message.context;
                !refuse.votes && (context.is_empty() || context == raft::CAMPAIGN_TRANSFER)
            }
            _ => false,
        }
    }

    /// Whether a peer speaks of an index of this term that the own log does not reach. It cannot, unless a disk
    /// forgot what it had acknowledged; raft-rs would panic at the commit index (P10), and believe the
    /// acknowledgement. Such a peer is not obeyed; R7 finds the disk.
    fn is_beyond_log(&self, message: &Message) -> bool {
        let raft = &self.raw.raft;
        let last = raft.raft_log.last_index();
        match message.get_msg_type() {
            MessageType::MsgHeartbeat => message.term >= raft.term && message.commit > last,
            MessageType::MsgAppendResponse => {
                message.term == raft.term && !message.reject && message.index > last
            }
            _ => false,
        }
    }

    pub fn check_leads(&self) -> Answer<()> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return Err(Refused::Dropped("this node does not lead"));
        }
        if raft.lead_transferee.is_some() {
            return Err(Refused::Dropped("leadership is being transferred"));
        }
        Ok(())
    }

    /// Append `commands` as one proposal; the index of the first.
    pub fn propose(&mut self, commands: &[&[u8]]) -> Answer<u64> {
        if commands.is_empty() {
            return Err(Refused::Value("no commands".to_owned()));
        }
        let within = 1..=codec::COMMAND_BYTES_MAX;
        if let Some(wrong) = commands.iter().find(|c| !within.contains(&c.len())) {
            let text = format!(
                "a command has 1 to {} bytes, not {}",
                codec::COMMAND_BYTES_MAX,
                wrong.len()
            );
            return Err(Refused::Value(text));
        }
        self.check_leads()?;
        // One allocation for all: the entries are slices of it.
        let mut buffer = BytesMut::with_capacity(commands.iter().map(|c| c.len()).sum());
        for command in commands {
            buffer.extend_from_slice(command);
        }
        let mut buffer = buffer.freeze();
        let entries = commands.iter().map(|command| Entry {
            data: buffer.split_to(command.len()),
            ..Entry::default()
        });
        let entries = entries.collect();
        self.step_proposal(entries)
    }

    pub fn step_proposal(&mut self, entries: Vec<Entry>) -> Answer<u64> {
        let first = self.raw.raft.raft_log.last_index() + 1;
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.raw.raft.id;
        message.set_entries(entries.into());
        match self.raw.raft.step(message) {
            Ok(()) => Ok(first),
            Err(_) => Err(Refused::Dropped("too much is uncommitted")),
        }
    }

    pub fn read_index(&mut self, context: &[u8]) -> Answer<()> {
        if !(1..=codec::CONTEXT_BYTES_MAX).contains(&context.len()) {
            return Err(Refused::Value(format!(
                "a context has 1 to {} bytes",
                codec::CONTEXT_BYTES_MAX
            )));
        }
        // A follower would forward it, and peers let no forwarded request in.
        if self.raw.raft.state == StateRole::Leader {
            self.raw.read_index(context.to_vec());
        }
        Ok(())
    }

    pub fn transfer_leader(&mut self, target: u64) {
        if self.raw.raft.state == StateRole::Leader {
            self.raw.transfer_leader(target);
        }
    }

    pub fn become_follower(&mut self, leader: u64) -> Answer<()> {
        let raft = &mut self.raw.raft;
        if leader == raft.id || (leader != 0 && raft.prs().get(leader).is_none()) {
            return Err(Refused::Value(format!("{leader} is no other member")));
        }
        let term = raft.term;
        raft.become_follower(term, leader);
        Ok(())
    }

    /// The snapshot that was sent to `peer` has arrived there, or is lost: the log goes on, or it is sent again.
    pub fn report_snapshot(&mut self, peer: u64, received: bool) {
        let status = if received {
            SnapshotStatus::Finish
        } else {
            SnapshotStatus::Failure
        };
        self.raw.report_snapshot(peer, status);
    }

    /// Take what is to be done, and the hard state to store with it. It stays outstanding until [`Node::advance`].
    ///
    /// A commit index is not worth an fsync of its own. But a node must not forget that a change of the members was
    /// committed while it keeps entries after it: their joint or next configuration may decide on these. It would
    /// come back with them, and campaign in the configuration before the change, which need not overlap with theirs.
    pub fn ready(&mut self) -> (&Ready, Option<&HardState>) {
        let ready = self.raw.ready();
        let waiting = self.unapplied_changes.back().map(|(index, _)| *index);
        let applied = self.configurations.last().map(|(index, _)| *index);
        let owed = waiting.max(applied) > Some(self.durable.commit) && !ready.entries().is_empty();
        let hard_state = (owed || ready.hs().is_some()).then(|| self.raw.raft.hard_state());
        let (ready, hard_state) = self.outstanding.insert((ready, hard_state));
        (ready, hard_state.as_ref())
    }

    /// The caller has made the outstanding Ready durable: the image follows, and what waited for that is handed out.
    pub fn advance(&mut self, number: u64) -> Answer<Advance> {
        let (mut ready, hard_state) = match self.outstanding.take() {
            Some(outstanding) if outstanding.0.number() == number => outstanding,
            other => {
                self.outstanding = other;
                return Err(Refused::Order(format!(
                    "Ready {number} is not the outstanding one"
                )));
            }
        };
        // A commit index that came alone may still wait for the fsync of what follows it.
        if let Some(hard_state) = hard_state.filter(|_| ready.must_sync()) {
            self.durable = hard_state;
        }
        let snapshot = ready.snapshot().clone();
        if !snapshot.is_empty() {
            self.raw.mut_store().restore(snapshot.clone());
        }
        let contiguous = self.raw.mut_store().append(ready.take_entries());
        assert!(contiguous, "the entries of a Ready leave a gap");
        let mut messages = ready.take_persisted_messages();
        let mut committed = ready.take_committed_entries();
        let mut light = self.raw.advance_append(ready);
        messages.append(&mut light.take_messages());
        committed.append(&mut light.take_committed_entries());
        if !snapshot.is_empty() {
            self.handed_out_snapshot(&snapshot);
        }
        self.handed_out_entries(&committed);
        Ok(Advance {
            messages,
            committed,
            commit: light.commit_index(),
        })
    }

    /// raft-rs reads the log from the applied index on when it campaigns: it must not point below the snapshot.
    fn handed_out_snapshot(&mut self, snapshot: &Snapshot) {
        let metadata = snapshot.get_metadata();
        self.raw.advance_apply_to(metadata.index);
        self.handed_out = metadata.index;
        self.unapplied_changes.clear();
        self.configurations = vec![(metadata.index, metadata.get_conf_state().clone())];
    }

    fn handed_out_entries(&mut self, committed: &[Entry]) {
        for entry in committed {
            if entry.get_entry_type() != EntryType::EntryNormal {
                self.unapplied_changes
                    .push_back((entry.index, entry.data.clone()));
            }
        }
        self.handed_out = committed.last().map_or(self.handed_out, |entry| entry.index);
    }

    pub fn applied_to(&mut self, index: u64) -> Answer<()> {
        let applied = self.raw.raft.raft_log.applied;
        if index < applied || index > self.handed_out {
            return Err(Refused::Order(format!(
                "index {index} is outside of what may be applied, {applied} to {}",
                self.handed_out
            )));
        }
        if let Some((waiting, _)) = self.unapplied_changes.front() {
            if *waiting <= index {
                return Err(Refused::Order(format!(
                    "the configuration change of index {waiting} must be applied first"
                )));
            }
        }
        self.raw.advance_apply_to(index);
        Ok(())
    }

    pub fn compact(&mut self, index: u64, data: &[u8], keep: u64) -> Answer<()> {
        let first = self.raw.store().snapshot_index() + 1;
        let applied = self.raw.raft.raft_log.applied;
        if index < first || index > applied {
            let text = format!("index {index} is outside of what may be compacted, {first} to {applied}");
            return Err(Refused::Value(text));
        }
        let position = self.configurations.partition_point(|(from, _)| *from <= index) - 1;
        let conf_state = self.configurations[position].1.clone();
        if !conf_state.voters_outgoing.is_empty() {
            return Err(Refused::Value(
                "the configuration is joint at that index".to_owned(),
            ));
        }
        start::check_base(&conf_state, data.len())?;
        self.configurations.drain(..position);
        let data = Bytes::copy_from_slice(data);
        self.raw.mut_store().compact(index, conf_state, data, keep);
        Ok(())
    }

    /// What a leader knows of each member: id, matched, next index, recently active. Empty elsewhere.
    pub fn progress(&self) -> Vec<(u64, u64, u64, bool)> {
        if self.raw.raft.state != StateRole::Leader {
            return Vec::new();
        }
        let progress = self.raw.raft.prs().iter();
        sorted(progress.map(|(id, p)| (*id, p.matched, p.next_idx, p.recent_active)))
    }
}

pub fn sorted<T: Ord>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort_unstable();
    items
}
