//! Orders to a running QEMU, over its machine protocol.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

/// A connection that has been greeted.
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects to QEMU's socket; nothing while QEMU does not listen yet.
    pub fn connect(socket: &Path) -> Option<Self> {
        let mut qmp = Self { stream: BufReader::new(UnixStream::connect(socket).ok()?) };
        qmp.stream.read_line(&mut String::new()).ok()?;
        qmp.order("qmp_capabilities", &json!({}));
        Some(qmp)
    }

    /// Gives an order and answers what it returned. Events on the way are passed over.
    pub fn order(&mut self, name: &str, arguments: &Value) -> Value {
        let order = json!({"execute": name, "arguments": arguments});
        writeln!(self.stream.get_mut(), "{order}").unwrap();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).unwrap();
            let answer: Value = serde_json::from_str(&line)
                .unwrap_or_else(|error| panic!("QEMU answered {name} with {line:?}: {error}"));
            assert!(answer["error"].is_null(), "QEMU refused {name}: {answer}");
            if !answer["return"].is_null() {
                return answer["return"].clone();
            }
        }
    }
}
