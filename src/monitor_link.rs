//! How the engine tells the monitor of its health, where there is a monitor.

#[cfg(feature = "http")]
use std::sync::Arc;

use tidelog_protocol::Welcome;
use tidelog_storage::RecoveryReport;

use crate::state::State;

#[cfg(feature = "http")]
use crate::monitor::{Health, MonitorState};

/// The monitor's state, or nothing in a build without it.
#[derive(Debug, Clone, Default)]
pub(crate) struct MonitorLink {
    #[cfg(feature = "http")]
    pub(crate) state: Option<Arc<MonitorState>>,
}

impl MonitorLink {
    pub(crate) fn ready(&self) {
        #[cfg(feature = "http")]
        self.set(Health::Ready);
    }

    pub(crate) fn poisoned(&self) {
        #[cfg(feature = "http")]
        self.set(Health::Poisoned);
    }

    pub(crate) fn stopping(&self) {
        #[cfg(feature = "http")]
        self.set(Health::Stopping);
    }

    pub(crate) fn set_status(&self, welcome: &Welcome, report: &RecoveryReport, fold: &State) {
        #[cfg(feature = "http")]
        if let Some(state) = &self.state {
            state.set_status(crate::monitor::StatusSnapshot {
                log_id: welcome.log_id.clone(),
                start_count: welcome.start_count,
                medium: format!("{:?}", welcome.medium).to_lowercase(),
                recovery: crate::report::report_lines(report, fold),
                report: crate::report::facts(report, fold),
            });
        }
        #[cfg(not(feature = "http"))]
        let _ = (welcome, report, fold);
    }

    #[cfg(feature = "http")]
    fn set(&self, health: Health) {
        if let Some(state) = &self.state {
            state.set_health(health);
        }
    }
}
