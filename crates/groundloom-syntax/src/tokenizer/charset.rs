//! Sets of characters, as a bracket expression or a literal names them.

/// A set of Unicode scalar values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CharSet {
    ascii: u128,
    /// Inclusive, ascending, beyond ASCII.
    ranges: Vec<(u32, u32)>,
    negated: bool,
}

impl CharSet {
    pub(super) fn single(c: char) -> Self {
        Self::from_ranges([(c as u32, c as u32)], false)
    }

    /// Builds a set from inclusive ranges in any order.
    pub(super) fn from_ranges(ranges: impl IntoIterator<Item = (u32, u32)>, negated: bool) -> Self {
        let mut set = Self { negated, ..Self::default() };
        let mut rest = Vec::new();
        for (start, end) in ranges {
            for c in start..=end.min(0x7f) {
                set.ascii |= 1 << c;
            }
            if end > 0x7f {
                rest.push((start.max(0x80), end));
            }
        }
        rest.sort_unstable();
        for (start, end) in rest {
            match set.ranges.last_mut() {
                Some(last) if start <= last.1.saturating_add(1) => last.1 = last.1.max(end),
                _ => set.ranges.push((start, end)),
            }
        }
        set
    }

    pub(super) fn contains(&self, c: char) -> bool {
        let c = c as u32;
        let inside = if c < 0x80 {
            self.ascii >> c & 1 == 1
        } else {
            let after = self.ranges.partition_point(|&(start, _)| start <= c);
            after > 0 && self.ranges.get(after - 1).is_some_and(|&(_, end)| c <= end)
        };
        inside != self.negated
    }

    /// Whether any character beyond ASCII is a member.
    pub(super) fn reaches_beyond_ascii(&self) -> bool {
        self.negated || !self.ranges.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members() {
        let set = CharSet::from_ranges([(0x61, 0x7a), (0x4e00, 0x62ff), (0x70, 0x90)], false);
        for c in ['a', 'z', '\u{80}', '\u{90}', '一', '\u{62ff}'] {
            assert!(set.contains(c), "{c:?}");
        }
        for c in ['`', 'A', '\u{91}', '\u{6300}'] {
            assert!(!set.contains(c), "{c:?}");
        }
        assert!(!CharSet::from_ranges([(0x61, 0x61)], true).contains('a'));
        assert!(CharSet::from_ranges([(0x61, 0x61)], true).contains('é'));
    }
}
