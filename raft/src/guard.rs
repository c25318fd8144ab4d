//! The one place where a panic of raft-rs ends, and the two exceptions that Python sees (R2).
//!
//! raft-rs reports a broken invariant by panicking. After that its state is not defined any more, so whoever catches
//! the panic here must never call the node again. Nothing is printed: the exception carries text and place.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};

use pyo3::create_exception;
use pyo3::exceptions::PyException;

create_exception!(
    tenure_raft,
    EngineError,
    PyException,
    "The engine broke an invariant of its own and is unusable, or it was called out of order."
);
create_exception!(
    tenure_raft,
    ProposalDropped,
    EngineError,
    "The proposal was surely not taken; the engine is well. Send it again, perhaps elsewhere."
);

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keep the text of a panic of this library for [`caught`] instead of printing it. Other libraries have a hook of
/// their own.
pub fn install_panic_hook() {
    panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("panic without a text");
        let place = info.location().map_or(String::new(), |location| {
            let file = location.file().rsplit('/').next().unwrap_or_default();
            format!(" ({file}:{})", location.line())
        });
        LAST_PANIC.with(|last| *last.borrow_mut() = format!("{text}{place}"));
    }));
}

/// Run `call`; a panic becomes its text.
pub fn caught<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    panic::catch_unwind(AssertUnwindSafe(call)).map_err(|_| LAST_PANIC.with(|last| last.borrow().clone()))
}
