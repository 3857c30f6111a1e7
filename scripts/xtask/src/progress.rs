//! What the user sees while something long goes on.

use std::time::Duration;

/// Says in one line, on standard error, what starts now.
pub fn say(line: &str) {
    eprintln!("peerboot: {line}");
}

/// A time as people read it: `3.2 s`, `4 min 07 s`.
#[must_use]
pub fn seconds(time: Duration) -> String {
    let whole = time.as_secs();
    if whole < 100 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_times_are_minutes() {
        assert_eq!(seconds(Duration::from_millis(3240)), "3.2 s");
        assert_eq!(seconds(Duration::from_secs(247)), "4 min 07 s");
    }
}
