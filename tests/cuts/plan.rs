//! What is cut, when, how, and what happens then; all of it from a seed.

use std::fmt;

use tidelog_protocol::FrameKind;

use crate::harness::random::Random;
use crate::harness::udp_proxy::{Line, Weather};

use super::watch::Moment;

/// A step of the protocol, as the client takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Handshake,
    Hello,
    CreateStream,
    OpenProducer,
    Attach,
    Publish,
    /// The durable answer.
    Answer,
    Subscribe,
    Deliver,
    /// The sender's window is used up: the other side has to allow more.
    Credit,
    Close,
}

impl Step {
    /// Whether the client is at this step.
    pub fn is_at(self, moment: Moment) -> bool {
        match self {
            Self::Handshake => moment == Moment::Connecting,
            Self::Hello => moment == Moment::Sent(FrameKind::Hello, ""),
            Self::CreateStream => moment == Moment::Sent(FrameKind::Request, "create_stream"),
            Self::OpenProducer => moment == Moment::Sent(FrameKind::Request, "open_producer"),
            Self::Attach => moment == Moment::Sent(FrameKind::Request, "attach_producer"),
            Self::Publish => moment == Moment::Sent(FrameKind::Publish, ""),
            Self::Answer => moment == Moment::Received(FrameKind::Answers),
            Self::Subscribe => moment == Moment::Sent(FrameKind::Request, "subscribe"),
            Self::Deliver => moment == Moment::Received(FrameKind::Deliver),
            Self::Credit => moment == Moment::Blocked,
            Self::Close => moment == Moment::Closing,
        }
    }

    /// How often a session that nothing disturbs takes it at least.
    const fn occurrences(self) -> u64 {
        match self {
            Self::Publish | Self::Answer | Self::Deliver => ROUNDS,
            _ => 1,
        }
    }
}

/// Flushes of a session: each has its publish frame, its answer and its delivery.
pub const ROUNDS: u64 = 4;

/// What happens to the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It is cut, and the client is told.
    Refused,
    /// It is cut, and the client has to notice.
    Silent,
    /// The broker hears this many datagrams more, and the client none; then it is cut.
    AnswersLost { datagrams: u64 },
    /// This many datagrams are lost, in both directions.
    Burst { datagrams: u64 },
    /// The client gets another port on the way, as behind a NAT that has forgotten it.
    Rebound,
    /// What the client sends is late: it arrives when the client has long connected again.
    Late { datagrams: u64, until: Moment },
    /// Nothing is cut, but much goes astray all the time.
    Weather(Weather),
}

/// When the program that is cut off ends, for another run of it to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    Never,
    /// With the line.
    AtOnce,
    /// When it has noticed and connects again.
    WhenNoticed,
}

impl Trouble {
    fn of(kind: u64, random: &mut Random) -> Self {
        match kind {
            0 => Self::AnswersLost { datagrams: 3 + random.below(5) },
            1 => Self::Refused,
            2 => Self::Late {
                datagrams: 1 + random.below(4),
                until: [
                    Moment::Connecting,
                    Moment::Received(FrameKind::Welcome),
                    Moment::Received(FrameKind::Response),
                    Moment::Sent(FrameKind::Publish, ""),
                    Moment::Received(FrameKind::Answers),
                ][random.below(5) as usize],
            },
            3 => Self::Burst { datagrams: 1 + random.below(12) },
            4 => Self::Rebound,
            _ => Self::Silent,
        }
    }

    /// After how many datagrams it strikes: what is meant for a single message must not come too late for it.
    fn strikes_after(self, random: &mut Random) -> u64 {
        match self {
            Self::AnswersLost { .. } | Self::Late { .. } => random.below(3),
            _ => random.below(7),
        }
    }

    /// The states of a line that is whole, from `after` further datagrams on.
    pub fn stages(self, after: u64) -> Vec<(u64, Line)> {
        match self {
            Self::Refused => vec![(after, Line::REFUSED)],
            Self::Silent => vec![(after, Line::SILENT)],
            Self::AnswersLost { datagrams } => vec![(after, Line::ANSWERS_LOST), (datagrams, Line::REFUSED)],
            Self::Burst { datagrams } => vec![(after, Line::SILENT), (datagrams, Line::OPEN)],
            Self::Rebound => vec![(after, Line::REBOUND)],
            Self::Late { datagrams, .. } => vec![(after, Line::HELD), (datagrams, Line::REFUSED)],
            Self::Weather(_) => Vec::new(),
        }
    }
}

const TROUBLES: u64 = 6;

/// One cut.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    pub step: Step,
    /// At which time that this step is taken, from 1.
    pub occurrence: u64,
    /// Datagrams that still pass.
    pub after: u64,
    pub trouble: Trouble,
    pub death: Death,
    /// The consumer keeps up with the producer; otherwise it begins behind it.
    pub follows: bool,
    /// Records of one flush.
    pub records: u64,
    pub record_bytes: usize,
}

impl Plan {
    /// The `index`-th cut of a step. The first round of troubles strikes at once, later ones anywhere in the step.
    pub fn new(seed: u64, step: Step, index: u64) -> Self {
        let mut random = Random::new(seed ^ (step as u64) << 48 ^ index << 32);
        let mut random = random.fork();
        let trouble = Trouble::of(index % TROUBLES, &mut random);
        let is_first_round = index < TROUBLES;
        let after = if is_first_round { 0 } else { trouble.strikes_after(&mut random) };
        let death = match random.below(5) {
            0 if !is_first_round => Death::AtOnce,
            1 if !is_first_round => Death::WhenNoticed,
            _ => Death::Never,
        };
        let is_credit = step == Step::Credit;
        Self {
            seed: random.next(),
            step,
            occurrence: 1 + random.below(step.occurrences()),
            after,
            trouble,
            death,
            follows: random.one_in(2),
            records: if is_credit { 4 } else { 1 + random.below(12) },
            record_bytes: if is_credit { 60_000 } else { random.below(300) as usize },
        }
    }

    /// The whole sequence in bad weather.
    pub fn in_weather(seed: u64, weather: Weather) -> Self {
        let mut random = Random::new(seed);
        Self {
            seed: random.next(),
            step: Step::Handshake,
            occurrence: 1,
            after: 0,
            trouble: Trouble::Weather(weather),
            death: Death::Never,
            follows: random.one_in(2),
            records: 100,
            record_bytes: 300,
        }
    }

    pub fn weather(&self) -> Weather {
        match self.trouble {
            Trouble::Weather(weather) => weather,
            _ => Weather::default(),
        }
    }

    /// Records of the whole sequence.
    pub const fn total(&self) -> u64 {
        self.records * ROUNDS
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, occurrence, after, trouble, death, .. } = self;
        write!(formatter, "{trouble:?} {after} datagrams after {step:?} number {occurrence}")?;
        match death {
            Death::Never => Ok(()),
            Death::AtOnce | Death::WhenNoticed => {
                write!(formatter, ", another run after the first one's end {death:?}")
            }
        }
    }
}
