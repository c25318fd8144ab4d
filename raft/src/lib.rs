//! `tenure_raft._engine`: a thin binding of raft-rs. No policy, no I/O, no clock.
//!
//! The caller makes what [`ready::Ready`] holds durable and moves the messages; the engine does the rest. Cost is per
//! Ready and per peer, never per entry. The GIL is kept: a call takes microseconds, and giving it up costs more.

use pyo3::prelude::*;

mod changes;
mod codec;
mod engine;
mod guard;
mod image;
mod members;
mod node;
mod ready;
mod start;
mod wire;

#[pymodule]
fn _engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    guard::install_panic_hook();
    let py = module.py();
    module.add("EngineError", py.get_type::<guard::EngineError>())?;
    module.add("ProposalDropped", py.get_type::<guard::ProposalDropped>())?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<ready::Ready>()?;
    module.add_class::<ready::Advanced>()?;
    module.add_function(wrap_pyfunction!(wire::decode_batch, module)?)?;
    module.add_function(wrap_pyfunction!(wire::encode_batch, module)?)?;
    module.add_function(wrap_pyfunction!(wire::decode_conf_change, module)?)?;
    module.add_function(wrap_pyfunction!(wire::encode_conf_change, module)?)?;
    module.add_function(wrap_pyfunction!(wire::snapshot_in, module)?)?;
    module.add_function(wrap_pyfunction!(wire::message_kinds, module)?)?;
    module.add_function(wrap_pyfunction!(wire::encode_message, module)?)
}
