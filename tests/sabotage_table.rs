//! `SABOTAGE.md` says of each deliberate defect which test catches it: the table has a row for each and for nothing else, and
//! the tests that it names are there.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed, as it should")]

use std::collections::BTreeMap;
use std::path::Path;

use tidelog_storage::Sabotage;

/// Rows of the table: the defect, and the rest of its cells.
fn rows(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let table = text.split("## Caught").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split_once("` | ").unwrap()).map(|(name, rest)| (name, rest.split('|').collect())).collect()
}

/// What stands in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[test]
fn each_deliberate_defect_has_a_row_and_each_row_a_defect() {
    let table = rows(include_str!("SABOTAGE.md"));
    let known: Vec<&str> = Sabotage::ALL.iter().map(|one| one.name()).collect();
    let missing: Vec<_> = known.iter().filter(|name| !table.contains_key(*name)).collect();
    let unknown: Vec<_> = table.keys().filter(|name| !known.contains(name)).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "without a row: {missing:?}; without a defect: {unknown:?}");
}

#[test]
fn the_tests_that_the_table_names_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, cells) in rows(include_str!("SABOTAGE.md")) {
        let tests: Vec<&str> = quoted(cells[1]).collect();
        assert!(!tests.is_empty(), "no test catches {name}");
        for test in tests {
            let (file, test) = test.split_once(": ").unwrap_or_else(|| panic!("'{test}' in the row of {name}"));
            let text = std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            // Trials that are made for a list of defects have names that end in the defect's.
            let test = test.strip_suffix(name).unwrap_or(test);
            assert!(text.contains(test), "{file} has no {test}, which the row of {name} names");
        }
        let cycles: u64 = cells[2].trim().parse().unwrap_or_else(|_| panic!("cycles of {name}: {}", cells[2]));
        assert!((1..=20).contains(&cycles), "{name} takes {cycles} cycles");
    }
}
