#!/bin/sh
# Prints the section of a version in CHANGELOG.md, without its heading; fails where there is none.
#
#   deploy/notes.sh VERSION
set -eu
cd "$(dirname "$0")/.."
awk -v version="$1" '
    /^## / { inside = ($2 == version || $2 == "[" version "]"); next }
    inside { text = text $0 "\n"; found = 1 }
    END { gsub(/^\n+|\n+$/, "", text); if (!found || text == "") exit 1; print text }
' CHANGELOG.md
