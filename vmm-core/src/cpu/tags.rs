//! Address-space tags: what AMD-V calls ASID and VT-x VPID. Translations cached under one tag serve no other,
//! so a virtual CPU keeps its own across exits.

use core::sync::atomic::{AtomicU64, Ordering};

/// Generations are unique over all cores: a virtual CPU that comes back from another core, where it changed
/// its page tables, gets a new tag and with it none of what this core had cached.
static GENERATIONS: AtomicU64 = AtomicU64::new(1);

/// A tag and the generation it was given in.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tag {
    /// 1 and up; 0 is the host's and stands for none.
    pub number: u32,
    generation: u64,
}

/// What must be forgotten before a tag is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// Nothing: the virtual CPU used this tag here before.
    Nothing,
    /// What is cached under this tag, and for this virtual CPU's nested tables.
    Tag,
    /// Everything: the tags began anew.
    Everything,
}

/// One core's tags: given out in turn; when they run out, all translations go and a new generation begins.
pub struct Tags {
    next: u32,
    count: u32,
    generation: u64,
}

impl Tags {
    /// Tags 1 to `count` - 1; at least tag 1.
    pub fn new(count: u32) -> Self {
        Self { next: 1, count: count.max(2), generation: GENERATIONS.fetch_add(1, Ordering::Relaxed) }
    }

    /// How many there are, the host's included.
    #[cfg(feature = "amd-v")]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The tag to use now in place of `held`, and what must be flushed first.
    pub fn assign(&mut self, held: Tag) -> (Tag, Flush) {
        if held.number != 0 && held.generation == self.generation {
            return (held, Flush::Nothing);
        }
        if self.next >= self.count {
            self.generation = GENERATIONS.fetch_add(1, Ordering::Relaxed);
            self.next = 1;
        }
        let number = self.next;
        self.next = self.next.saturating_add(1);
        // The very first generation starts on whatever firmware left behind.
        let flush = if number == 1 { Flush::Everything } else { Flush::Tag };
        (Tag { number, generation: self.generation }, flush)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_unique_within_a_generation() {
        let mut tags = Tags::new(3);
        let (one, flush) = tags.assign(Tag::default());
        assert_eq!(flush, Flush::Everything);
        let (two, flush) = tags.assign(Tag::default());
        assert_eq!(flush, Flush::Tag);
        assert_ne!(one.number, two.number);
        assert_eq!(tags.assign(one), (one, Flush::Nothing), "what is held stays");
        let (three, flush) = tags.assign(Tag::default());
        assert_eq!((three.number, flush), (1, Flush::Everything), "the tags ran out");
        let (again, _) = tags.assign(one);
        assert_ne!(again, one, "an old generation's tag is not used again");
    }

    #[test]
    fn a_tag_of_another_core_is_no_tag_here() {
        let (mut here, mut there) = (Tags::new(8), Tags::new(8));
        let (held, _) = there.assign(Tag::default());
        here.assign(Tag::default());
        let (own, flush) = here.assign(held);
        assert_eq!((own.number, flush), (2, Flush::Tag));
        let (back, flush) = there.assign(own);
        assert_ne!(back, held, "its old tag may translate what it has since changed");
        assert_eq!(flush, Flush::Tag);
    }
}
