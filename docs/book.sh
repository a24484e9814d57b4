#!/bin/sh
# Builds the documents as a book, in target/book, and looks at each link of it.
#
# The pages are read as they are; SUMMARY.md has their order. Links that lead out of docs/ go to the repository.
set -eu
cd "$(dirname "$0")/.."

repository=https://github.com/cert-renew/cert-renew/blob/main
mdbook=$(tests/tools.sh mdbook)
source=target/book-source
rm -rf "$source" target/book
mkdir -p "$source"
cp -R docs "$source/src"
mv "$source/src/book.toml" "$source/"
rm "$source/src/book.sh"

# From docs/x.md a link out of docs/ begins with ../, from docs/start/x.md with ../../.
find "$source/src" -name '*.md' | while read -r page; do
    case ${page#"$source/src/"} in
    */*) out='\.\./\.\./' ;;
    *) out='\.\./' ;;
    esac
    sed -i "s#](${out}#]($repository/#g" "$page"
done

"$mdbook" build --dest-dir "$PWD/target/book" "$source"
exec python3 docs/links.py target/book
