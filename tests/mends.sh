#!/bin/bash
# Takes the mends of faults that only time shows back, one by one, on a copy of the tree, and has the simulation find each
# fault.
#
#   tests/mends.sh [NAME…]
#
# The scenes are in tests/simulation/src/scenes.rs, the patches in tests/simulation/mends/. A fault that is not found within
# two minutes fails, and so does a patch that does not apply any more. Everything but our own crates is compiled once for
# the tree and its copy.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
profile=${MENDS_PROFILE:-simulate}
target=${CARGO_TARGET_DIR:-$PWD/target}
built=$target/${profile/#dev/debug}/simulation
copy=$target/mends/tree

"$cargo" build --quiet --profile "$profile" -p simulation
mkdir -p "$target/mends"
cp "$built" "$target/mends/simulation"
program=$target/mends/simulation

# With the time of now: Cargo has to see that a patch of the run before is not in it.
rm -rf "$copy"
mkdir -p "$copy"
git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -c -T - | tar -xm -C "$copy"

# git would take a tree within another for a part of it, and leave out what is outside.
apply() {
  GIT_CEILING_DIRECTORIES=$target/mends git -C "$copy" apply "$@"
}

count=0 missed=()
while IFS=$'\t' read -r name words what; do
  if (($# > 0)) && [[ " $* " != *" $name "* ]]; then continue; fi
  count=$((count + 1))
  patch=$PWD/tests/simulation/mends/$name.patch
  if ! apply "$patch"; then
    echo "$name: the patch does not apply"
    missed+=("$name")
    continue
  fi
  if ! CARGO_TARGET_DIR=$target \
    "$cargo" build --quiet --profile "$profile" -p simulation --manifest-path "$copy/Cargo.toml" </dev/null 2>"$target/mends/$name.log"; then
    echo "$name: it does not compile without the mend: $target/mends/$name.log"
    missed+=("$name")
    apply -R "$patch"
    continue
  fi
  began=$SECONDS
  told=$(timeout 120 "$built" scene "$name" </dev/null 2>&1 || true)
  seconds=$((SECONDS - began))
  found=$(awk -v words="$words" '/^VIOLATED/ && index($0, words) { print; exit }' <<<"$told")
  if [ -n "$found" ]; then
    echo "$name: $what: found in $seconds s: $found"
  else
    echo "$name: $what: not found in $seconds s"
    tail -n 20 <<<"$told"
    missed+=("$name")
  fi
  apply -R "$patch"
done < <("$program" list-mends)

if (($# == 0)); then
  "$program" note simulation.mends "$count"
  "$program" note simulation.mends_missed "${#missed[@]}"
fi
echo "$count mends taken back, ${#missed[@]} not found: ${missed[*]-}"
((count > 0 && ${#missed[@]} == 0))
