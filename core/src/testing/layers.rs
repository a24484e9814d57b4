//! The plan of the house, read from the sources: which folder of a crate may use which, no cycles between files, and how
//! much a folder or a file may hold.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The folders and files of this crate, each using only those before it.
const CORE: &[&str] = &[
    "text",
    "time",
    "certificate",
    "secret",
    "schedule",
    "config",
    "index",
    "rollout",
    "assess",
    "verdict",
    "declaration",
    "election",
];
/// The folders and files of the operator, likewise.
const OPERATOR: &[&str] = &[
    "telemetry",
    "process",
    "net",
    "acme",
    "cluster",
    "solver",
    "context",
    "renewal",
    "rollout",
    "declared",
    "leader",
    "cli",
];

/// A module, by the names on its path: `rollout::plan`.
type Module = String;
type Imports = BTreeMap<Module, BTreeSet<Module>>;

/// The modules of the same crate that each module imports, apart from its tests.
fn imports(root: &Path) -> Imports {
    let mut sources = BTreeMap::new();
    read(root, "", &mut sources);
    let modules: BTreeSet<&str> = sources.keys().map(String::as_str).collect();
    let of = |(module, text): (&Module, &String)| {
        let paths = paths(module, text);
        let known = paths.iter().filter_map(|path| nearest(&modules, path));
        let others =
            known.filter(|it| it != module && !is_within(it, module) && !is_within(module, it));
        (module.clone(), others.collect())
    };
    sources.iter().map(of).collect()
}

/// The files of a folder by module, without tests, comments and blanks.
fn read(folder: &Path, module: &str, into: &mut BTreeMap<Module, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let child = match module {
            _ if name == "mod" => module.to_owned(),
            "" => name.to_owned(),
            _ => format!("{module}::{name}"),
        };
        if path.is_dir() {
            read(&path, &child, into);
        } else if path.extension().is_some_and(|it| it == "rs") && !is_aside(&child) {
            let text = fs::read_to_string(&path).unwrap();
            let product = text.split("#[cfg(test)]\n").next().unwrap_or_default();
            let lines = product
                .lines()
                .map(|line| line.split("//").next().unwrap_or_default());
            into.insert(
                child,
                lines
                    .flat_map(str::split_whitespace)
                    .collect::<Vec<_>>()
                    .join(" "),
            );
        }
    }
}

/// The roots of the crates, and modules that are compiled for tests only.
fn is_aside(module: &str) -> bool {
    let of_tests = ["tests", "testing", "fuzz", "layers"];
    ["", "lib", "main"].contains(&module) || module.split("::").any(|it| of_tests.contains(&it))
}

/// The paths that begin with `crate` or `crate`, with groups expanded.
fn paths(module: &str, text: &str) -> Vec<Module> {
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut found = Vec::new();
    for (start, base) in [("crate::", ""), ("super::", parent)] {
        for (at, _) in text.match_indices(start) {
            let is_whole =
                !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            if is_whole {
                expand(base, &text[at + start.len()..], &mut found);
            }
        }
    }
    found
}

/// Adds the paths at the beginning of a text, below `base`; returns the rest.
fn expand<'a>(base: &str, text: &'a str, found: &mut Vec<Module>) -> &'a str {
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = expand(base, rest.trim_start_matches([',', ' ']), found);
            rest = rest.trim_start_matches(|c: char| !",}".contains(c));
            match rest.trim_start_matches([',', ' ']).strip_prefix('}') {
                Some(rest) => return rest,
                None if rest.is_empty() => return rest,
                None => {}
            }
        }
    }
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let path = match (base, name) {
        (_, "" | "self") => base.to_owned(),
        ("", _) => name.to_owned(),
        _ => format!("{base}::{name}"),
    };
    match rest.strip_prefix("::") {
        Some(rest) => expand(&path, rest, found),
        None => {
            found.push(path);
            rest
        }
    }
}

/// The module that a path leads into.
fn nearest(modules: &BTreeSet<&str>, path: &str) -> Option<Module> {
    let mut path = path;
    while !modules.contains(path) {
        path = path.rsplit_once("::")?.0;
    }
    Some(path.to_owned())
}

fn is_within(module: &str, folder: &str) -> bool {
    module
        .strip_prefix(folder)
        .is_some_and(|rest| rest.starts_with("::"))
}

/// The modules on a cycle: removes those that import nothing or are not imported, until none is left to remove.
fn circles(mut imports: Imports) -> Imports {
    loop {
        let open: BTreeSet<Module> = imports
            .iter()
            .filter(|(_, uses)| !uses.is_empty())
            .map(|(module, _)| module.clone())
            .collect();
        let used: BTreeSet<Module> = imports.values().flatten().cloned().collect();
        let before = imports.len();
        imports.retain(|module, _| open.contains(module) && used.contains(module));
        let left: BTreeSet<Module> = imports.keys().cloned().collect();
        for uses in imports.values_mut() {
            uses.retain(|module| left.contains(module));
        }
        if imports.len() == before {
            return imports;
        }
    }
}

/// The imports of the crate with these sources, relative to this one.
fn of_crate(sources: &str) -> Imports {
    imports(&Path::new(env!("CARGO_MANIFEST_DIR")).join(sources))
}

#[test]
fn no_folder_uses_one_above_it() {
    for (sources, layers) in [("src", CORE), ("../src", OPERATOR)] {
        for (module, uses) in of_crate(sources) {
            let folder = |module: &str| module.split("::").next().unwrap_or_default().to_owned();
            let layer = |folder: &str| {
                let found = layers.iter().position(|it| *it == folder);
                found.unwrap_or_else(|| panic!("{folder} has no place among the layers"))
            };
            for used in uses {
                let (from, to) = (folder(&module), folder(&used));
                let is_up = layer(&from) < layer(&to);
                assert!(!is_up, "{module} uses {used}, which stands above it");
            }
        }
    }
}

#[test]
fn no_files_go_in_circles() {
    for sources in ["src", "../src"] {
        let imports = of_crate(sources);
        assert!(imports.len() > 20, "{sources}");
        assert_eq!(circles(imports), Imports::new(), "{sources}");
    }
}

/// The files below a folder, and the folders, this one included, each with how many entries it has.
fn tree(root: &Path) -> (Vec<PathBuf>, Vec<(PathBuf, usize)>) {
    let (mut open, mut files, mut folders) = (vec![root.to_owned()], Vec::new(), Vec::new());
    while let Some(folder) = open.pop() {
        let mut count = 0;
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            count += usize::from(!is_left_out(&path));
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                files.push(path);
            }
        }
        folders.push((folder, count));
    }
    (files, folders)
}

/// The file that stands for its folder, or for the crate, and the folders that only tests have.
fn is_left_out(path: &Path) -> bool {
    let left_out = ["mod.rs", "lib.rs", "main.rs", "testing", "fuzz"];
    left_out.contains(&path.file_name().unwrap().to_str().unwrap())
}

/// A place of the repository.
fn of_repository(place: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(place)
}

/// Most entries of a folder: every file and folder directly in it, tests and data too, except `mod.rs`, `lib.rs` and
/// `main.rs`, which are the folder itself. `a.rs` and `a/` are two. What only tests have, `testing` and `fuzz`, does not
/// count beside what ships.
const MOST_ENTRIES: usize = 12;

#[test]
fn no_folder_has_more_than_a_dozen_entries() {
    for sources in ["core/src", "src"] {
        let (_, folders) = tree(&of_repository(sources));
        assert!(folders.len() > 10, "{sources}");
        for (folder, count) in folders {
            let folder = folder.display();
            assert!(count <= MOST_ENTRIES, "{folder} has {count} entries");
        }
    }
}

/// Most lines of code in a file; blank lines and comments do not count, and tests in the file do.
const MOST_LINES: usize = 500;

#[test]
fn no_file_is_longer_than_a_reader_keeps_in_mind() {
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
    for (place, least) in [("core", 60), ("src", 100), ("tests", 100), ("benches", 10)] {
        let (files, _) = tree(&of_repository(place));
        assert!(files.len() > least, "{place}");
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let lines = text.lines().filter(is_code).count();
            let file = file.display();
            assert!(lines <= MOST_LINES, "{file} has {lines} lines of code");
        }
    }
}

/// Tests the search itself: it finds a cycle, and leaves out what leads into or out of it.
#[test]
fn a_circle_is_found() {
    let text = "use crate::b::{self, c::{D, E as F}, g}; use super::h; crate::i::j(k)";
    let all = ["b", "b::c::D", "b::c::E", "b::g", "i::j", "a::h"];
    assert_eq!(paths("a::x", text), all);
    let of = |pairs: &[(&str, &[&str])]| -> Imports {
        let owned = |uses: &[&str]| uses.iter().map(|it| (*it).to_owned()).collect();
        pairs
            .iter()
            .map(|(module, uses)| ((*module).to_owned(), owned(uses)))
            .collect()
    };
    let all = of(&[
        ("a", &["b"]),
        ("b", &["c", "e"]),
        ("c", &["d"]),
        ("d", &["b"]),
        ("e", &[]),
    ]);
    assert_eq!(
        circles(all),
        of(&[("b", &["c"]), ("c", &["d"]), ("d", &["b"])])
    );
}
