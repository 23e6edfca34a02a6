//! What operators read when they ask about one client, or about all of a log.

mod full;
mod replay;
