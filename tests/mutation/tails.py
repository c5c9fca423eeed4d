"""Where a CPU kernel can go wrong at an end: bounds against a count, minima of what is left, the counts and fills of
part vectors, and the checks and loops around them."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .mutants import ROOT, Mutant, closing, without_comments

CONSTANT = r"\bk[A-Z]\w*\b(?:<(?:[^<>]|<[^<>]*>)*>)?|\bTAMIS_LANES\b|\b\d+\b|\bsizeof\([^()]*\)"
COMPARISON = re.compile(r" (<=?|>=?) ")
NAME = r"(?:\w+(?:\.|->))*\w+"
LANES = re.compile(r"kLanes|TAMIS_LANES|\blanes\b|^64$")  # 64: bits of a word
TAIL = re.compile(r"\b(load|store)_(?:tail|some|upto)\(")


def sources() -> list[Path]:
    files = [*(ROOT / "kernels").glob("*/*.h"), *(ROOT / "kernels").glob("*/cpu_*.cpp")]
    return sorted(file for file in files if "probe" not in file.name)


def mutants(file: Path) -> list[Mutant]:
    """In the order of the source; no two make the same change."""
    found: dict[tuple[int, str, str], Mutant] = {}
    for m in _Tails(file).mutants():
        found.setdefault((m.at, m.before, m.after), m)
    return sorted(found.values(), key=lambda m: (m.at, m.after))


class _Tails:
    def __init__(self, file: Path):
        self.file = file
        self.code = without_comments(file.read_text())
        self.counts, self.constants = _integers(self.code)
        self.counts |= _fields() - self.constants

    def mutants(self) -> Iterator[Mutant]:
        yield from self.bounds()
        yield from self.checks()
        yield from self.loops()
        yield from self.parts()
        yield from self.remainders()

    def mutant(self, kind: str, at: int, before: str, after: str) -> Mutant:
        return Mutant(self.file, self.code.count("\n", 0, at) + 1, kind, at, before, after)

    def by_one(self, kind: str, at: int, text: str, steps: str = "+-") -> Iterator[Mutant]:
        for step in steps:
            yield self.mutant(kind, at, text, f"({text}) {step} 1" if " ? " in text else f"{text} {step} 1")

    # Integers that the machine counts in: a name declared so here, or a field, or arithmetic of those.
    def kind_of(self, text: str) -> str:
        """count, constant, or nothing that bounds an index"""
        rest = re.sub(CONSTANT, "1", re.sub(r"\b(?:block_size|upto)\b", "", text))
        names = re.findall(r"[A-Za-z_]\w*", re.sub(r"\w+(?:\.|->)", "", rest))
        if re.search(r"[^\w\s+\-*/%(),.>]", rest) or any(n not in self.counts | self.constants for n in names):
            return ""
        return "count" if any(n in self.counts for n in names) else "constant"

    def comparisons(self) -> Iterator[tuple[re.Match[str], int, int, bool]]:
        """Of counts: where the left operand begins, where the right one ends, and whether one is a constant."""
        for found in COMPARISON.finditer(self.code):
            begin, end = _extent(self.code, found.start(), -1), _extent(self.code, found.end(), 1)
            kinds = self.kind_of(self.code[begin : found.start()]), self.kind_of(self.code[found.end() : end])
            zero = {self.code[begin : found.start()], self.code[found.end() : end]} & {"0"}
            if "" not in kinds and "count" in kinds and not zero:
                yield found, begin, end, "constant" in kinds

    def bounds(self) -> Iterator[Mutant]:
        conditions = [(m.start(2), m.end(2), m[1]) for m in self.headers()]
        for found, begin, end, constant in self.comparisons():
            left, right = self.code[begin : found.start()], self.code[found.end() : end]
            after = self.code[end:]
            loop = next((start for a, b, start in conditions if a <= begin < b), None)
            if _same(after, rf" \? {re.escape(left)} : {re.escape(right)}"):  # a minimum: equals are all one
                if found[1] in ("<", "<="):
                    yield from self.by_one("minimum", found.end(), right, "-")
                    yield from self.forced(begin, end)
            elif _same(after, rf"\) {re.escape(left)} = {re.escape(right)};"):
                yield from self.by_one("clamp", found.end(), right, "+")
            elif constant and loop is not None:  # of lanes; or of those behind a count
                if re.search(r"= \w+$", loop) and self.kind_of(loop.split("= ")[1]) == "count":
                    yield from self.by_one("bound", found.end(), right, "-")
                    yield self.mutant("loop", begin, self.code[begin:end], "false")
            elif constant:
                if LANES.search(right):
                    yield from self.by_one("bound", found.end(), right, "-")
                    if after.startswith(" ? "):
                        yield from self.forced(begin, end)
            else:
                yield from self.by_one("bound", found.end(), right)

    def forced(self, begin: int, end: int) -> Iterator[Mutant]:
        for value in ("true", "false"):
            yield self.mutant("check", begin, self.code[begin:end], value)

    def headers(self) -> Iterator[re.Match[str]]:
        """Loops: what they begin with, and the condition."""
        yield from re.finditer(r"\bfor \(([^;()]*); ([^;]*);", self.code)

    def checks(self) -> Iterator[Mutant]:
        bounds = [
            found.start()
            for found, _, end, constant in self.comparisons()
            if not constant or LANES.search(self.code[found.end() : end])  # not a choice between two ways
        ]
        for found in re.finditer(r"\bif \(", self.code):
            end = closing(self.code, found.end() - 1)
            rest = self.code[end + 1 :]
            body = rest[: closing(rest, 1) if rest.startswith(" {") else rest.index(";")]
            guards = TAIL.search(body) and "for (" not in body
            if guards or any(found.end() <= at < end for at in bounds):
                before = re.match(r"(?:.*;)?\s*", self.code[found.end() : end], re.S)  # what the check begins with
                yield from self.forced(found.end() + before.end(), end)

    def loops(self) -> Iterator[Mutant]:
        for found in self.headers():  # one that goes on where another ended
            if not found[1].strip() and any(found.start(2) <= at[1] < found.end(2) for at in self.comparisons()):
                yield self.mutant("loop", found.start(2), found[2], "false")

    def parts(self) -> Iterator[Mutant]:
        for found in TAIL.finditer(self.code):
            end = closing(self.code, found.end() - 1)
            (_, _), (at, count), *more = _arguments(self.code, found.end(), end)
            if "int64_t" in count:  # it is defined here
                continue
            yield from self.by_one("part", at, count)
            if found[1] == "store":
                continue
            if more:
                yield self.mutant("fill", *more[0], f"({more[0][1]}) + 1")
            elif count != "1":
                yield self.mutant("fill", end, "", ", 0")
        for found in re.finditer(r"\(1u << (\w+)\) - 1", self.code):
            yield from self.by_one("mask", found.start(1), found[1])
        for found in re.finditer(r"\bmem(?:cpy|set)\(", self.code):
            at, size = _arguments(self.code, found.end(), closing(self.code, found.end() - 1))[2]
            count, of, _ = size.partition(" * sizeof")
            if of and self.kind_of(count) == "count":
                yield from self.by_one("part", at, count)

    def remainders(self) -> Iterator[Mutant]:
        for found in re.finditer(rf"(?<=[(,=])( ?)({NAME} - {NAME})(?=[,;)])", self.code):
            left, right = found[2].split(" - ")
            if self.kind_of(left) == self.kind_of(right) == "count":
                yield from self.by_one("remainder", found.start(2), found[2])


def _integers(code: str) -> tuple[set[str], set[str]]:
    """Names of counts, and of constants."""
    counts: set[str] = set()
    constants: set[str] = set()
    for found in re.finditer(r"\b(constexpr )?(?:const )?(?:int64_t|int) (?=\w)", code):
        end = _extent(code, found.end(), 1, ";){:")
        for _, part in _arguments(code, found.end(), end):
            if name := re.match(r"(\w+)(?: =|\[|$)", part):
                (constants if found[1] else counts).add(name[1])
    return counts - constants, constants


@cache
def _fields() -> set[str]:
    """Of what kernels are given: what headers declare, but in loops and lambdas."""
    texts = [without_comments(file.read_text()) for file in sources() if file.suffix == ".h"]
    return {name for text in texts for name in _integers(re.sub(r"\bfor \([^;]*;|\[&?\]\([^)]*\)", "", text))[0]}


def _extent(code: str, at: int, step: int, stops: str = "();,?:={}&|!") -> int:
    """How far an operand goes from there, or to there."""
    depth, opening, shutting = 0, *("()" if step > 0 else ")(")
    i = at if step > 0 else at - 1
    while True:
        if depth == 0 and code[i] in stops and code[i] != opening:
            break
        depth += (code[i] == opening) - (code[i] == shutting)
        i += step
    if step > 0:
        return at + len(code[at:i].rstrip())
    text = code[i + 1 : at]
    return at - len(re.sub(r"^\s*(?:return\b)?\s*", "", text))


def _arguments(code: str, begin: int, end: int) -> list[tuple[int, str]]:
    found, depth, start = [], 0, begin
    for i in range(begin, end + 1):
        if i == end or (code[i] == "," and depth == 0):
            text = code[start:i]
            found.append((start + len(text) - len(text.lstrip()), text.strip()))
            start = i + 1
        else:
            depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(code[i], 0)
    return found


def _same(code: str, pattern: str) -> bool:
    return bool(re.match(pattern.replace(r"\ ", r"\s+"), code))
