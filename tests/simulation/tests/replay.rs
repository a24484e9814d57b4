//! A seed is one story, to the byte: without that no failure could be looked at twice.

use std::process::Command;
use std::thread;

/// The story of a seed, by a process of its own.
fn story(seed: u64) -> Vec<u8> {
    told(&["story", &seed.to_string()])
}

fn told(arguments: &[&str]) -> Vec<u8> {
    let told = Command::new(env!("CARGO_BIN_EXE_simulation"))
        .args(arguments)
        .output()
        .expect("the program was just built");
    assert!(
        told.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&told.stderr)
    );
    told.stdout
}

#[test]
fn the_same_seed_is_the_same_story() {
    for seed in [2, 10] {
        let beside = thread::spawn(move || story(seed));
        let (first, second) = (story(seed), beside.join().expect("both are told"));
        let lines = |text: &[u8]| {
            text.split(|byte| *byte == b'\n')
                .map(<[u8]>::to_vec)
                .collect::<Vec<_>>()
        };
        let (first_lines, second_lines) = (lines(&first), lines(&second));
        let differs =
            { first_lines.iter().zip(&second_lines) }.position(|(first, second)| first != second);
        if let Some(at) = differs {
            let text = |lines: &[Vec<u8>]| String::from_utf8_lossy(&lines[at]).into_owned();
            panic!(
                "seed {seed}, line {at}:\n{}\n{}",
                text(&first_lines),
                text(&second_lines)
            );
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
        assert!(first.len() > 1_000, "seed {seed}: nothing happens");
    }
}

/// What the shrinker rests on: a run is its parts, and with fewer of them less happens.
#[test]
fn a_run_of_all_its_parts_is_the_same_run() {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the story is text");
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/parts");
    let parts = text(told(&["parts", "2", "-"]));
    let parts: Vec<&str> = { parts.lines() }
        .filter_map(|line| line.strip_prefix("PART "))
        .collect();
    assert!(parts.contains(&"secret 0"), "{parts:?}");
    std::fs::write(file, parts.join("\n")).expect("a file is written");
    let (first, second) = (text(story(2)), text(told(&["story", "2", file])));
    // The plan, which is the first line, says that it has a list.
    let lines = first.lines().skip(1).zip(second.lines().skip(1));
    let differs = { lines }.find(|(first, second)| first != second);
    // The summary at the end has a digest of all lines.
    if let Some((first, second)) = differs.filter(|(first, _)| !first.starts_with('{')) {
        panic!("{first}\n{second}");
    }
    std::fs::write(file, "secret 0").expect("a file is written");
    let alone = text(told(&["story", "2", file]));
    let issues = |text: &str| text.matches(" issues #").count();
    assert!(issues(&alone) <= issues(&first), "{alone}");
}
