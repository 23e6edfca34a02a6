//! The process's own messages, on stderr. Connections are told in the access log instead.

use std::io;

use tracing::{Subscriber, level_filters::LevelFilter, subscriber::SetGlobalDefaultError};
use tracing_subscriber::fmt::{MakeWriter, fmt};

use crate::config::{LogFormat, LogLevel};

/// Sends `tracing` events of `level` and above to stderr, from now on and from every thread. Once per process.
pub fn init_messages(format: LogFormat, level: LogLevel) -> Result<(), SetGlobalDefaultError> {
    tracing::subscriber::set_global_default(subscriber(format, level, io::stderr))
}

/// Without colours anywhere, so that no file or journal ever holds escapes.
fn subscriber<W>(format: LogFormat, level: LogLevel, output: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    // A stderr that is closed is no reason to write to it about that.
    let builder = fmt().with_max_level(level).with_target(false).log_internal_errors(false).with_writer(output);
    match format {
        LogFormat::Json => {
            Box::new(builder.json().flatten_event(true).with_current_span(false).with_span_list(false).finish())
        }
        LogFormat::Text => Box::new(builder.with_ansi(false).finish()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::Value;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn said(format: LogFormat, level: LogLevel) -> String {
        let memory = Memory::default();
        let output = memory.clone();
        tracing::subscriber::with_default(subscriber(format, level, move || output.clone()), || {
            tracing::debug!("quiet");
            tracing::warn!(file = "a\u{1b}[31m\nb", "certificate expires");
        });
        String::from_utf8(memory.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_message_is_one_line_of_its_level_without_escapes() {
        let text = said(LogFormat::Text, LogLevel::Info);
        assert!(text.contains("WARN") && text.contains("certificate expires"), "{text}");
        assert_eq!((text.lines().count(), text.contains('\u{1b}')), (1, false), "{text:?}");
        let value: Value = serde_json::from_str(&said(LogFormat::Json, LogLevel::Info)).unwrap();
        assert_eq!(value["message"], "certificate expires");
        assert_eq!(value["level"], "WARN");
        assert_eq!(value.get("target"), None);
        assert_eq!(said(LogFormat::Text, LogLevel::Error), "");
        assert_eq!(said(LogFormat::Json, LogLevel::Debug).lines().count(), 2);
    }
}
