//! The network within the process, in the same weather as QUIC's.

use std::sync::Arc;
use std::time::Duration;

use super::ordeal::Ordeal;
use crate::in_process::{Attempt, Conditions, Fate, Passage, Side};
use crate::server::quic::Weather as _;

/// What befalls bytes on their way, as the broker's ordeal has it.
#[derive(Debug)]
pub(super) struct OrdealNetwork(pub(super) Arc<Ordeal>);

impl Conditions for OrdealNetwork {
    fn connect(&self) -> Attempt {
        Attempt::Reaches { after: self.0.cut_off_left() }
    }

    fn close(&self, _: u64) -> Duration {
        self.0.cut_off_left()
    }

    fn send(&self, passage: &Passage) -> Fate {
        // As with QUIC: what is lost while the network is away is sent again, and what the broker sends is late.
        let late = if passage.toward == Side::Client { self.0.delay() } else { Duration::ZERO };
        Fate::Arrives { after: self.0.cut_off_left() + late }
    }
}
