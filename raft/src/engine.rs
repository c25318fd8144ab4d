//! The class `Engine` that Python drives: arguments in, answers out, every panic caught (R2).
//!
//! It must never decide anything: order and admission are in `node.rs`, bytes in `codec.rs`.

use std::sync::Mutex;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::PyBytes;

use crate::codec;
use crate::guard::{caught, EngineError, ProposalDropped};
use crate::node::{Node, Refuse};
use crate::ready::{role_name, Advanced, Ready};
use crate::start::{Base, Durable, Limits, Refused};
use crate::wire::{changes_of, malformed};

/// A node, or the text of the panic that ended it.
enum State {
    Well(Box<Node>),
    Poisoned(String),
}

/// One Raft node without I/O and without a clock. See the stub file for what each call promises.
#[pyclass(frozen, module = "tenure_raft")]
pub struct Engine {
    #[pyo3(get)]
    raft_id: u64,
    election_tick: usize,
    state: Mutex<State>,
}

impl From<Refused> for PyErr {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Order(text) => EngineError::new_err(text),
            Refused::Value(text) => PyValueError::new_err(text),
            Refused::Dropped(text) => ProposalDropped::new_err(text),
        }
    }
}

impl Engine {
    /// Run `call` on the node. A panic poisons the engine: the node is dropped.
    fn look<T>(&self, py: Python<'_>, call: impl FnOnce(&mut Node) -> PyResult<T>) -> PyResult<T> {
        let mut state = match self.state.lock_py_attached(py) {
            Ok(state) => state,
            Err(poisoned) => poisoned.into_inner(),
        };
        let failure = match &mut *state {
            State::Poisoned(text) => {
                return Err(EngineError::new_err(format!(
                    "the engine is unusable since: {text}"
                )))
            }
            State::Well(node) => match caught(|| call(node)) {
                Ok(answer) => return answer,
                Err(text) => text,
            },
        };
        *state = State::Poisoned(failure.clone());
        Err(EngineError::new_err(format!(
            "the engine failed and is unusable: {failure}"
        )))
    }

    /// Run `call`, which changes the node: never between `ready` and `advance`.
    fn alter<T>(&self, py: Python<'_>, call: impl FnOnce(&mut Node) -> PyResult<T>) -> PyResult<T> {
        self.look(py, |node| {
            node.check_order()?;
            call(node)
        })
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (*, raft_id, election_tick, heartbeat_tick, voters, learners, term, vote, commit, batches,
                        applied = 0, snapshot = None, max_size_per_message = 1 << 20, max_inflight_messages = 256,
                        max_uncommitted_size = 64 << 20, tell_commits = true))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        raft_id: u64,
        election_tick: usize,
        heartbeat_tick: usize,
        voters: Vec<u64>,
        learners: Vec<u64>,
        term: u64,
        vote: u64,
        commit: u64,
        batches: Vec<Bound<'_, PyBytes>>,
        applied: u64,
        snapshot: Option<(u64, u64, Bound<'_, PyBytes>)>,
        max_size_per_message: u64,
        max_inflight_messages: usize,
        max_uncommitted_size: u64,
        tell_commits: bool,
    ) -> PyResult<Self> {
        if !(1..=codec::COMMAND_BYTES_MAX as u64).contains(&max_size_per_message) {
            let text = format!(
                "max_size_per_message must lie between 1 and {}",
                codec::COMMAND_BYTES_MAX
            );
            return Err(PyValueError::new_err(text));
        }
        let (index, snapshot_term, data) = match &snapshot {
            Some((index, term, data)) => (*index, *term, data.as_bytes()),
            None => (0, 0, &b""[..]),
        };
        let members = voters.iter().chain(&learners).copied();
        let mut numbers = members.chain([raft_id, term, vote, commit, applied, index, snapshot_term]);
        if raft_id == 0 || numbers.any(|number| number >= codec::NUMBER_MAX) {
            return Err(PyValueError::new_err("an id, a term or an index is out of range"));
        }
        let base = Base {
            index,
            term: snapshot_term,
            data: bytes::Bytes::copy_from_slice(data),
            voters,
            learners,
        };
        let durable = Durable {
            term,
            vote,
            commit,
            applied,
        };
        let limits = Limits {
            election_tick,
            heartbeat_tick,
            max_size_per_message,
            max_inflight_messages,
            max_uncommitted_size,
            tell_commits,
        };
        let entries = batches.iter().map(|blob| codec::decode_batch(blob.as_bytes()));
        let node = caught(|| Node::new(raft_id, &limits, base, &durable, entries))
            .map_err(EngineError::new_err)??;
        Ok(Self {
            raft_id,
            election_tick,
            state: Mutex::new(State::Well(Box::new(node))),
        })
    }

    #[pyo3(signature = (count = 1))]
    fn tick(&self, py: Python<'_>, count: usize) -> PyResult<()> {
        self.alter(py, |node| {
            (0..count).for_each(|_| node.tick());
            Ok(())
        })
    }

    fn set_randomized_election_timeout(&self, py: Python<'_>, ticks: usize) -> PyResult<()> {
        let range = self.election_tick..2 * self.election_tick;
        if !range.contains(&ticks) {
            return Err(PyValueError::new_err(format!(
                "{ticks} ticks are not in {range:?}"
            )));
        }
        self.alter(py, |node| {
            node.raw.raft.set_randomized_election_timeout(ticks);
            Ok(())
        })
    }

    #[pyo3(signature = (sender, payload, *, refuse_votes, refuse_campaign = false))]
    fn receive(
        &self,
        py: Python<'_>,
        sender: u64,
        payload: &[u8],
        refuse_votes: bool,
        refuse_campaign: bool,
    ) -> PyResult<(usize, usize)> {
        let refuse = Refuse {
            votes: refuse_votes,
            campaign: refuse_campaign,
        };
        self.alter(py, |node| {
            let messages = codec::decode_messages(payload).map_err(malformed)?;
            let count = messages.len();
            let stepped = node.receive(sender, messages, refuse);
            Ok((stepped, count - stepped))
        })
    }

    fn vouch_for(&self, py: Python<'_>, ids: Vec<u64>) -> PyResult<()> {
        self.alter(py, |node| Ok(node.vouch_for(&ids)?))
    }

    fn propose(&self, py: Python<'_>, commands: Vec<Bound<'_, PyBytes>>) -> PyResult<u64> {
        let commands: Vec<&[u8]> = commands.iter().map(|command| command.as_bytes()).collect();
        self.alter(py, |node| Ok(node.propose(&commands)?))
    }

    #[pyo3(signature = (changes, context = &b""[..]), text_signature = "($self, changes, context=b\"\")")]
    fn propose_conf_change(
        &self,
        py: Python<'_>,
        changes: Vec<(String, u64)>,
        context: &[u8],
    ) -> PyResult<u64> {
        let changes = changes_of(changes)?;
        self.alter(py, |node| Ok(node.propose_conf_change(&changes, context)?))
    }

    fn apply_conf_change(&self, py: Python<'_>, data: &[u8]) -> PyResult<(Vec<u64>, Vec<u64>)> {
        self.alter(py, |node| {
            node.apply_conf_change(data)?;
            Ok((node.voters(), node.learners()))
        })
    }

    fn read_index(&self, py: Python<'_>, context: &[u8]) -> PyResult<()> {
        self.alter(py, |node| Ok(node.read_index(context)?))
    }

    fn transfer_leader(&self, py: Python<'_>, target: u64) -> PyResult<()> {
        self.alter(py, |node| {
            node.transfer_leader(target);
            Ok(())
        })
    }

    #[pyo3(signature = (leader = 0))]
    fn become_follower(&self, py: Python<'_>, leader: u64) -> PyResult<()> {
        self.alter(py, |node| Ok(node.become_follower(leader)?))
    }

    fn campaign(&self, py: Python<'_>) -> PyResult<()> {
        self.alter(py, |node| {
            node.campaign();
            Ok(())
        })
    }

    fn ping(&self, py: Python<'_>) -> PyResult<()> {
        self.alter(py, |node| {
            node.ping();
            Ok(())
        })
    }

    fn report_unreachable(&self, py: Python<'_>, peer: u64) -> PyResult<()> {
        self.alter(py, |node| {
            node.raw.report_unreachable(peer);
            Ok(())
        })
    }

    #[pyo3(signature = (peer, *, received))]
    fn report_snapshot(&self, py: Python<'_>, peer: u64, received: bool) -> PyResult<()> {
        self.alter(py, |node| {
            node.report_snapshot(peer, received);
            Ok(())
        })
    }

    fn has_ready(&self, py: Python<'_>) -> PyResult<bool> {
        self.alter(py, |node| Ok(node.raw.has_ready()))
    }

    fn ready(&self, py: Python<'_>) -> PyResult<Ready> {
        self.alter(py, |node| {
            let before = node.durable().clone();
            let (ready, hard_state) = node.ready();
            Ready::new(py, self.raft_id, ready, hard_state, &before)
        })
    }

    fn advance(&self, py: Python<'_>, ready: &Ready) -> PyResult<Advanced> {
        if ready.raft_id != self.raft_id {
            return Err(EngineError::new_err("this Ready is another engine's"));
        }
        self.look(py, |node| {
            let advance = node.advance(ready.number)?;
            Advanced::new(py, &advance.messages, &advance.committed, advance.commit)
        })
    }

    fn applied_to(&self, py: Python<'_>, index: u64) -> PyResult<()> {
        self.alter(py, |node| Ok(node.applied_to(index)?))
    }

    #[pyo3(signature = (index, data, *, keep = 0))]
    fn compact(&self, py: Python<'_>, index: u64, data: &[u8], keep: u64) -> PyResult<()> {
        self.alter(py, |node| Ok(node.compact(index, data, keep)?))
    }

    fn progress(&self, py: Python<'_>) -> PyResult<Vec<(u64, u64, u64, bool)>> {
        self.look(py, |node| Ok(node.progress()))
    }

    #[getter]
    fn term(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |node| Ok(node.raw.raft.term))
    }

    #[getter]
    fn vote(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |node| Ok(node.raw.raft.vote))
    }

    #[getter]
    fn commit(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |node| Ok(node.raw.raft.raft_log.committed))
    }

    #[getter]
    fn applied(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |node| Ok(node.raw.raft.raft_log.applied))
    }

    #[getter]
    fn last_index(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |node| Ok(node.raw.raft.raft_log.last_index()))
    }

    #[getter]
    fn last_term(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |node| Ok(node.raw.raft.raft_log.last_term()))
    }

    #[getter]
    fn leader_id(&self, py: Python<'_>) -> PyResult<u64> {
        self.look(py, |node| Ok(node.raw.raft.leader_id))
    }

    #[getter]
    fn role(&self, py: Python<'_>) -> PyResult<&'static str> {
        self.look(py, |node| Ok(role_name(node.raw.raft.state)))
    }

    #[getter]
    fn voters(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        self.look(py, |node| Ok(node.voters()))
    }

    #[getter]
    fn learners(&self, py: Python<'_>) -> PyResult<Vec<u64>> {
        self.look(py, |node| Ok(node.learners()))
    }

    #[getter]
    fn joint(&self, py: Python<'_>) -> PyResult<bool> {
        self.look(py, |node| Ok(node.is_joint()))
    }

    #[getter]
    fn snapshot_wanted(&self, py: Python<'_>) -> PyResult<bool> {
        self.look(py, |node| Ok(node.snapshot_wanted()))
    }

    #[getter]
    fn granted_votes(&self, py: Python<'_>) -> PyResult<usize> {
        self.look(py, |node| Ok(node.granted_votes()))
    }

    #[getter]
    fn poisoned(&self, py: Python<'_>) -> bool {
        match self.state.lock_py_attached(py) {
            Ok(state) => matches!(*state, State::Poisoned(_)),
            Err(_) => true,
        }
    }
}
