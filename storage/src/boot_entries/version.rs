//! The order of versions (UAPI.10, Version Format Specification).

use core::cmp::Ordering;

fn run(text: &[u8], fits: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    let len = text.iter().position(|byte| !fits(byte)).unwrap_or(text.len());
    text.split_at_checked(len).unwrap_or((text, &[]))
}

/// Which version is the older one.
pub fn compare(a: &str, b: &str) -> Ordering {
    let counts = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    'next: loop {
        a = run(a, |byte| !counts(byte)).1;
        b = run(b, |byte| !counts(byte)).1;
        for (sign, is_more_than_nothing) in [(b'~', false), (b'-', true), (b'^', true), (b'.', true)] {
            if is_more_than_nothing && (a.is_empty() || b.is_empty()) {
                return a.len().cmp(&b.len());
            }
            match (a.strip_prefix(&[sign]), b.strip_prefix(&[sign])) {
                (Some(after_a), Some(after_b)) => {
                    (a, b) = (after_a, after_b);
                    continue 'next;
                }
                (Some(_), None) => return Ordering::Less,
                (None, Some(_)) => return Ordering::Greater,
                (None, None) => {}
            }
        }
        let is_number =
            a.first().is_some_and(u8::is_ascii_digit) || b.first().is_some_and(u8::is_ascii_digit);
        let (own_a, own_b);
        let order = if is_number {
            (own_a, a) = run(a, u8::is_ascii_digit);
            (own_b, b) = run(b, u8::is_ascii_digit);
            let (own_a, own_b) = (run(own_a, |byte| *byte == b'0').1, run(own_b, |byte| *byte == b'0').1);
            own_a.len().cmp(&own_b.len()).then(own_a.cmp(own_b))
        } else {
            (own_a, a) = run(a, u8::is_ascii_alphabetic);
            (own_b, b) = run(b, u8::is_ascii_alphabetic);
            own_a.cmp(own_b)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_the_specification_says() {
        let ascending = [
            "~1",
            "",
            "1~rc1",
            "1",
            "1-1",
            "1^1",
            "1.1",
            "6.1.0-9-amd64",
            "6.1.0-18-amd64",
            "6.10",
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-a1",
            "123-3",
            "123^patch1",
            "123.1",
            "123a",
            "124-1",
        ];
        for (index, older) in ascending.iter().enumerate() {
            assert_eq!(compare(older, older), Ordering::Equal, "{older}");
            for newer in ascending.iter().skip(index + 1) {
                assert_eq!(compare(older, newer), Ordering::Less, "{older} and {newer}");
                assert_eq!(compare(newer, older), Ordering::Greater, "{older} and {newer}");
            }
        }
        assert_eq!(compare("1_2", "12"), compare("1", "12"));
        assert_eq!(compare("01", "1"), Ordering::Equal);
    }
}
