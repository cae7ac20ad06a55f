"""What the checks of the book read of a page: code blocks, hidden commands, links, anchors."""
import re
from dataclasses import dataclass

FENCE = re.compile(r"^( {0,3})(`{3,})\s*([^`]*)$")
HIDDEN = re.compile(r"^<!-- test:(.*)$")


@dataclass
class Block:
    """A code block, or a hidden command (`<!-- test: … -->`)."""

    # "sh", "console", "text" and so on; "indented" for a block without a fence, "hidden" for a hidden command.
    language: str
    # The words of the info string that have an equals sign.
    attributes: dict[str, str]
    body: str
    # The first line of the block's body, counted from 1.
    line: int


def blocks(text: str) -> list[Block]:
    """All code blocks and hidden commands of a page, in order."""
    found, lines, at = [], text.split("\n"), 0
    blank_before = True
    while at < len(lines):
        line = lines[at]
        if fence := FENCE.match(line):
            end = at + 1
            while end < len(lines) and not re.fullmatch(rf" {{0,3}}`{{{len(fence[2])},}}\s*", lines[end]):
                end += 1
            words = re.split(r"[ ,]+", fence[3].strip())
            attributes = dict(word.split("=", 1) for word in words[1:] if "=" in word)
            body = [inner.removeprefix(fence[1]) for inner in lines[at + 1 : end]]
            found.append(Block(words[0], attributes, "\n".join(body) + "\n", at + 2))
            at = end + 1
        elif hidden := HIDDEN.match(line):
            end = at
            while "-->" not in lines[end]:
                end += 1
            body = "\n".join([hidden[1], *lines[at + 1 : end + 1]]).split("-->")[0]
            found.append(Block("hidden", {}, body + "\n", at + 1))
            at = end + 1
        elif blank_before and line.startswith("    "):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            body = "\n".join(inner[4:] for inner in lines[at:end]).rstrip("\n")
            found.append(Block("indented", {}, body + "\n", at + 1))
            at = end
        else:
            at += 1
        blank_before = at > 0 and not lines[at - 1].strip() if at <= len(lines) else True
    return found


def prose(text: str) -> str:
    """The page without its fenced blocks and comments; lines keep their numbers."""
    out, fence = [], None
    for line in text.split("\n"):
        match = FENCE.match(line)
        if fence is None and match:
            fence = match[2]
        elif fence is not None and re.fullmatch(rf" {{0,3}}`{{{len(fence)},}}\s*", line):
            fence = None
        elif fence is None:
            out.append(line)
            continue
        out.append("")
    return re.sub(r"<!--.*?-->", lambda comment: "\n" * comment[0].count("\n"), "\n".join(out), flags=re.DOTALL)


def inline_code(text: str) -> list[tuple[int, str]]:
    """Line and content of every code span outside of blocks."""
    page = prose(text)
    spans = re.finditer(r"(?<!`)(`+)(?!`)((?:(?!\n\n).)+?)(?<!`)\1(?!`)", page, re.DOTALL)
    return [(page.count("\n", 0, span.start()) + 1, " ".join(span[2].split())) for span in spans]


def links(text: str) -> list[tuple[int, str]]:
    """Line and target of every link and picture outside of code."""
    page = re.sub(r"(?<!`)(`+)(?!`)((?:(?!\n\n).)+?)(?<!`)\1(?!`)", lambda s: "x" + "\n" * s[0].count("\n"), prose(text), flags=re.DOTALL)
    inline = re.finditer(r"\]\(\s*<?([^)>\s]+)>?(?:\s+\"[^\"]*\")?\s*\)", page)
    reference = re.finditer(r"(?:^|\n\n) {0,3}\[[^\]]+\]:\s*(\S+)", page)
    html = re.finditer(r"\b(?:href|src)=\"([^\"]+)\"", page)
    return [(page.count("\n", 0, found.start()) + 1, found[1]) for kind in (inline, reference, html) for found in kind]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as code hosts and mdBook make them, and those set by hand."""
    page, found = prose(text), set()
    for heading in re.finditer(r"^#{1,6}\s+(.+?)\s*#*$", page, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1]).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        name, number = slug, 0
        while name in found:
            number += 1
            name = f"{slug}-{number}"
        found.add(name)
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", page))


def is_complete(command: str) -> bool:
    """Whether a shell would run this line, or wait for more of it."""
    if command.rstrip("\n").endswith("\\"):
        return False
    quote, at = None, 0
    while at < len(command):
        character = command[at]
        if character == "\\" and quote != "'":
            at += 1
        elif quote is None and character in "'\"":
            quote = character
        elif character == quote:
            quote = None
        elif quote is None and character == "#" and (at == 0 or command[at - 1].isspace()):
            newline = command.find("\n", at)
            if newline < 0:
                break
            at = newline
        at += 1
    return quote is None


def commands_and_outputs(body: str) -> list[tuple[str, str]]:
    """The commands of a `console` block (lines after `$ `) with the output that the page shows for each."""
    found, lines = [], body.rstrip("\n").split("\n")
    at = 0
    while at < len(lines):
        if not lines[at].startswith("$ "):
            if found:
                found[-1] = (found[-1][0], found[-1][1] + lines[at] + "\n")
            at += 1
            continue
        command = lines[at][2:]
        while not is_complete(command) and at + 1 < len(lines):
            at += 1
            command += "\n" + lines[at]
        found.append((command, ""))
        at += 1
    return found


def logical_lines(block: Block) -> list[str]:
    """The lines of a block, those that belong to one command joined."""
    out, waiting = [], ""
    for line in block.body.split("\n"):
        waiting = f"{waiting}\n{line}" if waiting else line.removeprefix("$ ")
        if is_complete(waiting):
            out.append(waiting)
            waiting = ""
    return [*out, waiting] if waiting else out
