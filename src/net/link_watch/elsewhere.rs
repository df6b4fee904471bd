//! Where no one tells: looking every few seconds must do.

/// Tells nothing.
#[derive(Debug)]
pub(crate) struct LinkWatch;

impl LinkWatch {
    pub(crate) fn start() -> Self {
        Self
    }

    /// Waits for ever.
    pub(crate) async fn changed(&mut self) {
        std::future::pending().await
    }
}
