"""Looks at each link of a built book: the page and the anchor have to be there. Links to elsewhere are not followed.

Counts the code blocks of the pages by who checks them: `make test` runs or reads each, or the page says why not.
"""

import collections
import html.parser
import pathlib
import re
import sys
import urllib.parse


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors.add(attributes.get("id"))
        for name in ("href", "src"):
            if attributes.get(name):
                self.links.append(attributes[name])


root = pathlib.Path(sys.argv[1]).resolve()
pages = {path: Page(path.read_text()) for path in root.rglob("*.html")}
dead, seen = [], 0
for path, page in pages.items():
    if path.name in ("404.html", "toc.html"):
        continue
    for link in page.links:
        link = urllib.parse.urlsplit(link)
        if link.scheme or link.netloc:
            continue
        seen += 1
        target = path if not link.path else (path.parent / urllib.parse.unquote(link.path)).resolve()
        if target.is_dir():
            target /= "index.html"
        anchor = urllib.parse.unquote(link.fragment)
        if not target.exists() or anchor and target in pages and anchor not in pages[target].anchors:
            dead.append(f"{path.relative_to(root)}: {link.geturl()}")
for link in dead:
    print("dead:", link, file=sys.stderr)
print(f"{len(pages)} pages, {seen} links, {len(dead)} dead")

# `tests/newcomer` runs commands, `tests/documents.rs` and `tests/examples.rs` read the rest.
CHECKED = {"sh": "run", "yaml": "read by what it is for", "json": "read", "text": "output or a picture", "": "output or a picture"}
blocks, unchecked = collections.Counter(), 0
sources = [pathlib.Path("README.md"), *pathlib.Path("docs").rglob("*.md"), *pathlib.Path("examples").rglob("*.md")]
for source in sources:
    before, inside = "", False
    for line in source.read_text().splitlines():
        line = line.strip()
        if line.startswith("```"):
            if not inside:
                mark = re.match(r"<!-- (not run|rendered|refused): \S+ \S+", before)
                what = mark.group(1) if mark else CHECKED.get(line[3:], "unchecked")
                unchecked += what == "unchecked" or before.startswith("<!--") and not mark
                blocks[what] += 1
            inside = not inside
        before = line
told = ", ".join(f"{count} {what}" for what, count in sorted(blocks.items()))
print(f"{sum(blocks.values())} code blocks ({told}), {unchecked} unchecked")
sys.exit(bool(dead) or seen == 0 or unchecked > 0)
