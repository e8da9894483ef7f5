//! A drill's report as a page for a browser: one file, nothing loaded from elsewhere.

use std::fmt::Write as _;

use lifeboat_api::{DrillReport, Job, JobStep, PreviousDrill};
use lifeboat_model::Milliseconds;

use crate::table::time;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#1b1f24;background:#fff}h1{font-size:1.6rem}.up{color:#116329}.down{color:#a40e26}table{border-collapse:\
collapse;width:100%}td,th{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #d0d7de;vertical-align:top}\
th{width:14rem}.took{width:6rem;white-space:nowrap}ul{margin:0;padding-left:1.2rem}\
pre{background:#0d1117;color:#e6edf3;padding:1rem;overflow:auto;font-size:.85rem}img{max-width:100%;border:1px \
solid #d0d7de}";

/// The page.
pub fn page(job: &Job, drill: &DrillReport) -> String {
    let (class, verdict) = if drill.up { ("up", "came up") } else { ("down", "did NOT come up") };
    let name = escape(&drill.server_name);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Drill of {name}</title>\
         <style>{STYLE}</style></head><body>\n<h1>Drill of {name}: <span class=\"{class}\">{verdict}</span></h1>\n\
         <p>{}</p>\n<table>\n",
        escape(&drill.verdict)
    );
    let point = format!("{} of {} UTC, {}-consistent", drill.point, time(drill.point_time), drill.point_kind);
    row(&mut page, "Recovery point", &point);
    row(&mut page, "Its age when the drill began", &Milliseconds(drill.point_age_ms).to_string());
    row(&mut page, "Begun", &format!("{} UTC", time(job.begun)));
    row(&mut page, "Ran on", &drill.compute);
    if let Some(ms) = drill.first_instruction_ms {
        row(&mut page, "First instruction after", &Milliseconds(ms).to_string());
    }
    if let Some(ms) = drill.boot_ms {
        row(&mut page, "Up after", &Milliseconds(ms).to_string());
    }
    if let Some(before) = &drill.previous {
        row(&mut page, "The drill before", &format!("{} UTC: {}", time(before.begun), end_of(before)));
        let differences =
            drill.differences.iter().map(|difference| format!("<li>{}</li>", escape(difference)));
        let differences = match differences.collect::<String>() {
            none if none.is_empty() => "nothing that matters".to_owned(),
            items => format!("<ul>{items}</ul>"),
        };
        let _ = writeln!(page, "<tr><th>Differs from it in</th><td>{differences}</td></tr>");
    }
    if let Some(note) = &drill.note {
        row(&mut page, "Note", note);
    }
    page.push_str("</table>\n<h2>Probes</h2>\n<table>\n");
    for probe in &drill.probes {
        let after = probe.after_ms.map(|ms| format!(" after {}", Milliseconds(ms))).unwrap_or_default();
        let why = probe.message.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let found = if probe.passed { format!("passed{after}") } else { format!("not passed{why}") };
        row(&mut page, &probe.probe, &found);
    }
    page.push_str("</table>\n<h2>Steps</h2>\n<table>\n");
    for step in &job.steps {
        let took = took(step).map(|took| took.to_string()).unwrap_or_default();
        let message = step.message.as_deref().unwrap_or_default();
        let [name, took, message] = [&step.name, &took, message].map(escape);
        let _ = writeln!(page, "<tr><th>{name}</th><td class=\"took\">{took}</td><td>{message}</td></tr>");
    }
    page.push_str("</table>\n");
    if let Some(image) = &drill.screenshot {
        // Base64 has no characters that mean anything in HTML; whatever else comes does not get in.
        if image.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte)) {
            let _ =
                writeln!(page, "<h2>Screen</h2>\n<img alt=\"Screen\" src=\"data:image/png;base64,{image}\">");
        }
    }
    let _ = write!(
        page,
        "<h2>Serial console, its end</h2>\n<pre>{}</pre>\n</body></html>\n",
        escape(&without_sequences(&drill.console))
    );
    page
}

/// What a terminal shows of a text as far as it is letters: without colours, titles and movements of the cursor
/// (ECMA-48).
fn without_sequences(text: &str) -> String {
    const ESCAPE: char = '\u{1b}';
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        if character != ESCAPE {
            plain.push(character);
            continue;
        }
        match rest.next() {
            // A control sequence, up to its final byte.
            Some('[') => drop(rest.find(|character| matches!(character, '@'..='~' | '\n'))),
            Some(']' | 'P' | '_' | '^' | 'X') => pass_command(&mut rest),
            // Which characters are meant: one more tells.
            Some('(' | ')' | '*' | '+' | '#' | ' ' | '%') => drop(rest.next()),
            _ => {}
        }
    }
    plain
}

/// Passes a command to the terminal, up to BEL or ESC \. One that a reset cut off goes on to its line's end.
fn pass_command(text: &mut std::str::Chars<'_>) {
    let end = text.find(|character| matches!(*character, '\u{7}' | '\n' | '\u{1b}'));
    if end == Some('\u{1b}') {
        text.next();
    }
}

/// How the drill before went.
pub fn end_of(before: &PreviousDrill) -> String {
    before.boot_ms.map_or_else(|| "did not come up".to_owned(), |ms| format!("up after {}", Milliseconds(ms)))
}

/// How long a step took, once it has ended.
pub fn took(step: &JobStep) -> Option<Milliseconds> {
    let (begun, ended) = step.begun.zip(step.ended)?;
    Some(Milliseconds(u64::try_from(ended.duration_since(begun).as_millis()).unwrap_or(0)))
}

fn row(page: &mut String, head: &str, text: &str) {
    let _ = writeln!(page, "<tr><th>{}</th><td>{}</td></tr>", escape(head), escape(text));
}

/// Text from a guest or an operator as text of a page, without control characters.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(character),
            control if control.is_control() => {}
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_and_commands_to_the_terminal_are_no_text() {
        for (written, shown) in [
            (
                "[\u{1b}[0;32m  OK  \u{1b}[0m] Started \u{1b}[0;1;39mssh\u{1b}[0m.\n",
                "[  OK  ] Started ssh.\n",
            ),
            ("\u{1b}]0;root@db1: ~\u{7}root@db1:~# \u{1b}[K", "root@db1:~# "),
            ("\u{1b}]0;title\u{1b}\\after", "after"),
            ("\u{1b}(B\u{1b}7a\u{1b}8b", "ab"),
            ("\u{1b}]0;cut off\nnext line", "next line"),
            ("the end\u{1b}[", "the end"),
            ("the end\u{1b}", "the end"),
        ] {
            assert_eq!(without_sequences(written), shown);
        }
    }

    #[test]
    fn what_a_guest_writes_stays_text() {
        assert_eq!(escape("<script>\u{1b}[31m&\"\n"), "&lt;script&gt;[31m&amp;&quot;\n");
    }
}
