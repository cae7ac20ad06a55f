#!/usr/bin/env python3
"""A preprocessor of mdBook (docs/book.toml): a link to a file outside of docs/ works where the repository is browsed and can't
in a book. It becomes its text and the file's path in the repository; with DELO_BOOK_REPOSITORY=URL, a link below that URL."""
import json
import os
import posixpath
import re
import sys


def outside(page: str, content: str) -> str:
    base = os.environ.get("DELO_BOOK_REPOSITORY", "").rstrip("/")

    def replaced(link: re.Match) -> str:
        text, target = link[1], link[2]
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if path.startswith("docs/"):
            # mdBook makes index.html of a folder's README.md and does not say so to those who link to it.
            return f"[{text}]({re.sub('README[.]md', 'index.md', target)})"
        if base:
            return f"[{text}]({base}/{path})"
        name = path.partition("#")[0]
        return f"`{name}`" if text.strip("`") == name or name.endswith("/" + text.strip("`")) else f"{text} (`{name}`)"

    # Code, in blocks and in lines, stays as it is.
    parts = re.split(r"(^```.*?^```|`[^`\n]+`(?!\]))", content, flags=re.DOTALL | re.MULTILINE)
    link = re.compile(r"(?<!!)\[((?:[^\[\]]|`[^`]*`)+)\]\(([^)\s]+)\)")
    return "".join(part if i % 2 else link.sub(replaced, part) for i, part in enumerate(parts))


def walk(items: list) -> None:
    for item in items:
        if isinstance(item, dict) and "Chapter" in item:
            chapter = item["Chapter"]
            if chapter.get("path"):
                chapter["content"] = outside(chapter["path"], chapter["content"])
            walk(chapter["sub_items"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["supports"]:
        sys.exit(0)
    _, book = json.load(sys.stdin)
    walk(book.get("items", book.get("sections", [])))
    json.dump(book, sys.stdout)
