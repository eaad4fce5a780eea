use super::*;
use crate::pci::testing::FakeMsiRouter;

fn message(data: u32) -> MsiMessage {
    MsiMessage { address: 0x0809_0040, data, requester: 0x10 }
}

fn vectors(count: u16, routes: usize) -> (MsiVectors, Arc<FakeMsiRouter>) {
    let router = Arc::new(FakeMsiRouter::new(routes));
    (MsiVectors::new(router.clone(), count), router)
}

/// Signals a vector that was unmasked before, as the device does.
fn signal(vectors: &MsiVectors, vector: u16) {
    let (_, trigger) = vectors.triggers().find(|(number, _)| *number == vector).unwrap();
    trigger.write(1).unwrap();
}

#[test]
fn a_signal_sends_its_vector_s_message() {
    let (mut vectors, router) = vectors(3, 8);
    for vector in [0, 2] {
        vectors.set(vector, Some(message(vector.into()))).unwrap();
    }
    signal(&vectors, 2);
    assert_eq!(router.poll(), [message(2)]);
    vectors.set(2, Some(message(7))).unwrap();
    assert_eq!(router.messages(), [message(0), message(7)]);
    signal(&vectors, 2);
    assert_eq!(router.poll(), [message(7)]);
    assert_eq!(vectors.triggers().map(|(vector, _)| vector).collect::<Vec<_>>(), [0, 2]);
    drop(vectors);
    assert_eq!(router.messages(), []);
}

#[test]
fn signals_of_a_masked_vector_are_sent_once_when_it_is_unmasked() {
    let (mut vectors, router) = vectors(2, 8);
    vectors.set(1, Some(message(1))).unwrap();
    for _ in 0..2 {
        vectors.set(1, None).unwrap();
        vectors.set(1, None).unwrap();
        assert!(!vectors.is_pending(1));
        (0..3).for_each(|_| signal(&vectors, 1));
        assert!(vectors.is_pending(1) && !vectors.is_pending(0));
        assert_eq!(router.poll(), []);
        vectors.set(1, Some(message(1))).unwrap();
        assert_eq!(router.poll(), [message(1)]);
        assert_eq!(router.poll(), []);
        assert!(!vectors.is_pending(1));
    }
}

#[test]
fn a_vector_without_a_route_stays_masked_and_keeps_its_signals() {
    let (mut vectors, router) = vectors(2, 1);
    vectors.set(0, Some(message(0))).unwrap();
    let error = vectors.set(1, Some(message(1))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    signal(&vectors, 1);
    assert!(vectors.is_pending(1));
    vectors.set(0, None).unwrap();
    vectors.set(1, Some(message(1))).unwrap();
    assert_eq!(router.poll(), [message(1)]);
}

#[test]
fn there_is_no_vector_beyond_the_last() {
    let (mut vectors, _) = vectors(2, 8);
    assert!(vectors.set(2, None).is_err() && vectors.set(2, Some(message(2))).is_err());
    assert!(!vectors.is_pending(2));
}
