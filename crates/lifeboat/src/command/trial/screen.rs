//! What a trial shows: a live screen on a terminal, else a line a change, for people or for programs.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use lifeboat_api::{Event, Protection, Server};
use lifeboat_model::{ByteCount, DiskNumber, Milliseconds, PointId};
use serde_json::{Value, json};

use super::Layout;
use crate::command::server::{copy_line, state_word};
use crate::table::{print_line, time};

/// On a terminal: home, and clear from there. Drawn over, not scrolled.
const CLEAR: &str = "\x1b[H\x1b[J";
const BAR_CELLS: u64 = 40;
/// Events that a screen has room for, and that are told of the time before the trial began to look.
const EVENTS_SHOWN: u32 = 3;
/// Events that are told of one look when there is no screen.
const EVENTS_TOLD: u32 = 1_000;
/// Without a screen, progress is told so often.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// How a trial is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A picture that is drawn anew.
    Live,
    /// A line a change.
    Lines,
    /// A JSON document a change.
    Json,
}

pub struct Screen {
    form: Form,
    head: Vec<String>,
    said: Vec<String>,
    point: Option<PointId>,
    state: Option<Protection>,
    told: Option<Instant>,
    copies: BTreeMap<DiskNumber, String>,
    event: Option<u64>,
}

fn event_line(event: &Event) -> String {
    let line = format!("{} UTC  {}: {} {}", time(event.time), event.severity, event.message, event.next_step);
    line.trim_end().to_owned()
}

impl Screen {
    pub fn new(form: Form, layout: &Layout) -> Self {
        let head = vec![
            format!("Lifeboat trial in {}", layout.dir.display()),
            format!(
                "vault https://{}   process server https://{}   logs {}",
                layout.vault_listen,
                layout.process_server_listen,
                layout.dir.join("logs").display()
            ),
            "In another terminal: lifeboat status · point list · volume open   Ctrl-C stops".to_owned(),
        ];
        let screen = Self::with_head(form, head);
        for line in &screen.head {
            screen.print(line, || json!({"note": line}));
        }
        screen
    }

    fn with_head(form: Form, head: Vec<String>) -> Self {
        Self {
            form,
            head,
            said: Vec::new(),
            point: None,
            state: None,
            told: None,
            copies: BTreeMap::new(),
            event: None,
        }
    }

    /// Something that is no state: kept on the screen, or printed.
    pub fn say(&mut self, sentence: &str) {
        if self.said.last().is_none_or(|last| last != sentence) {
            self.print(sentence, || json!({"note": sentence}));
            self.said.push(sentence.to_owned());
            if self.said.len() > 3 {
                self.said.remove(0);
            }
        }
    }

    /// Something that is waited for while there is no state to show.
    pub fn wait(&self, sentence: &str) {
        if self.form == Form::Live {
            self.head.iter().for_each(|line| print_line(line));
            print_line("");
            print_line(sentence);
        } else {
            self.print(sentence, || json!({"note": sentence}));
        }
    }

    /// How many events are wanted for a look.
    pub const fn events_wanted(&self) -> u32 {
        if matches!(self.form, Form::Live) { EVENTS_SHOWN } else { EVENTS_TOLD }
    }

    pub fn show(&mut self, server: &Server, events: &[Event]) {
        if self.form == Form::Live { self.draw(server, events) } else { self.tell(server, events) }
    }

    /// Leaves the last picture where it is: what is said from now on is printed below it.
    pub fn leave(&mut self) {
        if self.form == Form::Live {
            print_line("");
            self.form = Form::Lines;
        }
    }

    /// Prints a line, in the form that was asked for. A live screen shows what it has to show by itself.
    fn print(&self, line: &str, json: impl FnOnce() -> Value) {
        match self.form {
            Form::Live => {}
            Form::Lines => print_line(line),
            Form::Json => print_line(&json().to_string()),
        }
    }

    fn draw(&self, server: &Server, events: &[Event]) {
        let mut lines = self.head.clone();
        lines.push(String::new());
        let reason = server.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let why = server.capture.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        lines.push(format!(
            "{}   {}{reason}   capture {}{why}",
            server.name,
            state_word(server.state),
            server.capture.mode
        ));
        lines.push(String::new());
        for disk in &server.disks {
            lines.push(format!(
                "disk {}  {:<16} {:>10}  {:>10} waiting",
                disk.number,
                disk.path,
                ByteCount(disk.bytes).to_string(),
                ByteCount(disk.waiting_bytes).to_string()
            ));
            if let Some(copy) = &disk.copy {
                let cells = copy.done_bytes.saturating_mul(BAR_CELLS) / copy.total_bytes.max(1);
                let bar: String = (0..BAR_CELLS).map(|cell| if cell < cells { '█' } else { '░' }).collect();
                lines.push(format!("        {bar} {}", copy_line(copy)));
            }
            if let Some(trouble) = &disk.trouble {
                lines.push(format!("        {trouble}"));
            }
        }
        lines.push(String::new());
        if let Some(rpo) = server.rpo.as_ref().filter(|_| server.state != Protection::FailedOver) {
            lines.push(format!("RPO now {:>8}   gated by {}", Milliseconds(rpo.age_ms), rpo.gated_by));
            lines.push(format!(
                "        capture {} · queue {} · transfer {} · commit {}",
                Milliseconds(rpo.capture_ms),
                Milliseconds(rpo.queue_ms),
                Milliseconds(rpo.transfer_ms),
                Milliseconds(rpo.commit_ms)
            ));
        }
        if let Some(point) = &server.newest_point {
            lines.push(format!(
                "newest  {} UTC  {}-consistent  {}  window {} us",
                time(point.time),
                point.kind,
                point.id,
                point.window_us
            ));
        }
        lines.push(format!(
            "points  {}   stored {}   in the spool {}",
            server.points,
            ByteCount(server.stored_bytes),
            ByteCount(server.spool_bytes)
        ));
        lines.push(String::new());
        lines.extend(events.iter().map(event_line));
        lines.extend(self.said.iter().cloned());
        let mut out = io::stdout().lock();
        let _ = write!(out, "{CLEAR}{}\r\n", lines.join("\r\n"));
        let _ = out.flush();
    }

    /// Those of `events`, newest first, that were not told yet; the oldest first.
    fn not_told<'a>(&mut self, events: &'a [Event]) -> Vec<&'a Event> {
        let shown = if self.event.is_none() { EVENTS_SHOWN as usize } else { usize::MAX };
        let newest = self.event.unwrap_or_default();
        let mut fresh: Vec<_> = events.iter().take(shown).filter(|event| event.number > newest).collect();
        fresh.reverse();
        // From then on everything is new, also when there is nothing yet.
        self.event = Some(fresh.last().map_or(newest, |event| event.number));
        fresh
    }

    fn tell(&mut self, server: &Server, events: &[Event]) {
        for event in self.not_told(events) {
            self.print(&event_line(event), || json!({"event": event}));
        }
        if self.state != Some(server.state) {
            self.state = Some(server.state);
            let reason = server.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            let line = format!("{}: {}{reason}", server.name, state_word(server.state));
            self.print(&line, || json!({"state": server.state, "reason": server.reason}));
        }
        let newest = server.newest_point.as_ref();
        if let Some(point) = newest.filter(|point| self.point != Some(point.id)) {
            self.point = Some(point.id);
            let rpo = server
                .rpo
                .as_ref()
                .map_or_else(String::new, |rpo| format!(", committed after {}", Milliseconds(rpo.age_ms)));
            let line = format!(
                "{} UTC  point {} {} {}{rpo}",
                time(point.time),
                point.id,
                point.kind,
                ByteCount(point.bytes)
            );
            self.print(&line, || json!({"point": point}));
        }
        if self.told.is_none_or(|told| told.elapsed() >= PROGRESS_EVERY) {
            self.told = Some(Instant::now());
            for disk in &server.disks {
                let Some(copy) = &disk.copy else { continue };
                let line = format!("disk {}: {}", disk.number, copy_line(copy));
                if self.copies.get(&disk.number) != Some(&line) {
                    self.print(&line, || json!({"disk": disk.number, "copy": copy}));
                    self.copies.insert(disk.number, line);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: u64) -> Event {
        Event {
            number,
            time: jiff::Timestamp::UNIX_EPOCH,
            severity: "warning".into(),
            code: "spool_warning".into(),
            server: None,
            disk: None,
            message: String::new(),
            next_step: String::new(),
            acknowledged: None,
            acknowledged_by: None,
        }
    }

    #[test]
    fn every_event_is_told_once_however_many_come_within_a_look() {
        let mut screen = Screen::with_head(Form::Lines, Vec::new());
        let mut told = |events: std::ops::RangeInclusive<u64>| -> Vec<u64> {
            let events: Vec<_> = events.rev().map(event).collect();
            screen.not_told(&events).iter().map(|event| event.number).collect()
        };
        assert_eq!(told(1..=9), [7, 8, 9], "only the last ones of before");
        assert_eq!(told(1..=9), [0; 0]);
        assert_eq!(told(1..=29), (10..=29).collect::<Vec<_>>());

        let mut screen = Screen::with_head(Form::Lines, Vec::new());
        assert!(screen.not_told(&[]).is_empty());
        let events: Vec<_> = (1..=9).rev().map(event).collect();
        assert_eq!(screen.not_told(&events).len(), 9, "all of them came after the first look");
    }
}
