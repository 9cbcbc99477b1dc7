"""What the pages say: their command lines, their blocks of code, their links."""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "BUILD.md", *sorted((ROOT / "docs").glob("*.md"))]

_PROGRAM = r"python (?:-m (?P<module>(?:benchmarks|tests\.faults)\.\w+)|(?P<path>bin/\w+\.py))"
# A container's command has its arguments as a list below it.
_CONTAINER = re.compile(r"command: \[python, (?P<path>bin/\w+\.py)\]")
_ARGUMENT = re.compile(r"\s*- (--\S+)")
# What a page leaves open, where a program would refuse the word itself.
_PLACEHOLDERS = {"METHOD": "anpvs", "$method": "anpvs", "SEED": "0", "$seed": "0"}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line of a page.

    Attributes:
        place: page:line.
        program: path below the repository.
    """

    place: str
    program: str
    arguments: tuple[str, ...]


def commands(page: pathlib.Path) -> Iterator[Command]:
    """Every call of a program of this repository."""
    lines = page.read_text().splitlines()
    for i, line in enumerate(lines):
        place = f"{page.relative_to(ROOT)}:{i + 1}"
        if found := _CONTAINER.search(line):
            listed = [_ARGUMENT.match(text) for text in lines[i + 1 : i + 30]]
            yield Command(place, found["path"], tuple(one[1] for one in listed if one))
        for found in re.finditer(_PROGRAM, line):
            rest, following = line[found.end() :], i + 1
            if line[: found.start()].count("`") % 2:
                rest = rest.split("`")[0]
            while rest.endswith("\\"):
                rest, following = rest[:-1] + lines[following], following + 1
            path = found["path"] or found["module"].replace(".", "/") + ".py"
            yield Command(place, path, tuple(words(rest)))


def words(text: str) -> list[str]:
    """The words of a command, without what follows it on its line, placeholders filled in."""
    for placeholder, value in _PLACEHOLDERS.items():
        text = text.replace(f"={placeholder}", f"={value}")
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";|&")
    lexer.whitespace_split, lexer.commenters = True, "#"
    found = []
    for word in lexer:
        if set(word) <= set(";|&"):
            break
        found.append(word)
    return found


def blocks(page: pathlib.Path) -> list[tuple[str, str]]:
    """(language, text) of each block of code that names its language."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def prose(page: pathlib.Path) -> str:
    """The page without its blocks of code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def links(page: pathlib.Path) -> list[str]:
    """Targets of links and images."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: pathlib.Path) -> set[str]:
    """What links into the page may name, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in headings}
