//! How many texts fit into one answer: the page and its JSON have a largest size, whatever the Secrets say.
//!
//! Users who may edit Secrets decide how long their texts are. What an answer has no room for is left out where the most
//! is: each namespace has an equal share, and what one does not need is left to the others. Pure.

use std::collections::HashMap;
use std::io;

use cert_renew_core::secret::used_by::UsedBy;
use cert_renew_core::verdict::Verdict;

/// Most bytes of error texts in one answer: the page stays readable. A common problem writes the same text on every
/// Secret; at 900 bytes each, the first few hundred are complete.
const MOST_ERRORS: usize = 256 * 1024;
/// Most bytes of the certificates in one answer, as JSON. The command reads no answer of more than 12 MiB; the head of
/// the report needs some, too.
const MOST: usize = 11 * 1024 * 1024;
/// Longest text of an error where short ones are asked for, in characters.
const SHORT: usize = 300;
/// Replaces the texts of errors beyond the limit.
pub(super) const CUT: &str = "too many errors to show all texts: filter for this Secret";

/// Leaves of each certificate the first error, and no more of it than a line of a table shows.
pub(super) fn shorten(rows: &mut [Verdict]) {
    for row in rows {
        row.problems.truncate(1);
        for text in row.last_error.iter_mut().chain(&mut row.problems) {
            if let Some((end, _)) = text.char_indices().nth(SHORT) {
                *text = format!("{}…", &text[..end]).into();
            }
        }
    }
}

/// Drops the rows beyond `most`, the last of each namespace that has more than its share.
pub(super) fn fewer(rows: &mut Vec<Verdict>, most: usize) {
    if rows.len() > most {
        retain(rows, |rows| shares(rows, &vec![1; rows.len()], most));
    }
}

/// Keeps the rows that `which` says.
fn retain(rows: &mut Vec<Verdict>, which: impl FnOnce(&[Verdict]) -> Vec<bool>) {
    let mut kept = which(rows).into_iter();
    rows.retain(|_| kept.next().unwrap_or_default());
}

/// Cuts the texts for which there is no room, and drops rows if there is none for what is left of them.
pub(super) fn fit(rows: &mut Vec<Verdict>, briefly: bool) {
    // Short texts make no page: the command prints a line for each.
    let errors = if briefly { MOST } else { MOST_ERRORS };
    fit_into(rows, errors, MOST);
}

fn fit_into(rows: &mut Vec<Verdict>, most_errors: usize, most: usize) {
    let errors: Vec<usize> = rows.iter().map(errors).collect();
    let kept = shares(rows, &errors, most_errors);
    for (row, _) in rows.iter_mut().zip(kept).filter(|(_, kept)| !kept) {
        cut_errors(row);
    }
    let sizes: Vec<usize> = rows.iter().map(size).collect();
    if sizes.iter().sum::<usize>() <= most {
        return;
    }
    let bare: Vec<usize> = rows.iter().map(|row| size(&bare(row))).collect();
    let costs = sizes.iter().zip(&bare);
    let costs: Vec<usize> = costs
        .map(|(size, bare)| size.saturating_sub(*bare))
        .collect();
    let room = most.saturating_sub(bare.iter().sum());
    let kept = shares(rows, &costs, room);
    for (row, _) in rows.iter_mut().zip(kept).filter(|(_, kept)| !kept) {
        *row = self::bare(row);
    }
    let sizes: Vec<usize> = rows.iter().map(size).collect();
    if sizes.iter().sum::<usize>() > most {
        retain(rows, |rows| shares(rows, &sizes, most));
    }
}

/// Which rows keep what they cost, so that all kept together cost at most `room`. A namespace that costs less than its
/// share keeps all; one that costs more keeps its first rows.
fn shares(rows: &[Verdict], costs: &[usize], room: usize) -> Vec<bool> {
    let mut totals: HashMap<&str, usize> = HashMap::new();
    for (row, cost) in rows.iter().zip(costs) {
        *totals.entry(&row.namespace).or_default() += cost;
    }
    let mut ascending: Vec<usize> = totals.values().copied().collect();
    ascending.sort_unstable();
    let (mut left, mut share) = (room, usize::MAX);
    for (number, total) in ascending.iter().enumerate() {
        let equal = left / (ascending.len() - number);
        if *total > equal {
            share = equal;
            break;
        }
        left -= total;
    }
    let mut spent: HashMap<&str, usize> = HashMap::new();
    let mut kept = Vec::with_capacity(rows.len());
    for (row, cost) in rows.iter().zip(costs) {
        let spent = spent.entry(&row.namespace).or_default();
        *spent += cost;
        kept.push(*cost == 0 || *spent <= share);
    }
    kept
}

fn errors(row: &Verdict) -> usize {
    let texts = row.last_error.iter().chain(&row.problems);
    texts.map(|text| text.len()).sum()
}

fn cut_errors(row: &mut Verdict) {
    row.last_error = row.last_error.take().map(|_| CUT.into());
    row.problems = row.problems.drain(..).take(1).map(|_| CUT.into()).collect();
}

/// The row without what its owner decides the length of.
fn bare(row: &Verdict) -> Verdict {
    let mut bare = row.clone();
    cut_errors(&mut bare);
    Verdict {
        used_by: bare.used_by.map(UsedBy::counted),
        account: None,
        next: None,
        ..bare
    }
}

/// Its bytes as JSON.
fn size(row: &Verdict) -> usize {
    let mut counter = Counter(0);
    // Writing plain data into a counter cannot fail.
    let _ = serde_json::to_writer(&mut counter, row);
    counter.0 + ",".len()
}

struct Counter(usize);

impl io::Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use cert_renew_core::testing::entries;

    use super::super::rows::copy;
    use super::*;

    fn row(namespace: &str, error: &str) -> Verdict {
        let row = copy(entries::NOW, &entries::index(), &|_| 0).remove(0);
        Verdict {
            namespace: namespace.into(),
            last_error: Some(error.into()),
            problems: Vec::new(),
            ..row
        }
    }

    fn rows(counts: &[(&str, usize)], error: &str) -> Vec<Verdict> {
        let rows = counts.iter();
        let rows = rows.flat_map(|(namespace, count)| vec![row(namespace, error); *count]);
        rows.collect()
    }

    fn complete(rows: &[Verdict], namespace: &str) -> usize {
        let of = rows.iter().filter(|row| *row.namespace == *namespace);
        of.filter(|row| row.last_error.as_deref() != Some(CUT))
            .count()
    }

    #[test]
    fn a_namespace_full_of_errors_takes_none_of_the_room_of_others() {
        let error = "x".repeat(900);
        let mut all = rows(&[("aaa", 1_000), ("shop-a", 40), ("shop-b", 40)], &error);
        fit(&mut all, false);
        assert_eq!(
            (complete(&all, "shop-a"), complete(&all, "shop-b")),
            (40, 40)
        );
        let bytes: usize = all.iter().map(errors).sum();
        assert!(bytes < MOST_ERRORS + 1_000 * CUT.len(), "{bytes}");
        let hostile = complete(&all, "aaa");
        assert!((200..300).contains(&hostile), "{hostile}");
    }

    #[test]
    fn a_namespace_with_very_many_takes_no_rows_of_others() {
        let mut all = rows(&[("aaa", 3_000), ("shop", 40)], "no");
        fewer(&mut all, 1_000);
        let of = |namespace: &str| {
            all.iter()
                .filter(|row| *row.namespace == *namespace)
                .count()
        };
        assert_eq!((of("aaa"), of("shop")), (960, 40));
    }

    #[test]
    fn a_namespace_with_very_many_bytes_takes_no_rows_of_others() {
        let mut all = rows(&[("aaa", 960), ("shop", 40)], "no");
        fit_into(&mut all, MOST_ERRORS, 300_000);
        let of = |namespace: &str| {
            all.iter()
                .filter(|row| *row.namespace == *namespace)
                .count()
        };
        assert_eq!(of("shop"), 40);
        let bytes = serde_json::to_string(&all).unwrap().len();
        assert!(bytes <= 300_000 && of("aaa") > 200, "{bytes}");
    }

    #[test]
    fn what_fits_is_left_as_it_is() {
        let error = "x".repeat(900);
        let before = rows(&[("aaa", 100), ("shop", 100)], &error);
        let mut after = before.clone();
        fit(&mut after, false);
        assert_eq!(after, before);
    }

    #[test]
    fn an_answer_has_a_largest_size_whatever_the_secrets_say() {
        let long = "w".repeat(253);
        let forged = format!(" deployment/{long}").repeat(64);
        let forged: UsedBy = format!("2023-11-14T22:13:20Z{forged} +9").parse().unwrap();
        assert!(forged.clone().shortened().to_string().len() < 1_100);
        let mut all = rows(&[("aaa", 9_900), ("shop", 100)], "no");
        for row in &mut all {
            row.used_by = Some(forged.clone().shortened());
        }
        fit(&mut all, false);
        assert_eq!(all.len(), 10_000, "none is left out");
        let bytes = serde_json::to_string(&all).unwrap().len();
        assert!(bytes <= MOST, "{bytes}");
        let named = |namespace: &str| {
            let of = all.iter().filter(|row| *row.namespace == *namespace);
            of.filter(|row| !row.used_by.as_ref().unwrap().workloads.is_empty())
                .count()
        };
        assert_eq!(named("shop"), 100);
        let counted = all[9_899].used_by.as_ref().unwrap();
        assert_eq!(counted.in_words(), "73 workloads");
        fit_into(&mut all, MOST_ERRORS, 100_000);
        let bytes = serde_json::to_string(&all).unwrap().len();
        assert!(bytes <= 100_000 && bytes > 90_000, "{bytes}");
    }

    #[test]
    fn a_table_gets_short_texts() {
        let mut all = rows(&[("shop", 1)], &"ü".repeat(900));
        all[0].problems = vec!["one".into(), "two".into()];
        shorten(&mut all);
        let error = all[0].last_error.as_deref().unwrap();
        assert_eq!((error.chars().count(), error.ends_with('…')), (301, true));
        assert_eq!(all[0].problems, [Box::<str>::from("one")]);
    }
}
