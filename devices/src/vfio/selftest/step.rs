//! A step of a device's test: what it found, or whether it is the device or the host that failed.

use super::super::region::AccessError;
use super::{SelfTestError, TestReport};

/// Why a step of a test failed.
pub enum StepError {
    /// The device didn't do what it was to do: what it did.
    Device(String),
    /// The host can't go on with the test.
    Host(SelfTestError),
}

impl From<String> for StepError {
    fn from(failure: String) -> Self {
        Self::Device(failure)
    }
}

impl From<&str> for StepError {
    fn from(failure: &str) -> Self {
        Self::Device(failure.to_owned())
    }
}

impl From<SelfTestError> for StepError {
    fn from(error: SelfTestError) -> Self {
        Self::Host(error)
    }
}

impl From<AccessError> for StepError {
    fn from(error: AccessError) -> Self {
        Self::Host(error.into())
    }
}

impl TestReport {
    /// Adds a step; whether the device passed.
    ///
    /// # Errors
    ///
    /// The host can't go on.
    pub fn add_step(
        &mut self,
        what: &str,
        result: Result<String, StepError>,
    ) -> Result<bool, SelfTestError> {
        let outcome = match result {
            Ok(detail) => Ok(detail),
            Err(StepError::Device(failure)) => Err(failure),
            Err(StepError::Host(error)) => return Err(error),
        };
        let passed = outcome.is_ok();
        self.add(what, outcome);
        Ok(passed)
    }
}
