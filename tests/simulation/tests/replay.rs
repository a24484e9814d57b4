//! A seed is one story, to the byte: without that no failure could be looked at twice.

use std::process::Command;

/// The story of a seed, by a process of its own.
fn story(seed: u64) -> Vec<u8> {
    let told = Command::new(env!("CARGO_BIN_EXE_simulation"))
        .args(["story", &seed.to_string()])
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
        let (first, second) = (story(seed), story(seed));
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
