"""Looks at each link of a built book: the page and the anchor have to be there. Links to elsewhere are not followed."""

import html.parser
import pathlib
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
sys.exit(bool(dead) or seen == 0)
