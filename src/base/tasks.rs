//! The only place that starts tasks and threads.

use std::future::Future;

use tokio::task::JoinHandle;

/// Starts a task on the current runtime. It runs until it returns; its owner
/// tells it to stop through a channel or a token, or aborts the handle.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub fn spawn<F>(_name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future)
}

/// Runs blocking work on tokio's pool for such work.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Starts a thread for work that blocks for the life of the node.
///
/// # Panics
/// If the operating system has no thread to give: at start-up only.
pub fn thread(name: &'static str, work: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .expect("a thread can be started while the node starts");
}
