//! Pages that have a page of their tests beside them: docs/failures.md and docs/threat-model.md.

/// Each row of docs/failures.md and of docs/threat-model.md has its test, and no test a row that is gone.
#[test]
fn each_failure_and_each_threat_has_its_test() {
    let rows = |page: &'static str, headings: &[&str]| -> Vec<&'static str> {
        let (mut found, mut is_inside) = (Vec::new(), false);
        for line in page.lines() {
            let cell = line
                .strip_prefix("| ")
                .and_then(|row| row.split(" | ").next());
            match cell {
                Some(cell) if headings.contains(&cell) => is_inside = true,
                Some(cell) if is_inside => found.push(cell),
                _ => is_inside &= line.starts_with('|'),
            }
        }
        found
    };
    for (page, tests, headings, least) in [
        (
            include_str!("../docs/failures.md"),
            include_str!("../docs/failures-tests.md"),
            &["what happens", "what is changed"][..],
            150,
        ),
        (
            include_str!("../docs/threat-model.md"),
            include_str!("../docs/threat-model-tests.md"),
            &["wants"][..],
            60,
        ),
    ] {
        let all = rows(page, headings);
        assert!(all.len() > least, "{all:#?}");
        assert_eq!(rows(tests, headings), all);
    }
}
