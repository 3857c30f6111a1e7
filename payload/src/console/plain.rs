//! Text without what moves a terminal's cursor.

/// The bytes without control characters but tabs and ends of lines, and without escape sequences (ECMA-48): what a guest wrote for
/// a terminal of its own, fit to stand among others' words.
pub fn plain(bytes: impl Iterator<Item = u8>) -> impl Iterator<Item = u8> {
    let mut state = State::Text;
    bytes.filter(move |byte| {
        let shown = state == State::Text && matches!(byte, b'\t' | b'\n' | b' '..=b'~' | 0x80..);
        state = match (state, *byte) {
            (_, 0x1b) => State::Escape,
            (State::Escape, b'[') => State::Sequence,
            // What stands between a sequence's introducer and its last byte.
            (State::Escape, 0x20..=0x2f) => State::Escape,
            (State::Sequence, 0x20..=0x3f) => State::Sequence,
            _ => State::Text,
        };
        shown
    })
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Text,
    /// After ESC.
    Escape,
    /// After ESC and `[`.
    Sequence,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_is_left() {
        let shown = |text: &str| String::from_utf8(plain(text.bytes()).collect()).unwrap();
        assert_eq!(shown("~ # \x1b[6n\x1b[1;32mGrüße\x1b[0m\t中\x07\x7f"), "~ # Grüße\t中");
        assert_eq!(shown("a\x1b(Bb\x1bMc\x1b\x1b[2Jd\r\n"), "abcd\n");
    }
}
