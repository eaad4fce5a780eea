//! The event loop's part in control from outside: it carries out what clients ask for.

use event_manager::{EventOps, EventSet};

use super::{EventHandler, token};
use crate::control::{Answer, Request, event, status};
use crate::exit_reason::ExitReason;

impl EventHandler<'_> {
    /// Something has happened at the control socket or one of its clients.
    #[cold]
    pub(super) fn serve_control(&mut self, number: u32, events: EventSet) {
        let Some(control) = &mut self.sources.control else { return };
        let number = number.saturating_sub(token::CONTROL);
        let Some(pending) = control.serve(number, events) else { return };
        let (answer, event) = self.carry_out(pending.request);
        if let Some(control) = &mut self.sources.control {
            control.answer(&pending, answer);
        }
        event.iter().for_each(|event| self.tell(event));
        if pending.request == Request::Terminate {
            // It is answered first.
            self.stop(ExitReason::Quit);
        }
    }

    /// Polls clients for what they are waited for now.
    #[cold]
    pub(super) fn update_control(&mut self, ops: &mut EventOps) {
        self.sources.control.iter_mut().for_each(|control| control.update(token::CONTROL, ops));
    }

    /// Does what a client asks for, and answers it, with the event that it is.
    fn carry_out(&mut self, request: Request) -> (Answer, Option<&'static str>) {
        let done = |is_done, event| match is_done {
            true => (Answer::Done, event),
            false => (Answer::NotSupported, None),
        };
        let object = |name: &str, object: Option<String>| match object {
            Some(object) => (Answer::Parameters(format!(r#"{{"{name}":{object}}}"#)), None),
            None => (Answer::NotSupported, None),
        };
        match request {
            Request::Terminate => (Answer::Done, None),
            Request::PowerOff => {
                let has_button = self.sources.power_button.is_some();
                // A second time it stays pressed.
                self.press_power_button();
                done(has_button, None)
            }
            // One that was asked to end isn't to begin anew.
            Request::Reboot if !self.steering.restarts() || self.is_asked_to_end() => {
                (Answer::NotSupported, None)
            }
            Request::Reboot => {
                let outcome = self.steering.restart();
                self.conclude(outcome);
                (Answer::Done, None)
            }
            Request::Pause => {
                let was_paused = self.steering.is_paused();
                done(self.steering.pause(), (!was_paused).then_some(event::STOP))
            }
            Request::Resume => {
                let was_paused = self.steering.is_paused();
                self.steering.resume();
                (Answer::Done, was_paused.then_some(event::RESUME))
            }
            Request::Status => (Answer::Parameters(status(self.steering.is_paused())), None),
            Request::Describe => object("machine", self.sources.description.clone()),
            Request::Trace(on) => {
                let tracer = self.sources.tracer.as_ref();
                tracer.iter().for_each(|tracer| tracer.turn(on));
                done(tracer.is_some(), None)
            }
            Request::Stats => object("statistics", self.recorder.map(|recorder| recorder.text())),
        }
    }
}
