//! `tenure_raft._engine`: a thin binding of raft-rs. No policy, no I/O, no clock.
//!
//! The caller makes what [`ready::Ready`] holds durable and moves the messages; the engine does the rest. Cost is per
//! Ready and per peer, never per entry. The GIL is kept: a call takes microseconds, and giving it up costs more.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use raft::eraftpb::Message;

mod codec;

mod engine;
mod guard;
mod image;
mod node;
mod ready;
mod start;

fn malformed(error: codec::Malformed) -> PyErr {
    PyValueError::new_err(error.0)
}

#[pyfunction]
fn decode_batch(py: Python<'_>, blob: &[u8]) -> PyResult<Py<PyList>> {
    ready::py_entries(py, &codec::decode_batch(blob).map_err(malformed)?)
}

#[pyfunction]
fn message_kinds(payload: &[u8]) -> PyResult<Vec<(&'static str, u64, u64, u64)>> {
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
fn encode_message<'py>(
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
        context: bytes::Bytes::copy_from_slice(context),
        ..Message::default()
    };
    message.set_msg_type(code);
    let mut bytes = Vec::new();
    codec::encode_message(&mut bytes, &message);
    Ok(PyBytes::new(py, &bytes))
}

#[pymodule]
fn _engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    guard::install_panic_hook();
    let py = module.py();
    module.add("EngineError", py.get_type::<guard::EngineError>())?;
    module.add("ProposalDropped", py.get_type::<guard::ProposalDropped>())?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<ready::Ready>()?;
    module.add_class::<ready::Advanced>()?;
    module.add_function(wrap_pyfunction!(decode_batch, module)?)?;
    module.add_function(wrap_pyfunction!(message_kinds, module)?)?;
    module.add_function(wrap_pyfunction!(encode_message, module)?)
}
