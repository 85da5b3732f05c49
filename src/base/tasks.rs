//! The only place that starts tasks and threads.

use std::{future::Future, sync::Arc};

use tokio::{runtime::Handle, sync::watch, task::JoinHandle};

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

/// The same on another runtime than the current one.
pub fn spawn_on<F>(runtime: &Handle, _name: &'static str, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    runtime.spawn(future)
}

/// Runs blocking work on tokio's pool for such work.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime stops, and with it whoever waits.
            Err(_) => std::future::pending().await,
        },
    }
}

/// What a thread does first that is to stand back behind the one that calls this: by so much of what `nice(2)`
/// calls niceness, whichever thread starts it. Where the system has that for whole processes only, or refuses,
/// nothing changes.
pub fn standing_back(by: u8) -> impl Fn() + Send + Sync + 'static {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{getpriority_process, setpriority_process};
        let nice = getpriority_process(None).unwrap_or(0) + i32::from(by);
        move || {
            let _ = setpriority_process(None, nice);
        }
    }
    #[cfg(not(target_os = "linux"))]
    move || {
        let _ = by;
    }
}

/// Says that the node can no longer keep its promises and must stop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Alarm(Arc<watch::Sender<bool>>);

impl Alarm {
    /// A new alarm, and who hears it: true once it is raised.
    pub fn new() -> (Self, watch::Receiver<bool>) {
        let (raised, heard) = watch::channel(false);
        (Self(Arc::new(raised)), heard)
    }

    /// Raises it, for good.
    pub fn raise(&self) {
        self.0.send_replace(true);
    }

    /// Whether it was raised.
    pub fn is_raised(&self) -> bool {
        *self.0.borrow()
    }
}

/// Starts a task without which the node is none: if it panics, the alarm is raised.
pub fn spawn_vital<F>(name: &'static str, alarm: Alarm, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    spawn(name, async move {
        let _watch = RaiseOnPanic { name, alarm };
        future.await
    })
}

struct RaiseOnPanic {
    name: &'static str,
    alarm: Alarm,
}

impl Drop for RaiseOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.name, "a vital task panicked, the node stops");
            self.alarm.raise();
        }
    }
}

/// Starts a thread for work that blocks for the life of the node; vital as in
/// [`spawn_vital`].
///
/// # Panics
/// If the operating system has no thread to give: at start-up only.
pub fn thread(name: &'static str, alarm: Alarm, work: impl FnOnce() + Send + 'static) {
    let watched = move || {
        let _watch = RaiseOnPanic { name, alarm };
        work();
    };
    std::thread::Builder::new()
        .name(name.into())
        .spawn(watched)
        .expect("a thread can be started while the node starts");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vital_task_that_panics_raises_the_alarm_and_others_do_not() {
        let (alarm, mut heard) = Alarm::new();
        spawn_vital("quiet", alarm.clone(), async {}).await.unwrap();
        assert!(!alarm.is_raised());
        assert!(spawn_vital("loud", alarm, async { panic!("planted") }).await.is_err());
        assert!(*heard.wait_for(|raised| *raised).await.unwrap());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_stands_back_once_whoever_starts_it() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let (stand_back, ours) = (standing_back(3), nice());
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                stand_back();
                let second = scope.spawn(|| {
                    stand_back();
                    nice()
                });
                (nice(), second.join().unwrap())
            });
            let expected = (ours + 3).min(19);
            assert_eq!(first.join().unwrap(), (expected, expected));
        });
        assert_eq!(nice(), ours, "the others stay");
    }
}
