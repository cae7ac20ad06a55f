"""What must hold of the pages without a server: links, the table of contents, error pages, flags and settings."""
import re
import shlex
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import markdown

# Pages outside docs/ whose links and command lines are checked too.
NEIGHBOURS = ["README.md", "deploy/*.md", "deploy/kubernetes/README.md", "clients/README.md", "load-tests/*.md", "load-tests/fleet/*.md"]
# Reasons of delo_rejected_total under which nobody is sent an error.
NO_ERROR = {"shadow"}
# Fields of an answer that look like settings of the section `routing`; the setting and the flag that a page misspells on purpose.
ANSWER = {f"routing.{field}" for field in "task cosine margin candidates probability typicality rejected early".split()}
MISSPELT = {"batching.max_token", "--epoch"}
CODES = "CANCELLED INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED RESOURCE_EXHAUSTED FAILED_PRECONDITION UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED".split()


def neighbours(root: Path) -> list[Path]:
    return sorted(path for pattern in NEIGHBOURS for path in root.glob(pattern))


def pages_of_book(docs: Path) -> list[Path]:
    """The pages in the order of SUMMARY.md."""
    targets = [target for _, target in markdown.links((docs / "SUMMARY.md").read_text())]
    return [docs / target for target in targets]


def links(root: Path, pages: list[Path]) -> list[str]:
    """Relative links whose file or anchor is not there."""
    anchors = cache(lambda path: markdown.anchors(path.read_text()))
    wrong = []
    for page in pages:
        for line, target in markdown.links(page.read_text()):
            if re.match(r"[a-z][a-z+.-]*:", target):
                continue
            path, _, anchor = target.partition("#")
            to = (page.parent / unquote(path)).resolve() if path else page
            place = f"{page.relative_to(root)}:{line}"
            if not to.exists() or not to.is_relative_to(root):
                wrong.append(f"{place}: there is no {target}")
            elif anchor and to.suffix == ".md" and unquote(anchor) not in anchors(to):
                wrong.append(f"{place}: {path or page.name} has no heading #{anchor}")
    return wrong


def summary(docs: Path) -> list[str]:
    """Pages that SUMMARY.md lacks, or names twice."""
    named = [page.resolve() for page in pages_of_book(docs)]
    there = {page.resolve() for page in docs.rglob("*.md")} - {(docs / "SUMMARY.md").resolve()}
    lacking = [f"docs/SUMMARY.md lacks {page.relative_to(docs)}" for page in sorted(there - set(named))]
    return lacking + [f"docs/SUMMARY.md names {page.name} twice" for page in sorted(set(named)) if named.count(page) > 1]


def error_pages(root: Path) -> list[str]:
    """Each reason that the server counts a refusal under has a page of its name in docs/errors, and each code of gRPC that it
    answers with stands in the table of some page; and the other way round."""
    source = {path: path.read_text() for path in (root / "src/serve").rglob("*.rs")}
    reasons = set(re.findall(r"^    \w+ = \"(\w+)\",$", source[root / "src/serve/reason.rs"], re.MULTILINE)) - NO_ERROR
    pages = {path.stem: path.read_text() for path in (root / "docs/errors").glob("*.md")}
    index = pages.pop("README", "")
    told = {reason for text in pages.values() for reason in re.findall(r"reason=\"(\w+)\"", text)}
    wrong = [f"docs/errors/ has no page {reason}.md" for reason in sorted(reasons - pages.keys())]
    wrong += [f"docs/errors/{reason}.md does not name its reason in the metric" for reason in sorted(reasons & pages.keys() - told)]
    wrong += [f"docs/errors names the reason {reason!r}, which the source does not have" for reason in sorted(told - reasons - NO_ERROR)]
    wrong += [f"docs/errors/README.md does not link to {name}.md" for name in sorted(pages) if f"({name}.md)" not in index]
    said = " ".join("".join(path.read_text() for path in [*root.glob("src/**/*.rs"), *root.glob("crates/*/src/**/*.rs")]).split())
    for name, text in sorted(pages.items()):
        for message in re.findall(r"^Message: (\D{12,32})", text, re.MULTILINE):
            if message.strip() not in said:
                wrong.append(f"docs/errors/{name}.md: no message of the program begins with {message!r}")
    used = {re.sub(r"(?<!^)(?=[A-Z])", "_", code).upper() for text in source.values() for code in re.findall(r"\bCode::(\w+)\b", text.split("#[cfg(test)]")[0])}
    used |= {code.upper() for text in source.values() for code in re.findall(r"\bStatus::(\w+)\(", text.split("#[cfg(test)]")[0])}
    explained = {code for text in pages.values() for code in CODES if re.search(rf"^\| code \|.*\b{code}\b", text, re.MULTILINE)}
    wrong += [f"docs/errors/ has no page for the code {code}" for code in CODES if code in used and code not in explained]
    return wrong + [f"docs/errors/ explains {code}, which the server does not answer with" for code in sorted(explained - used)]


class Help:
    """The subcommands and flags of the program, as its help has them."""

    def __init__(self, program: str):
        self.program = program
        self.of = cache(self._of)

    def _of(self, path: tuple[str, ...]) -> tuple[set[str], set[str]]:
        asked = subprocess.run([self.program, *path, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
        commands = re.search(r"^Commands:\n((?:  .*\n|\n)+)", asked, re.MULTILINE)
        subcommands = set(re.findall(r"^  ([a-z][\w-]*)", commands[1], re.MULTILINE)) if commands else set()
        return subcommands, set(re.findall(r"^ +(?:-\w, )?(--[\w-]+)", asked, re.MULTILINE))

    def check(self, words: list[str]) -> str | None:
        """What is wrong with `delo WORDS…`: a subcommand or a flag that there is not."""
        path: tuple[str, ...] = ()
        subcommands, flags = self.of(path)
        for at, word in enumerate(words):
            if not subcommands:
                break
            if word in subcommands - {"help"}:
                path = (*path, word)
                subcommands, flags = self.of(path)
                words = words[:at] + [""] + words[at + 1 :]
            elif re.fullmatch(r"[a-z][a-z-]+", word):
                return f"`delo {' '.join(path)}` has no command {word}".replace(" `", "`")
            else:
                break
        for word in words:
            flag = word.split("=")[0].rstrip(",;.")
            if re.fullmatch(r"--\w[\w-]*", flag) and flag not in flags | MISSPELT:
                return f"`{' '.join(('delo', *path))}` has no flag {flag}"
        return None


PREFIXES = {"until", "while", "do", "if", "then", "!", "exec", "time", "nohup", "env", "sudo", "&&", "|"}


def simple_commands(line: str) -> list[list[str]]:
    """The words of each simple command of a line of shell that begins with `delo`, after the word delo."""
    line = re.sub(r"\\\n", " ", line)
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = list(lexer)
    except ValueError:
        words = line.split("#")[0].split()
    found, current = [], []
    for word in [*words, ";"]:
        if word and set(word) <= set(";&|()"):
            while current and (current[0] in PREFIXES or re.match(r"[A-Za-z_]\w*=", current[0])):
                current.pop(0)
            if current and current[0] == "delo":
                found.append(current[1:])
            current = []
        else:
            current.append(word)
    return found


def flags(root: Path, pages: list[Path], program: str) -> tuple[int, list[str]]:
    """How many command lines of delo the pages hold, and what is wrong with some."""
    help_of, count, wrong = Help(program), 0, []
    for page in pages:
        text = page.read_text()
        lines = []
        for block in markdown.blocks(text):
            if block.language in ("sh", "console", "text", "hidden", "indented", ""):
                at = block.line
                for line in markdown.logical_lines(block):
                    lines.append((at, line))
                    at += line.count("\n") + 1
        spans = [(line, span) for line, span in markdown.inline_code(text) if span.startswith("delo ")]
        for line, command in lines + spans:
            for words in simple_commands(command):
                count += 1
                if problem := help_of.check(words):
                    wrong.append(f"{page.relative_to(root)}:{line}: {problem}")
    return count, wrong


def settings(root: Path, pages: list[Path]) -> list[str]:
    """Settings that the pages name and default.toml does not have, metrics that METRICS.md lacks, alerts without a rule."""
    sections = tomllib.loads((root / "migrations-free-config/default.toml").read_text())
    known = set()

    def walk(table: dict, prefix: str) -> None:
        for key, value in table.items():
            known.add(f"{prefix}{key}")
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    walk(sections, "")
    metrics = (root / "deploy/METRICS.md").read_text()
    alerts = "".join(path.read_text() for path in (root / "deploy/prometheus/rules").iterdir())
    wrong = []
    for page in pages:
        text, place = page.read_text(), page.relative_to(root)
        for name in re.findall(r"\bDELO_([A-Z][A-Z_]*?__[A-Z_]+)\b", text):
            if name != "SECTION__KEY" and name.lower().replace("__", ".") not in known | MISSPELT:
                wrong.append(f"{place}: there is no setting {name.lower().replace('__', '.')}")
        for line, span in markdown.inline_code(text):
            name = re.fullmatch(r"([a-z]+)\.[a-z_.]+", span)
            if name and name[1] in sections and span not in known and span not in ANSWER:
                wrong.append(f"{place}:{line}: there is no setting {span}")
            metric = re.match(r"delo_[a-z_]+(?=\{|$)", span)
            if metric and not metric[0].endswith("_") and re.sub(r"_(bucket|sum|count)$", "", metric[0]) not in metrics and metric[0] != "delo_client":
                wrong.append(f"{place}:{line}: deploy/METRICS.md has no metric {metric[0]}")
            if re.fullmatch(r"Delo[A-Z]\w+", span) and f"alert: {span}\n" not in alerts:
                wrong.append(f"{place}:{line}: there is no alert {span}")
    return wrong
