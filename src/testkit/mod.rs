//! The broker inside a test: up in milliseconds, misbehaving on command.
