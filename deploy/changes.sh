#!/bin/sh
# Prints what a version has changed as Artifact Hub's annotation artifacthub.io/changes has it: of each entry of CHANGELOG.md
# its kind and its first sentence. Fails where the CHANGELOG has no section of it.
#
#   deploy/changes.sh VERSION
set -eu
cd "$(dirname "$0")/.."

version=${1:?}
notes=$(deploy/notes.sh "$version")
printf '%s\n' "$notes" | awk -v q="'" -v at="](https://github.com/cert-renew/cert-renew/blob/v$version/docs/" '
    /^### / { kind = tolower($2); next }
    /^- / {
        text = substr($0, 3)
        if (match(text, /[.] /)) text = substr(text, 1, RSTART)
        gsub(/\]\(docs\//, at, text)
        gsub(q, q q, text)
        printf "- kind: %s\n  description: %s%s%s\n", kind, q, text, q
    }
'
