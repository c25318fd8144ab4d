//! What the engine hands out: [`Ready`] before the caller's fsync, [`Advanced`] after it.
//!
//! Both are built once and cost per Ready and per peer, not per entry, but for the committed entries themselves.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use raft::eraftpb::{Entry, HardState, Message, Snapshot};
use raft::{ReadState, StateRole};

use crate::codec;

pub type PyIndexed = Option<(u64, u64, Py<PyBytes>)>;

/// What to make durable, and what may leave before that by rule R1.
#[pyclass(frozen, module = "tenure_raft")]
pub struct Ready {
    /// The node that handed this out: `advance` takes no other one's.
    pub raft_id: u64,
    #[pyo3(get)]
    pub number: u64,
    #[pyo3(get)]
    must_sync: bool,
    #[pyo3(get)]
    hard_state: Option<(u64, u64, u64)>,
    #[pyo3(get)]
    term_or_vote_changed: bool,
    #[pyo3(get)]
    role: Option<&'static str>,
    #[pyo3(get)]
    leader_id: Option<u64>,
    #[pyo3(get)]
    entries_first: u64,
    #[pyo3(get)]
    entries_count: usize,
    #[pyo3(get)]
    entries: Py<PyBytes>,
    #[pyo3(get)]
    snapshot: PyIndexed,
    #[pyo3(get)]
    messages: Py<PyList>,
    #[pyo3(get)]
    read_states: Py<PyList>,
}

/// What is valid once the Ready is durable.
#[pyclass(frozen, module = "tenure_raft")]
pub struct Advanced {
    #[pyo3(get)]
    messages: Py<PyList>,
    #[pyo3(get)]
    committed: Py<PyList>,
    #[pyo3(get)]
    commit: Option<u64>,
}

impl Ready {
    /// A view of raft-rs's Ready, with the hard state to store and the one that was stored before.
    pub fn new(
        py: Python<'_>,
        raft_id: u64,
        ready: &raft::Ready,
        hard_state: Option<&HardState>,
        before: &HardState,
    ) -> PyResult<Self> {
        let entries = ready.entries();
        Ok(Self {
            raft_id,
            number: ready.number(),
            must_sync: ready.must_sync(),
            hard_state: hard_state.map(|hs| (hs.term, hs.vote, hs.commit)),
            term_or_vote_changed: hard_state
                .is_some_and(|hs| (hs.term, hs.vote) != (before.term, before.vote)),
            role: ready.ss().map(|ss| role_name(ss.raft_state)),
            leader_id: ready.ss().map(|ss| ss.leader_id),
            entries_first: entries.first().map_or(0, |entry| entry.index),
            entries_count: entries.len(),
            entries: PyBytes::new(py, &codec::encode_batch(entries)).unbind(),
            snapshot: py_snapshot(py, ready.snapshot()),
            messages: py_messages(py, ready.messages())?,
            read_states: py_read_states(py, ready.read_states())?,
        })
    }
}

impl Advanced {
    pub fn new(
        py: Python<'_>,
        messages: &[Message],
        committed: &[Entry],
        commit: Option<u64>,
    ) -> PyResult<Self> {
        Ok(Self {
            messages: py_messages(py, messages)?,
            committed: py_entries(py, committed)?,
            commit,
        })
    }
}

pub fn role_name(role: StateRole) -> &'static str {
    match role {
        StateRole::Follower => "follower",
        StateRole::Candidate => "candidate",
        StateRole::Leader => "leader",
        StateRole::PreCandidate => "pre_candidate",
    }
}

/// Entries as Python reads them: index, term, kind, data.
pub fn py_entries(py: Python<'_>, entries: &[Entry]) -> PyResult<Py<PyList>> {
    let tuples = entries.iter().map(|entry| {
        let data = PyBytes::new(py, &entry.data);
        (entry.index, entry.term, codec::entry_kind(entry), data)
    });
    py_list(py, tuples)
}

fn py_messages(py: Python<'_>, messages: &[Message]) -> PyResult<Py<PyList>> {
    let payloads = codec::payloads(messages, codec::PAYLOAD_BYTES_MAX);
    py_list(
        py,
        payloads.iter().map(|(to, bytes)| (*to, PyBytes::new(py, bytes))),
    )
}

fn py_read_states(py: Python<'_>, states: &[ReadState]) -> PyResult<Py<PyList>> {
    py_list(
        py,
        states
            .iter()
            .map(|state| (state.index, PyBytes::new(py, &state.request_ctx))),
    )
}

pub fn py_snapshot(py: Python<'_>, snapshot: &Snapshot) -> PyIndexed {
    let metadata = snapshot.get_metadata();
    (metadata.index > 0).then(|| {
        let data = PyBytes::new(py, &snapshot.data).unbind();
        (metadata.index, metadata.term, data)
    })
}

fn py_list<'py, T>(py: Python<'py>, items: impl ExactSizeIterator<Item = T>) -> PyResult<Py<PyList>>
where
    T: IntoPyObject<'py, Target = PyTuple>,
{
    Ok(PyList::new(py, items)?.unbind())
}
