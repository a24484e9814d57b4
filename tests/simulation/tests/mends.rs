//! The patches that take mends back are for the code of now, and each has its scene.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use simulation::scenes;

#[test]
fn each_mend_that_is_taken_back_has_a_scene_and_a_patch_that_applies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let patches = fs::read_dir(root.join("mends")).expect("a folder of patches");
    let name = |path: &Path| path.file_stem().map(|it| it.to_string_lossy().into_owned());
    let patches: BTreeSet<String> = patches
        .filter_map(|entry| name(&entry.expect("a patch").path()))
        .collect();
    let found = scenes::ALL.iter().filter(|scene| !scene.words.is_empty());
    let found: BTreeSet<String> = found.map(|scene| scene.name.to_owned()).collect();
    assert_eq!(patches, found);
    for name in &patches {
        let applied = Command::new("git")
            .args(["apply", "--check"])
            .arg(root.join(format!("mends/{name}.patch")))
            .current_dir(root.join("../.."))
            .output()
            .expect("git is there");
        let said = String::from_utf8_lossy(&applied.stderr);
        assert!(applied.status.success(), "{name}: {said}");
    }
}
