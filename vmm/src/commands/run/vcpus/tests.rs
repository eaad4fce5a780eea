use super::*;

fn context(restarts: bool) -> VcpuContext {
    let (bus, waker) = (Arc::new(Bus::default()), Arc::new(Waker::new().unwrap()));
    VcpuContext::new(bus, GuestMemoryMmap::new(), None, None, waker, None, restarts)
}

#[test]
fn vcpus_run_again_after_a_reset_whatever_they_end_with_meanwhile() {
    let context = context(true);
    assert!(context.end(ExitReason::Reset));
    // Another vCPU, before the event loop has heard of the first: the new life needs both.
    assert!(context.end(ExitReason::Crash) && context.end(ExitReason::Reset));
    assert!(matches!(context.take_exit_reason(), Some(ExitReason::Reset)));
    // It is the first then, and the guest's life isn't begun anew.
    assert!(!context.end(ExitReason::Crash) && !context.end(ExitReason::Reset));
    assert!(matches!(context.take_exit_reason(), Some(ExitReason::Crash)));
}

#[test]
fn a_reset_is_an_end_where_guests_do_not_begin_anew() {
    assert!(!context(false).end(ExitReason::Reset));
}
