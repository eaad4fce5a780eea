use super::*;
use crate::pci::testing::FakeMsiRouter;

fn message(data: u32) -> MsiMessage {
    MsiMessage { address: 0x0809_0040, data, requester: 0x10 }
}

fn vectors(count: u16, routes: usize) -> (Vectors, Arc<FakeMsiRouter>) {
    let router = Arc::new(FakeMsiRouter::new(routes));
    (Vectors::new(router.clone(), count), router)
}

#[test]
fn a_signal_is_its_vector_s_message() {
    let (mut vectors, router) = vectors(3, 8);
    for vector in [0, 2] {
        vectors.deliver(vector, Delivery::To(message(vector.into()))).unwrap();
    }
    vectors.trigger(2).unwrap().write(1).unwrap();
    assert_eq!(router.poll(), [message(2)]);
    vectors.deliver(2, Delivery::To(message(7))).unwrap();
    assert_eq!(router.messages(), [message(0), message(7)]);
    vectors.trigger(2).unwrap().write(1).unwrap();
    assert_eq!(router.poll(), [message(7)]);
    assert_eq!(vectors.triggers().map(|(vector, _)| vector).collect::<Vec<_>>(), [0, 2]);
}

#[test]
fn what_a_masked_vector_signals_is_delivered_once_when_it_is_unmasked() {
    let (mut vectors, router) = vectors(2, 8);
    for _ in 0..2 {
        let trigger = vectors.trigger(1).unwrap();
        (0..3).for_each(|_| trigger.write(1).unwrap());
        assert!(vectors.is_pending(1) && !vectors.is_pending(0));
        assert_eq!(router.poll(), []);
        vectors.deliver(1, Delivery::To(message(1))).unwrap();
        assert_eq!(router.poll(), [message(1)]);
        assert_eq!(router.poll(), []);
        assert!(!vectors.is_pending(1));
        vectors.deliver(1, Delivery::Masked).unwrap();
        vectors.deliver(1, Delivery::Masked).unwrap();
        assert!(!vectors.is_pending(1));
    }
}

#[test]
fn disabling_disconnects_all_and_forgets_what_is_pending() {
    let (mut vectors, router) = vectors(2, 8);
    vectors.deliver(0, Delivery::To(message(0))).unwrap();
    vectors.trigger(1).unwrap().write(1).unwrap();
    vectors.disable();
    assert_eq!((router.messages(), vectors.is_pending(1)), (vec![], false));
    vectors.deliver(1, Delivery::To(message(1))).unwrap();
    assert_eq!(router.poll(), []);
    drop(vectors);
    assert_eq!(router.messages(), []);
}

#[test]
fn a_vector_without_a_route_stays_masked_and_keeps_its_signals() {
    let (mut vectors, router) = vectors(2, 1);
    vectors.deliver(0, Delivery::To(message(0))).unwrap();
    vectors.trigger(1).unwrap().write(1).unwrap();
    let error = vectors.deliver(1, Delivery::To(message(1))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(vectors.is_pending(1));
    vectors.deliver(0, Delivery::Masked).unwrap();
    vectors.deliver(1, Delivery::To(message(1))).unwrap();
    assert_eq!(router.poll(), [message(1)]);
}

#[test]
fn there_is_no_vector_beyond_the_last() {
    let (mut vectors, _) = vectors(2, 8);
    assert!(vectors.trigger(2).is_err());
    assert!(vectors.deliver(2, Delivery::Masked).is_err());
    assert!(!vectors.is_pending(2));
}
