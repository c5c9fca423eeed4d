"""Where a source can be changed so that a good test must notice: barriers, comparisons, masks, checks and loops."""

import re
from collections.abc import Iterator
from pathlib import Path

from mutation.mutants import Mutant, closing, without_comments

BOUNDARY = {" < ": " <= ", " <= ": " < ", " > ": " >= ", " >= ": " > "}
LOGIC = {" && ": " || ", " || ": " && ", " & ": " | "}


def mutants(file: Path) -> Iterator[Mutant]:
    code = without_comments(file.read_text())

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
        end = closing(code, found.end() - 1)
        inside = code[found.end() : end]
        whole = code[found.start() : end + 1]
        if found[1] == "for":
            start, _, step = inside.split(";")
            yield mutant("loop", found.start(), whole, f"for ({start}; false;{step})")
        else:  # a way out is closed, a condition for more is met; what it calls is called
            out = re.match(r"\s*(continue|break|return)\b", code[end + 1 :])
            yield mutant("check", found.start(), whole, f"if (({inside}), {'false' if out else 'true'})")
