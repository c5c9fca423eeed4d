"""Where a source can be changed so that a good test must notice: barriers, comparisons, masks, checks, loops, choices,
minima and what is rounded up."""

import re
from collections.abc import Iterator
from pathlib import Path

from mutation.mutants import Mutant, closing, without_comments

BOUNDARY = {" < ": " <= ", " <= ": " < ", " > ": " >= ", " >= ": " > "}
LOGIC = {" && ": " || ", " || ": " && ", " & ": " | "}
EQUALITY = {" == ": " != ", " != ": " == "}
UP = r" \+ [\w<>.* ]+ - 1(?=[,)])"  # ... (n + STEP - 1) / STEP, or with the division in a function


def mutants(file: Path) -> Iterator[Mutant]:
    code = without_comments(file.read_text())

    def mutant(kind: str, at: int, before: str, after: str) -> Mutant:
        return Mutant(file, code.count("\n", 0, at) + 1, kind, at, before, after)

    for found in re.finditer(r"__sync(?:threads|warp)\([^()]*\);", code):
        yield mutant("barrier", found.start(), found[0], ";")
    for table, kind in ((BOUNDARY, "comparison"), (LOGIC, "logic or mask")):
        for found in re.finditer("|".join(map(re.escape, table)), code):
            yield mutant(kind, found.start(), found[0], table[found[0]])
    for found in re.finditer(" [!=]= ", code):
        yield mutant("equality", found.start(), found[0], EQUALITY[found[0]])
    for found in re.finditer(r"\bf?(min|max)f?\(", code):
        other = {"min": "max", "max": "min"}[found[1]]
        yield mutant("extreme", found.start(), found[0], found[0].replace(found[1], other))
    for found in re.finditer(UP, code):
        yield mutant("rounding", found.start(), found[0], "")
    for found in re.finditer(r" \? ", code):
        middle, end = _arms(code, found.end())
        one, other = code[found.end() : middle], code[middle + 3 : end]
        for arm in (one, other):
            yield mutant("choice", found.end(), f"{one} : {other}", f"({arm.strip()}) : ({arm.strip()})")
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


def _arms(code: str, begin: int) -> tuple[int, int]:
    """Of a choice whose first arm begins there: where that ends, and where the second does."""
    code = re.sub(r"(?<=\w)<[\w, :]*>", lambda template: "_" * len(template[0]), code)
    depth, choices, middle = 0, 0, 0
    for at in range(begin, len(code)):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(code[at], 0)
        if depth < 0 or (depth == 0 and code[at] in ",;"):
            return middle, at
        if depth == 0 and code[at : at + 3] == " ? ":
            choices += 1
        elif depth == 0 and code[at : at + 3] == " : ":
            choices -= 1
            middle = middle or (at if choices < 0 else 0)
    raise ValueError("a choice without an end")
