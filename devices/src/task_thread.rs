//! Threads that are made before there is anything for them to do.
//!
//! What works on a device's queues begins when the guest's driver says so, and ends when it resets the
//! device. No thread is made and none ends for that: once a guest runs, strait needs no more of the
//! host than it has.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::sync::lock;
use crate::thread_kind::ThreadKind;

/// A thread that waits for a task, does it, and waits for the next.
#[derive(Debug)]
pub struct TaskThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A task that a [`TaskThread`] was given.
#[derive(Debug)]
pub struct Task<T> {
    /// Its place among its thread's tasks, from 1 on.
    number: u64,
    result: Arc<Mutex<Option<T>>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when the state has changed.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    task: Option<Box<dyn FnOnce() + Send>>,
    /// The number of tasks that it was given.
    given: u64,
    /// The number of tasks that are done.
    done: u64,
    /// The thread is to end once it is idle, or it has.
    end: bool,
}

impl State {
    fn is_busy(&self) -> bool {
        self.done < self.given
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("busy", &self.is_busy()).field("end", &self.end).finish()
    }
}

impl TaskThread {
    /// Starts a thread of this kind called `name` (at most 15 bytes), with a stack of so many bytes, or
    /// of the usual size.
    ///
    /// # Errors
    ///
    /// The host has no more threads.
    pub fn start(kind: ThreadKind, name: &str, stack_size: Option<usize>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut builder = thread::Builder::new().name(name.to_owned());
        if let Some(size) = stack_size {
            builder = builder.stack_size(size);
        }
        let own = shared.clone();
        let thread = builder.spawn(move || {
            kind.enter();
            let _gone = Gone(&own);
            while let Some(task) = own.next() {
                task();
                own.change(|state| state.done = state.given);
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Has it do this.
    ///
    /// # Errors
    ///
    /// It is at another task (`ResourceBusy`).
    pub fn run<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Task<T>> {
        let result = Arc::new(Mutex::new(None));
        let theirs = result.clone();
        let task: Box<dyn FnOnce() + Send> = Box::new(move || {
            let done = task();
            *lock(&theirs) = Some(done);
        });
        let mut state = lock(&self.shared.state);
        if state.is_busy() || state.end {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        state.task = Some(task);
        state.given = state.given.saturating_add(1);
        let number = state.given;
        drop(state);
        self.shared.changed.notify_all();
        Ok(Task { number, result, shared: self.shared.clone() })
    }
}

impl Drop for TaskThread {
    /// Waits for its task, and ends it.
    fn drop(&mut self) {
        self.shared.change(|state| state.end = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl<T> Task<T> {
    /// Whether it is done, so that its thread can have the next.
    pub fn is_finished(&self) -> bool {
        lock(&self.shared.state).done >= self.number
    }

    /// Waits until it is done, and answers its result; `None` if it panicked.
    pub fn join(self) -> Option<T> {
        drop(self.shared.wait(|state| state.done >= self.number));
        lock(&self.result).take()
    }
}

/// The end of a thread, by a panic too.
struct Gone<'a>(&'a Shared);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.change(|state| (state.end, state.done) = (true, state.given));
    }
}

impl Shared {
    /// Waits for a task; `None` if the thread is to end.
    fn next(&self) -> Option<Box<dyn FnOnce() + Send>> {
        self.wait(|state| state.task.is_some() || state.end).task.take()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }

    fn wait(&self, until: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let state = lock(&self.state);
        let waited = self.changed.wait_while(state, |state| !until(state));
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn thread() -> TaskThread {
        TaskThread::start(ThreadKind::Block, "test", None).unwrap()
    }

    #[test]
    fn one_thread_does_one_task_after_the_other() {
        let thread = thread();
        let id = |thread: &TaskThread| thread.run(|| thread::current().id()).unwrap().join();
        let first = id(&thread).unwrap();
        assert!(first != thread::current().id());
        assert_eq!(id(&thread), Some(first));
    }

    #[test]
    fn a_task_is_under_way_until_it_is_done() {
        let thread = thread();
        let (go, wait) = mpsc::channel();
        let task = thread.run(move || wait.recv().is_ok()).unwrap();
        assert!(!task.is_finished());
        assert_eq!(thread.run(|| ()).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        go.send(()).unwrap();
        assert_eq!(task.join(), Some(true));
        assert_eq!(thread.run(|| 7).unwrap().join(), Some(7));
    }

    #[test]
    fn a_task_is_waited_for_by_the_end_of_its_thread() {
        let thread = thread();
        let task = thread.run(|| thread::sleep(std::time::Duration::from_millis(20))).unwrap();
        drop(thread);
        assert!(task.is_finished());
    }

    #[test]
    fn a_panic_ends_the_task_without_a_result() {
        let thread = thread();
        let task = thread.run(|| -> u8 { panic!("as the test wants it") }).unwrap();
        assert_eq!(task.join(), None);
        assert!(thread.run(|| ()).is_err());
    }
}
