//! The part of [`Node`] that knows who is a member: changes proposed and applied, and who is let in beside them.
//!
//! R12 lives here: changes are applied in order, and a leader that is no voter any more steps down there and then,
//! before raft-rs would panic. It must never let a change be committed that cannot be applied or not be left again.

use raft::eraftpb::{ConfChangeType, ConfState, Entry, EntryType};
use raft::{Changer, StateRole};

use crate::changes;
use crate::codec;
use crate::node::{sorted, Node};
use crate::start::{self, Answer, Refused};

impl Node {
    /// Propose one change of the members. Tried on the current configuration first, so that what cannot be applied
    /// is never committed. The index of its entry.
    pub fn propose_conf_change(&mut self, changes: &[(ConfChangeType, u64)], context: &[u8]) -> Answer<u64> {
        if changes.is_empty() || changes.iter().any(|(_, id)| !(1..codec::NUMBER_MAX).contains(id)) {
            return Err(Refused::Value(
                "changes need at least one id, none of them 0".to_owned(),
            ));
        }
        let data = changes::encode_conf_change(changes, context);
        if data.len() > codec::COMMAND_BYTES_MAX {
            return Err(Refused::Value("the context is too long".to_owned()));
        }
        self.check_leads()?;
        if self.raw.raft.has_pending_conf() || self.is_joint() {
            return Err(Refused::Dropped("another configuration change is under way"));
        }
        let change = changes::decode_conf_change(&data)?;
        let mut changer = Changer::new(self.raw.raft.prs());
        let tried = match change.enter_joint() {
            Some(auto_leave) => changer.enter_joint(auto_leave, &change.changes),
            None => changer.simple(&change.changes),
        };
        let (next, _) = tried.map_err(|error| Refused::Value(error.to_string()))?;
        self.check_can_leave(&next.to_conf_state())?;
        let mut entry = Entry::default();
        entry.set_entry_type(EntryType::EntryConfChangeV2);
        entry.data = data.into();
        self.step_proposal(vec![entry])
    }

    /// Whether a joint configuration could be left again. That takes the votes of both halves, and no snapshot can be
    /// taken there. A member that does not hold the entry which made it one may need a snapshot that names it, from
    /// this leader or from a later one: it could never get it, and the cluster would be stuck for good.
    fn check_can_leave(&self, joint: &ConfState) -> Answer<()> {
        let before = &joint.voters_outgoing;
        if before.is_empty() {
            return Ok(());
        }
        for id in joint.voters.iter().filter(|id| !before.contains(id)) {
            if self.member_since(*id).is_none() {
                return Err(Refused::Value(format!(
                    "{id} must be a learner before it votes in a change of several members"
                )));
            }
            if !self.knows_itself(*id) {
                return Err(Refused::Dropped("a member that is to vote has not caught up"));
            }
        }
        for half in [&joint.voters, before] {
            let count = half.iter().filter(|id| self.knows_itself(**id)).count();
            if 2 * count <= half.len() {
                return Err(Refused::Dropped("too few of the voters have caught up"));
            }
        }
        Ok(())
    }

    /// The index since which every configuration names `member`, as far back as the log is known here.
    fn member_since(&self, member: u64) -> Option<u64> {
        let newest_first = self.configurations.iter().rev();
        let with_it = newest_first.take_while(|(_, conf_state)| start::names(conf_state, member));
        with_it.last().map(|(index, _)| *index)
    }

    /// Whether `member` is known to hold the entry that made it a member.
    fn knows_itself(&self, member: u64) -> bool {
        let matched = self.raw.raft.prs().get(member).map_or(0, |p| p.matched);
        self.member_since(member).is_some_and(|since| matched >= since)
    }

    /// Whether the applied configuration is joint.
    pub fn is_joint(&self) -> bool {
        let applied = self.configurations.last();
        applied.is_some_and(|(_, conf_state)| !conf_state.voters_outgoing.is_empty())
    }

    /// Apply the oldest configuration change that was handed out.
    ///
    /// # Panics
    /// The change cannot be applied: another node would come to another configuration.
    pub fn apply_conf_change(&mut self, data: &[u8]) -> Answer<()> {
        let Some((index, expected)) = self.unapplied_changes.front() else {
            return Err(Refused::Order(
                "no configuration change is waiting to be applied".to_owned(),
            ));
        };
        if expected != data {
            return Err(Refused::Order(format!(
                "configuration changes are applied in order: the next is that of index {index}"
            )));
        }
        let index = *index;
        let change = changes::decode_conf_change(data)?;
        let conf_state = match self.raw.apply_conf_change(&change) {
            Ok(conf_state) => conf_state,
            Err(error) => panic!("configuration change of index {index}: {error}"),
        };
        self.unapplied_changes.pop_front();
        self.configurations.push((index, conf_state));
        let raft = &mut self.raw.raft;
        if raft.state != StateRole::Follower && !raft.promotable() {
            let term = raft.term;
            raft.become_follower(term, raft::INVALID_ID);
        }
        Ok(())
    }

    /// Let in, from now on, the frames of exactly these ids although the applied configuration does not name them:
    /// the caller knows them to be members of this cluster that the own log has not reached yet.
    pub fn vouch_for(&mut self, ids: &[u64]) -> Answer<()> {
        if ids.iter().any(|id| !(1..codec::NUMBER_MAX).contains(id)) {
            return Err(Refused::Value("an id is out of range".to_owned()));
        }
        self.vouched = ids.iter().copied().collect();
        Ok(())
    }

    /// All ids that vote, those of the incoming and of the outgoing half of a joint configuration.
    pub fn voters(&self) -> Vec<u64> {
        sorted(self.raw.raft.prs().conf().voters().ids().iter())
    }

    pub fn learners(&self) -> Vec<u64> {
        sorted(self.raw.raft.prs().conf().learners().iter().copied())
    }

    /// Whether a member needs entries that are gone and the snapshot is older than its membership: raft-rs would
    /// throw such a snapshot away at the other end.
    pub fn snapshot_wanted(&self) -> bool {
        let store = self.raw.store();
        let mut peers = self.raw.raft.prs().iter();
        self.raw.raft.state == StateRole::Leader
            && peers.any(|(id, p)| p.next_idx <= store.start() && !store.serves(*id))
    }
}
