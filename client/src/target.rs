//! A stream as a caller names it.

use tidelog_protocol::{StreamDescription, StreamName};

use crate::connection::Client;
use crate::error::Error;

/// A stream by its name, to be looked up, or as it was described before.
///
/// A description names one stream for ever: if it is removed and another one is made under its name, that is
/// `stream_gone`. A name means whichever stream has it when it is looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamTarget {
    /// To be looked up.
    Named(StreamName),
    /// Known already.
    Described(StreamDescription),
}

impl StreamTarget {
    pub(crate) async fn resolve(self, client: &Client) -> Result<StreamDescription, Error> {
        match self {
            Self::Named(name) => client.stream_info(&name).await,
            Self::Described(description) => Ok(description),
        }
    }
}

impl From<StreamName> for StreamTarget {
    fn from(name: StreamName) -> Self {
        Self::Named(name)
    }
}

impl From<&StreamName> for StreamTarget {
    fn from(name: &StreamName) -> Self {
        Self::Named(name.clone())
    }
}

impl From<StreamDescription> for StreamTarget {
    fn from(description: StreamDescription) -> Self {
        Self::Described(description)
    }
}

impl From<&StreamDescription> for StreamTarget {
    fn from(description: &StreamDescription) -> Self {
        Self::Described(description.clone())
    }
}
