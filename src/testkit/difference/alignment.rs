//! What was expected and what was found, put beside each other by a longest common subsequence. Pure.

use std::collections::{HashMap, VecDeque};

/// Values compared from the first difference on, on either side: the table has the square of it in numbers of four bytes.
const COMPARED_MAX: usize = 1_000;

/// One line: numbers are places in the two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    /// As expected.
    Same { expected: usize, found: usize },
    /// Something else stands in its place.
    Changed { expected: usize, found: usize },
    /// Expected, and not there; or elsewhere.
    Missing { expected: usize, found_at: Option<usize> },
    /// There, and not expected; or elsewhere.
    Unexpected { found: usize, expected_at: Option<usize> },
}

/// Both lists as rows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Alignment {
    pub(super) rows: Vec<Row>,
    /// What was found behind all that was expected, and is in no row.
    pub(super) behind: usize,
    /// Expected values that were not compared since there are too many.
    pub(super) not_compared: usize,
}

impl Row {
    pub(super) const fn is_same(self) -> bool {
        matches!(self, Self::Same { .. })
    }

    pub(super) const fn found(self) -> Option<usize> {
        match self {
            Self::Same { found, .. } | Self::Changed { found, .. } | Self::Unexpected { found, .. } => Some(found),
            Self::Missing { .. } => None,
        }
    }
}

/// Aligns two lists of values, equal ones having equal numbers.
///
/// What is found behind the last thing expected is nobody's fault. `is_copy` says of each value found whether it stands
/// elsewhere as well: such a one takes nobody's place.
pub(super) fn align(expected: &[u32], found: &[u32], is_copy: impl Fn(usize) -> bool) -> Alignment {
    let equal = expected.iter().zip(found).take_while(|(expected, found)| expected == found).count();
    let mut rows: Vec<Row> = (0..equal).map(|place| Row::Same { expected: place, found: place }).collect();

    let expected_end = expected.len().min(equal + COMPARED_MAX);
    let found_end = found.len().min(equal + COMPARED_MAX);
    let left: Vec<(usize, u32)> = numbered(expected, equal, expected_end);
    let right: Vec<(usize, u32)> = numbered(found, equal, found_end);
    let pairs = common_subsequence(&left, &right);

    let moves = Moves::find(&left, &right, &pairs);
    let (mut missing, mut unexpected): (VecDeque<usize>, VecDeque<usize>) = (VecDeque::new(), VecDeque::new());
    let (mut at_left, mut at_right) = (equal, equal);
    for (expected, found) in pairs {
        missing.extend(at_left..expected);
        unexpected.extend(at_right..found);
        run(&mut rows, &mut missing, &mut unexpected, &moves, &is_copy);
        // Whatever is left of a run between two equal rows was not expected there.
        rows.extend(unexpected.drain(..).map(|found| moves.unexpected(found)));
        rows.push(Row::Same { expected, found });
        (at_left, at_right) = (expected + 1, found + 1);
    }
    let cut = expected_end < expected.len() || found_end < found.len();
    if cut && at_left > equal {
        // The partners of these may stand just behind what is compared.
        return Alignment { rows, behind: found.len() - at_right, not_compared: expected.len() - at_left };
    }
    missing.extend(at_left..expected_end);
    unexpected.extend(at_right..found_end);
    run(&mut rows, &mut missing, &mut unexpected, &moves, &is_copy);
    let mut behind = found.len() - found_end;
    for found in unexpected {
        match moves.unexpected(found) {
            row @ Row::Unexpected { expected_at: Some(_), .. } => rows.push(row),
            _ => behind += 1,
        }
    }
    Alignment { rows, behind, not_compared: expected.len() - expected_end }
}

fn numbered(values: &[u32], from: usize, to: usize) -> Vec<(usize, u32)> {
    values.iter().copied().enumerate().take(to).skip(from).collect()
}

/// The places of one longest common subsequence; of several, the one that begins earliest.
fn common_subsequence(left: &[(usize, u32)], right: &[(usize, u32)]) -> Vec<(usize, usize)> {
    // lengths[i * width + j]: how long the longest one of left[i..] and right[j..] is.
    let width = right.len() + 1;
    let mut lengths = vec![0_u32; (left.len() + 1) * width];
    let length = |lengths: &[u32], i: usize, j: usize| lengths.get(i * width + j).copied().unwrap_or(0);
    for (i, (_, expected)) in left.iter().enumerate().rev() {
        for (j, (_, found)) in right.iter().enumerate().rev() {
            let longest = if expected == found {
                length(&lengths, i + 1, j + 1) + 1
            } else {
                length(&lengths, i + 1, j).max(length(&lengths, i, j + 1))
            };
            if let Some(place) = lengths.get_mut(i * width + j) {
                *place = longest;
            }
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut pairs = Vec::new();
    while let (Some((expected_at, expected)), Some((found_at, found))) = (left.get(i), right.get(j)) {
        if expected == found {
            pairs.push((*expected_at, *found_at));
            (i, j) = (i + 1, j + 1);
        } else if length(&lengths, i + 1, j) >= length(&lengths, i, j + 1) {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

/// Values that are missing in one place and not expected in another.
struct Moves {
    found_at: HashMap<usize, usize>,
    expected_at: HashMap<usize, usize>,
}

impl Moves {
    fn find(left: &[(usize, u32)], right: &[(usize, u32)], pairs: &[(usize, usize)]) -> Self {
        let mut missing: HashMap<u32, VecDeque<usize>> = HashMap::new();
        let mut paired = pairs.iter().map(|(expected, _)| *expected).peekable();
        for (place, value) in left {
            if paired.next_if_eq(place).is_none() {
                missing.entry(*value).or_default().push_back(*place);
            }
        }
        let mut moves = Self { found_at: HashMap::new(), expected_at: HashMap::new() };
        let mut paired = pairs.iter().map(|(_, found)| *found).peekable();
        for (place, value) in right {
            if paired.next_if_eq(place).is_none()
                && let Some(expected) = missing.get_mut(value).and_then(VecDeque::pop_front)
            {
                moves.found_at.insert(expected, *place);
                moves.expected_at.insert(*place, expected);
            }
        }
        moves
    }

    fn missing(&self, expected: usize) -> Row {
        Row::Missing { expected, found_at: self.found_at.get(&expected).copied() }
    }

    fn unexpected(&self, found: usize) -> Row {
        Row::Unexpected { found, expected_at: self.expected_at.get(&found).copied() }
    }
}

/// The rows between two that are the same, as long as something is missing.
fn run(
    rows: &mut Vec<Row>,
    missing: &mut VecDeque<usize>,
    unexpected: &mut VecDeque<usize>,
    moves: &Moves,
    is_copy: impl Fn(usize) -> bool,
) {
    while let Some(expected) = missing.pop_front() {
        if moves.found_at.contains_key(&expected) {
            rows.push(moves.missing(expected));
            continue;
        }
        // What belongs elsewhere takes nobody's place.
        while let Some(found) =
            unexpected.pop_front_if(|found| moves.expected_at.contains_key(found) || is_copy(*found))
        {
            rows.push(moves.unexpected(found));
        }
        match unexpected.pop_front() {
            Some(found) => rows.push(Row::Changed { expected, found }),
            None => rows.push(moves.missing(expected)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter a value; of what was found, a capital one is a copy.
    fn rows(expected: &str, found: &str) -> (String, usize) {
        let numbers = |text: &str| -> Vec<u32> { text.to_lowercase().chars().map(u32::from).collect() };
        let copies: Vec<bool> = found.chars().map(char::is_uppercase).collect();
        let alignment = align(&numbers(expected), &numbers(found), |place| copies[place]);
        let (expected, found): (Vec<char>, Vec<char>) = (expected.chars().collect(), found.chars().collect());
        let shown: Vec<String> = alignment
            .rows
            .iter()
            .map(|row| match *row {
                Row::Same { expected: at, .. } => format!("{}", expected[at]),
                Row::Changed { expected: at, found: place } => format!("{}!{}", expected[at], found[place]),
                Row::Missing { expected: at, found_at: None } => format!("-{}", expected[at]),
                Row::Missing { expected: at, found_at: Some(place) } => format!("-{}>{place}", expected[at]),
                Row::Unexpected { found: place, expected_at: None } => format!("+{}", found[place]),
                Row::Unexpected { found: place, expected_at: Some(at) } => format!("+{}<{at}", found[place]),
            })
            .collect();
        (shown.join(" "), alignment.behind)
    }

    #[test]
    fn each_kind_of_difference_has_its_row() {
        assert_eq!(rows("abc", "abc"), ("a b c".into(), 0));
        assert_eq!(rows("abc", "ac"), ("a -b c".into(), 0));
        assert_eq!(rows("abc", "axbc"), ("a +x b c".into(), 0));
        assert_eq!(rows("abc", "abBc"), ("a b +B c".into(), 0));
        assert_eq!(rows("abc", "axc"), ("a b!x c".into(), 0));
        assert_eq!(rows("abcd", "acbd"), ("a -b>2 c +b<1 d".into(), 0));
        assert_eq!(rows("abc", "cba"), ("-a>2 -b>1 c +b<1 +a<0".into(), 0));
    }

    #[test]
    fn what_comes_behind_is_counted_and_not_shown() {
        assert_eq!(rows("ab", "abxyz"), ("a b".into(), 3));
        assert_eq!(rows("ab", "acxyz"), ("a b!c".into(), 3));
        // Unless it is what is missing.
        assert_eq!(rows("ab", "ba"), ("-a>1 b +a<0".into(), 0));
        assert_eq!(rows("ab", "bxa"), ("-a>2 b +a<0".into(), 1));
    }

    #[test]
    fn nothing_is_found_or_expected() {
        assert_eq!(rows("ab", ""), ("-a -b".into(), 0));
        assert_eq!(rows("", "ab"), (String::new(), 2));
        assert_eq!(rows("", ""), (String::new(), 0));
    }

    #[test]
    fn a_copy_takes_nobodys_place() {
        assert_eq!(rows("abc", "aAc"), ("a +A -b c".into(), 0));
        assert_eq!(rows("abc", "abB"), ("a b +B -c".into(), 0));
        assert_eq!(rows("abc", "abBx"), ("a b +B c!x".into(), 0));
    }

    #[test]
    fn long_lists_are_compared_from_the_first_difference_on() {
        let expected: Vec<u32> = (0..10_000).collect();
        let different = |found: &[u32]| {
            let alignment = align(&expected, found, |_| false);
            let rows: Vec<Row> = alignment.rows.into_iter().filter(|row| !row.is_same()).collect();
            (rows, alignment.not_compared)
        };
        let mut found = expected.clone();
        found.remove(5_000);
        assert_eq!(different(&found), (vec![Row::Missing { expected: 5_000, found_at: None }], 4_000));
        let mut found = expected.clone();
        found.insert(5_000, 77_777);
        assert_eq!(different(&found), (vec![Row::Unexpected { found: 5_000, expected_at: None }], 4_001));
        assert_eq!(different(&expected[..9_000]).0.len(), 1_000);
    }
}
