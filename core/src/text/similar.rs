//! What a misspelt word was meant to be: for messages only, nothing is decided by it.

/// Most letters that may differ.
const MOST: usize = 2;
/// Longest word that is compared, in bytes: the comparison takes the product of both lengths.
const LONGEST: usize = 64;

/// The known word that is nearest to `word`, if it is near enough to be meant. Upper and lower case count as the same.
#[must_use]
pub fn meant<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.trim().to_ascii_lowercase();
    if word.is_empty() || word.len() > LONGEST {
        return None;
    }
    let most = MOST.min(word.chars().count() / 3);
    let near = known.into_iter().filter(|it| it.len() <= LONGEST);
    let near = near.map(|it| (distance(&word, it), it));
    let near = near.filter(|(distance, _)| *distance <= most);
    near.min_by_key(|(distance, _)| *distance).map(|(_, it)| it)
}

/// The end of a message about a word that is not known: which one it may have been meant to be, or nothing.
#[must_use]
pub fn question<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let meant = meant(word, known).map(|it| format!("; did you mean {it}?"));
    meant.unwrap_or_default()
}

/// The number of letters to add, remove, replace, or swap with their neighbour, that make one word of the other.
#[must_use]
pub fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    let mut last = None;
    for (i, a) in one.chars().enumerate() {
        let mut next = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let replaced = row[j] + usize::from(a != *b);
            let mut least = replaced.min(row[j + 1] + 1).min(next[j] + 1);
            if j > 0 && last == Some(*b) && other[j - 1] == a {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        (before, row, last) = (row, next, Some(a));
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_that_differ_are_counted() {
        for (one, other, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("issuer", "isuer", 1),
            ("issuer", "isseur", 1),
            ("letsencrypt", "letsencript", 1),
            ("abc", "xyz", 3),
        ] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
            assert_eq!(distance(other, one), expected, "{other} {one}");
        }
    }

    #[test]
    fn a_word_that_is_near_is_meant_and_a_short_one_is_not_guessed() {
        let known = ["letsencrypt", "internal", "le"];
        for (word, expected) in [
            ("LetsEncrypt", Some("letsencrypt")),
            ("letsencyrpt", Some("letsencrypt")),
            ("intern", Some("internal")),
            ("ab", None),
            ("zerossl", None),
            ("", None),
        ] {
            assert_eq!(meant(word, known), expected, "{word}");
        }
        assert_eq!(meant(&"a".repeat(1 << 20), known), None);
    }
}
