//! The functions of the module that read and write bytes without a node. All of them refuse, none of them panics.

use bytes::Bytes;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use raft::eraftpb::{ConfChangeType, Message};

use crate::{changes, codec, ready};

pub fn malformed(error: codec::Malformed) -> PyErr {
    PyValueError::new_err(error.0)
}

#[pyfunction]
pub fn decode_batch(py: Python<'_>, blob: &[u8]) -> PyResult<Py<PyList>> {
    ready::py_entries(py, &codec::decode_batch(blob).map_err(malformed)?)
}

#[pyfunction]
pub fn encode_batch<'py>(
    py: Python<'py>,
    entries: Vec<(u64, u64, String, Bound<'_, PyBytes>)>,
) -> PyResult<Bound<'py, PyBytes>> {
    let entries = entries.iter().map(|(index, term, kind, data)| {
        codec::entry_of(*index, *term, kind, Bytes::copy_from_slice(data.as_bytes()))
    });
    let entries = entries.collect::<Result<Vec<_>, _>>().map_err(malformed)?;
    codec::check_batch(&entries).map_err(malformed)?;
    Ok(PyBytes::new(py, &codec::encode_batch(&entries)))
}

/// The changes that their names stand for.
pub fn changes_of(changes: Vec<(String, u64)>) -> PyResult<Vec<(ConfChangeType, u64)>> {
    let changes = changes.into_iter().map(|(name, id)| {
        let kind = changes::change_of(&name);
        let kind = kind.ok_or_else(|| PyValueError::new_err(format!("unknown change {name:?}")))?;
        Ok((kind, id))
    });
    changes.collect()
}

/// A configuration change as Python reads it: what happens to whom, and the context.
type PyConfChange = (Vec<(&'static str, u64)>, Py<PyBytes>);

#[pyfunction]
pub fn decode_conf_change(py: Python<'_>, data: &[u8]) -> PyResult<PyConfChange> {
    let change = changes::decode_conf_change(data).map_err(malformed)?;
    let changes = change.changes.iter();
    let changes = changes.map(|single| (changes::change_name(single.get_change_type()), single.node_id));
    Ok((changes.collect(), PyBytes::new(py, &change.context).unbind()))
}

#[pyfunction]
#[pyo3(signature = (changes, context = &b""[..]), text_signature = "(changes, context=b\"\")")]
pub fn encode_conf_change<'py>(
    py: Python<'py>,
    changes: Vec<(String, u64)>,
    context: &[u8],
) -> PyResult<Bound<'py, PyBytes>> {
    let changes = changes_of(changes)?;
    let data = changes::encode_conf_change(&changes, context);
    if data.len() > codec::COMMAND_BYTES_MAX || changes::decode_conf_change(&data).is_err() {
        return Err(PyValueError::new_err(
            "an id is out of range, or the context too long",
        ));
    }
    Ok(PyBytes::new(py, &data))
}

#[pyfunction]
pub fn snapshot_in(py: Python<'_>, payload: &[u8]) -> PyResult<ready::PyIndexed> {
    let snapshot = codec::snapshot_in(payload).map_err(malformed)?;
    Ok(snapshot.and_then(|snapshot| ready::py_snapshot(py, &snapshot)))
}

#[pyfunction]
pub fn message_kinds(payload: &[u8]) -> PyResult<Vec<(&'static str, u64, u64, u64)>> {
    let messages = codec::decode_messages(payload).map_err(malformed)?;
    let kinds = messages.iter().map(|message| {
        let name = codec::kind_name(message.get_msg_type()).unwrap_or("unknown");
        (name, message.from, message.to, message.term)
    });
    Ok(kinds.collect())
}

#[pyfunction]
#[pyo3(
    signature = (kind, *, sender, to, term, context = &b""[..], index = 0, log_term = 0, commit = 0),
    text_signature = "(kind, *, sender, to, term, context=b\"\", index=0, log_term=0, commit=0)"
)]
#[allow(clippy::too_many_arguments)]
pub fn encode_message<'py>(
    py: Python<'py>,
    kind: &str,
    sender: u64,
    to: u64,
    term: u64,
    context: &[u8],
    index: u64,
    log_term: u64,
    commit: u64,
) -> PyResult<Bound<'py, PyBytes>> {
    let code = codec::kind_of(kind);
    let code = code.ok_or_else(|| PyValueError::new_err(format!("unknown kind {kind:?}")))?;
    let numbers = [sender, to, term, index, log_term, commit];
    if context.len() > codec::CONTEXT_BYTES_MAX || numbers.iter().any(|n| *n >= codec::NUMBER_MAX) {
        return Err(PyValueError::new_err(
            "the context is too long, or a number too large",
        ));
    }
    let mut message = Message {
        from: sender,
        to,
        term,
        index,
        log_term,
        commit,
        context: Bytes::copy_from_slice(context),
        ..Message::default()
    };
    message.set_msg_type(code);
    let mut bytes = Vec::new();
    codec::encode_message(&mut bytes, &message);
    Ok(PyBytes::new(py, &bytes))
}
