//! Where a broker is: `HOST:PORT` or `tidelog://HOST:PORT[?pin=…]`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::pin::{Pin, PinError};

/// The port a broker listens on unless told otherwise (UDP).
pub const DEFAULT_PORT: u16 = 7440;

/// The longest host name that DNS allows.
const HOST_BYTES_MAX: usize = 253;

/// A broker's host, port and, if given, the pin of its key.
///
/// IPv6 addresses stand in brackets: `[::1]:7440`. A missing port is [`DEFAULT_PORT`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    host: Box<str>,
    port: u16,
    pin: Option<Pin>,
}

impl Address {
    /// A host name or IP address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The UDP port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The pin that was part of the address.
    pub const fn pin(&self) -> Option<Pin> {
        self.pin
    }

    /// The same place, trusted by this pin.
    #[must_use]
    pub fn with_pin(self, pin: Pin) -> Self {
        Self { pin: Some(pin), ..self }
    }

    /// `HOST:PORT` without the pin.
    pub fn place(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl Default for Address {
    /// The broker on this machine: `127.0.0.1:7440`.
    fn default() -> Self {
        Self { host: "127.0.0.1".into(), port: DEFAULT_PORT, pin: None }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pin {
            Some(pin) => write!(formatter, "tidelog://{}?pin={pin}", self.place()),
            None => formatter.write_str(&self.place()),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (rest, query) = match text.split_once("://") {
            None => (text, None),
            Some(("tidelog", rest)) => match rest.split_once('?') {
                Some((rest, query)) => (rest.trim_end_matches('/'), Some(query)),
                None => (rest.trim_end_matches('/'), None),
            },
            Some((scheme, _)) => return Err(AddressError::Scheme { scheme: scheme.into() }),
        };
        if rest.contains('?') {
            return Err(AddressError::QueryWithoutScheme { text: text.into() });
        }
        let (host, port) = split_port(rest)?;
        Ok(Self { host: host.into(), port, pin: query.map(parse_query).transpose()? })
    }
}

fn split_port(text: &str) -> Result<(&str, u16), AddressError> {
    let bad_host = || AddressError::Host { host: text.into() };
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or_else(bad_host)?;
        // A zone (`fe80::1%eth0`) is part of the place, not of the address.
        let address = host.split_once('%').map_or(host, |(address, _)| address);
        address.parse::<Ipv6Addr>().map_err(|_| bad_host())?;
        match port.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if port.is_empty() => (host, None),
            None => return Err(bad_host()),
        }
    } else {
        if text.parse::<Ipv6Addr>().is_ok() {
            return Err(AddressError::Brackets { host: text.into() });
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if host.is_empty() || host.len() > HOST_BYTES_MAX || !host.bytes().all(known) {
            return Err(bad_host());
        }
        (host, port)
    };
    let port = match port {
        None => DEFAULT_PORT,
        Some(digits) => match digits.parse::<u16>() {
            Ok(port) if port > 0 && digits.bytes().all(|byte| byte.is_ascii_digit()) => port,
            _ => return Err(AddressError::Port { port: digits.into() }),
        },
    };
    Ok((host, port))
}

fn parse_query(query: &str) -> Result<Pin, AddressError> {
    match query.split_once('=') {
        Some(("pin", pin)) => Ok(pin.parse()?),
        _ => Err(AddressError::Query { query: query.into() }),
    }
}

/// Why a text is not the address of a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Another protocol's URL.
    #[error("`{scheme}://` is not a tidelog address; write HOST:PORT or tidelog://HOST:PORT")]
    Scheme {
        /// What stood before `://`.
        scheme: String,
    },
    /// `HOST:PORT?pin=…`: only the URL form has a query.
    #[error("a pin needs the long form: tidelog://{text}")]
    QueryWithoutScheme {
        /// The text as given.
        text: String,
    },
    /// Nothing, or characters no host name has.
    #[error("`{host}` is not a host; write for example 127.0.0.1:7440, broker.example:7440 or [::1]:7440")]
    Host {
        /// The text as given.
        host: String,
    },
    /// An IPv6 address whose end and port can't be told apart.
    #[error("an IPv6 address needs brackets: [{host}]:7440")]
    Brackets {
        /// The address.
        host: String,
    },
    /// Not a number from 1 to 65535.
    #[error("`{port}` is not a port; write a number from 1 to 65535")]
    Port {
        /// What stood behind the colon.
        port: String,
    },
    /// Something else than a pin behind `?`.
    #[error("`?{query}` is not understood; only ?pin=<64 hexadecimal digits> may follow the address")]
    Query {
        /// What stood behind `?`.
        query: String,
    },
    /// The pin is malformed.
    #[error("{0}; copy it from broker.json or from the line that `tidelog serve` prints")]
    Pin(#[from] PinError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Address {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(text: &str) -> AddressError {
        text.parse::<Address>().expect_err(text)
    }

    #[test]
    fn hosts_ports_and_pins_are_found() {
        let address = parse("broker.example:99");
        assert_eq!((address.host(), address.port(), address.pin()), ("broker.example", 99, None));
        assert_eq!(parse("localhost").port(), DEFAULT_PORT);
        let address = parse("[::1]:7");
        assert_eq!((address.host(), address.port()), ("::1", 7));
        assert_eq!(parse("[::1]").place(), "[::1]:7440");
        let pin = "ab".repeat(32);
        let address = parse(&format!("tidelog://10.0.0.1:7441?pin={pin}"));
        assert_eq!(address.host(), "10.0.0.1");
        assert_eq!(address.pin().map(|pin| pin.to_string()), Some(pin));
        assert_eq!(parse("tidelog://h/").port(), DEFAULT_PORT);
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let pin = "0f".repeat(32);
        for text in ["h:1".into(), "[fe80::1%eth0]:2".into(), format!("tidelog://[::1]:7440?pin={pin}")] {
            assert_eq!(parse(&text).to_string(), text);
        }
    }

    #[test]
    fn errors_say_what_to_type() {
        assert_eq!(refused("https://h:1"), AddressError::Scheme { scheme: "https".into() });
        assert_eq!(refused("::1"), AddressError::Brackets { host: "::1".into() });
        assert_eq!(refused("h:0"), AddressError::Port { port: "0".into() });
        assert_eq!(refused("h:+80"), AddressError::Port { port: "+80".into() });
        assert_eq!(refused("h:70000"), AddressError::Port { port: "70000".into() });
        for bad in ["", ":7440", "a b", "[::1", "[::1]x", "[h]:1"] {
            assert!(matches!(refused(bad), AddressError::Host { .. }), "{bad}");
        }
        assert!(matches!(refused("h:1?pin=00"), AddressError::QueryWithoutScheme { .. }));
        assert!(matches!(refused("tidelog://h:1?key=00"), AddressError::Query { .. }));
        let error = refused("tidelog://h:1?pin=00").to_string();
        assert!(error.contains("64") && error.contains("broker.json"), "{error}");
    }
}
