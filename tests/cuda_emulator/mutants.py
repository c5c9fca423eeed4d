"""Where a source can be changed so that a good test must notice: barriers, comparisons, masks, checks and loops."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARK = re.compile(r"// equivalent: \S")  # ... REASON, on the line
BOUNDARY = {" < ": " <= ", " <= ": " < ", " > ": " >= ", " >= ": " > "}
LOGIC = {" && ": " || ", " || ": " && ", " & ": " | "}


@dataclass(frozen=True)
class Mutant:
    """A file with one place changed."""

    file: Path
    line: int
    kind: str
    at: int
    before: str
    after: str

    def text(self) -> str:
        whole = self.file.read_text()
        assert whole[self.at :].startswith(self.before)
        return whole[: self.at] + self.after + whole[self.at + len(self.before) :]

    @property
    def marked(self) -> bool:
        return bool(MARK.search(self.file.read_text().splitlines()[self.line - 1]))

    def __str__(self) -> str:
        change = f"{self.before.strip()} -> {self.after.strip() or 'nothing'}"
        return f"{self.file.name}:{self.line}: {self.kind}: {change}"


def mutants(file: Path) -> Iterator[Mutant]:
    code = _without_comments(file.read_text())

    def mutant(kind: str, at: int, before: str, after: str) -> Mutant:
        return Mutant(file, code.count("\n", 0, at) + 1, kind, at, before, after)

    for found in re.finditer(r"__sync(?:threads|warp)\([^()]*\);", code):
        yield mutant("barrier", found.start(), found[0], ";")
    for table, kind in ((BOUNDARY, "comparison"), (LOGIC, "logic or mask")):
        for found in re.finditer("|".join(map(re.escape, table)), code):
            yield mutant(kind, found.start(), found[0], table[found[0]])
    for found in re.finditer(r"~0u\b", code):  # the lanes that meet
        yield mutant("mask", found.start(), found[0], "0x7fffffffu")
    for found in re.finditer(r"\b(if|for) \(", code):
        end = _closing(code, found.end() - 1)
        inside = code[found.end() : end]
        whole = code[found.start() : end + 1]
        if found[1] == "for":
            start, _, step = inside.split(";")
            yield mutant("loop", found.start(), whole, f"for ({start}; false;{step})")
        else:  # a way out is closed, a condition for more is met; what it calls is called
            out = re.match(r"\s*(continue|break|return)\b", code[end + 1 :])
            yield mutant("check", found.start(), whole, f"if (({inside}), {'false' if out else 'true'})")


def _without_comments(text: str) -> str:
    """As long as before; directives and template parameters go too."""

    def blank(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", found[0])

    passed_over = r"//[^\n]*|/\*.*?\*/|^\s*#[^\n]*|\btemplate <[^\n]*|\bstatic_assert\([^\n]*"
    return re.sub(passed_over, blank, text, flags=re.S | re.M)


def _closing(code: str, opening: int) -> int:
    depth = 0
    for at in range(opening, len(code)):
        depth += {"(": 1, ")": -1}.get(code[at], 0)
        if depth == 0:
            return at
    raise ValueError("an unclosed parenthesis")
