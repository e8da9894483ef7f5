//! What a trial shows: a live screen on a terminal, else a line a change.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use lifeboat_api::{Event, Protection, Server};
use lifeboat_model::{ByteCount, DiskNumber, PointId};

use super::Layout;
use crate::command::server::{copy_line, state_word};
use crate::table::{milliseconds, print_line, time};

/// On a terminal: home, and clear from there. Drawn over, not scrolled.
const CLEAR: &str = "\x1b[H\x1b[J";
const BAR_CELLS: u64 = 40;
/// Without a screen, progress is told so often.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

pub struct Screen {
    live: bool,
    head: Vec<String>,
    said: Vec<String>,
    point: Option<PointId>,
    state: Option<Protection>,
    told: Option<Instant>,
    copies: BTreeMap<DiskNumber, String>,
    event: Option<u64>,
}

fn event_line(event: &Event) -> String {
    format!("{} UTC  {}: {} {}", time(event.time), event.severity, event.message, event.next_step)
}

impl Screen {
    pub fn new(live: bool, layout: &Layout) -> Self {
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
        if !live {
            head.iter().for_each(|line| print_line(line));
        }
        Self {
            live,
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
            if !self.live {
                print_line(sentence);
            }
            self.said.push(sentence.to_owned());
            if self.said.len() > 3 {
                self.said.remove(0);
            }
        }
    }

    /// Something that is waited for while there is no state to show.
    pub fn wait(&self, sentence: &str) {
        if self.live {
            self.head.iter().for_each(|line| print_line(line));
            print_line("");
        }
        print_line(sentence);
    }

    pub fn show(&mut self, server: &Server, events: &[Event]) {
        if self.live { self.draw(server, events) } else { self.tell(server, events) }
    }

    /// Leaves the last picture where it is.
    pub fn leave(&self) {
        if self.live {
            print_line("");
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
        if let Some(rpo) = &server.rpo {
            lines.push(format!("RPO now {:>8}   gated by {}", milliseconds(rpo.age_ms), rpo.gated_by));
            lines.push(format!(
                "        capture {} · queue {} · transfer {} · commit {}",
                milliseconds(rpo.capture_ms),
                milliseconds(rpo.queue_ms),
                milliseconds(rpo.transfer_ms),
                milliseconds(rpo.commit_ms)
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

    fn tell(&mut self, server: &Server, events: &[Event]) {
        let newest = self.event.unwrap_or_default();
        for event in events.iter().rev().filter(|event| event.number > newest) {
            print_line(&event_line(event));
            self.event = Some(event.number);
        }
        if self.state != Some(server.state) {
            self.state = Some(server.state);
            let reason = server.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            print_line(&format!("{}: {}{reason}", server.name, state_word(server.state)));
        }
        let newest = server.newest_point.as_ref();
        if let Some(point) = newest.filter(|point| self.point != Some(point.id)) {
            self.point = Some(point.id);
            let rpo = server
                .rpo
                .as_ref()
                .map_or_else(String::new, |rpo| format!(", committed after {}", milliseconds(rpo.age_ms)));
            print_line(&format!(
                "{} UTC  point {} {} {}{rpo}",
                time(point.time),
                point.id,
                point.kind,
                ByteCount(point.bytes)
            ));
        }
        if self.told.is_none_or(|told| told.elapsed() >= PROGRESS_EVERY) {
            self.told = Some(Instant::now());
            for disk in &server.disks {
                let Some(copy) = &disk.copy else { continue };
                let line = format!("disk {}: {}", disk.number, copy_line(copy));
                if self.copies.get(&disk.number) != Some(&line) {
                    print_line(&line);
                    self.copies.insert(disk.number, line);
                }
            }
        }
    }
}
