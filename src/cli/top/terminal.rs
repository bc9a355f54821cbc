//! The terminal while `top` has it. It is as before when this is dropped.

use std::io::{self, IsTerminal, Read, Write, stdin, stdout};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::screen::Key;
use crate::telemetry::{Colours, colours_of};

/// The other screen, without a cursor; and back.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";

pub(super) struct Terminal {
    before: Termios,
}

impl Terminal {
    pub fn enter() -> io::Result<Self> {
        if !stdout().is_terminal() {
            return Err(io::Error::other("standard output is none"));
        }
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Flush, &raw)?;
        let terminal = Self { before };
        write(ENTER)?;
        Ok(terminal)
    }

    /// Columns and lines.
    pub fn size(&self) -> (usize, usize) {
        let known = tcgetwinsize(stdout()).ok();
        let known = known.map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        known.filter(|(w, h)| *w > 0 && *h > 0).unwrap_or((80, 24))
    }

    pub fn colours(&self) -> Colours {
        colours_of(&stdout())
    }

    /// In one piece, where the terminal knows how (`?2026`).
    pub fn show(&mut self, lines: &[String]) -> io::Result<()> {
        let mut text = String::from("\x1b[?2026h\x1b[H");
        for (i, line) in lines.iter().enumerate() {
            text.push_str(if i > 0 { "\r\n" } else { "" });
            text.push_str(line);
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J\x1b[?2026l");
        write(text.as_bytes())
    }

    /// What was pressed, within this time.
    pub fn keys(&self, within: Duration) -> io::Result<Vec<Key>> {
        let stdin = stdin();
        let limit = Timespec::try_from(within).map_err(io::Error::other)?;
        let mut pressed = [PollFd::new(&stdin, PollFlags::IN)];
        match poll(&mut pressed, Some(&limit)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut bytes = [0; 64];
        match stdin.lock().read(&mut bytes)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => Ok(keys(&bytes[..n])),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Whoever has taken the terminal away needs neither.
        let _shown = write(LEAVE);
        let _set = tcsetattr(stdin(), OptionalActions::Flush, &self.before);
    }
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush())
}

/// Several may come at once, such as those of a key that is held down.
fn keys(bytes: &[u8]) -> Vec<Key> {
    let text = String::from_utf8_lossy(bytes);
    let mut rest = text.chars().peekable();
    let mut keys = Vec::new();
    while let Some(c) = rest.next() {
        keys.extend(match c {
            '\x1b' if rest.peek().is_some() => match sequence(&mut rest) {
                Some('A') => Some(Key::Up),
                Some('B') => Some(Key::Down),
                // Of a key that means nothing here.
                _ => None,
            },
            '\r' | '\n' => Some(Key::Enter),
            '\x1b' => Some(Key::Escape),
            '\x08' | '\x7f' => Some(Key::Back),
            '\x03' => Some(Key::Interrupt),
            c => Some(Key::Char(c)),
        });
    }
    keys
}

/// The last character of what follows an escape: `[`, parameters and a letter, or `O` and a letter.
fn sequence(rest: &mut impl Iterator<Item = char>) -> Option<char> {
    match rest.next()? {
        '[' => rest.find(|c| ('@'..='~').contains(c)),
        'O' => rest.next(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_come_at_once_are_told_apart() {
        assert_eq!(
            keys("\x1b[B\x1bOB\x1b[Ak\u{fc}\x7f\r".as_bytes()),
            [
                Key::Down,
                Key::Down,
                Key::Up,
                Key::Char('k'),
                Key::Char('\u{fc}'),
                Key::Back,
                Key::Enter
            ]
        );
        // Page down, a function key, and Alt with a letter.
        assert_eq!(keys(b"\x1b[6~\x1b[15;2~\x1bkq"), [Key::Char('q')]);
        assert_eq!(keys(b"\x1b"), [Key::Escape]);
    }
}
