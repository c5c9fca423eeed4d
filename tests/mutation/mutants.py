"""A source with one place changed, which a good test must notice; and the verdict over all such places."""

import argparse
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"// equivalent: ([\w ]+(?:, [\w ]+)*): \S")  # ... KIND, KIND: REASON, on the line
MOST_EQUIVALENT = 0.05
Tell = Callable[[str], object]


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
        """Is a change of this kind said to make no difference on this line?"""
        mark = MARK.search(self.file.read_text().splitlines()[self.line - 1])
        return mark is not None and self.kind in mark[1].split(", ")

    def __str__(self) -> str:
        change = f"{self.before.strip() or 'nothing'} -> {self.after.strip() or 'nothing'}"
        return f"{self.file.parent.name}/{self.file.name}:{self.line}: {self.kind}: {change}"


def without_comments(text: str) -> str:
    """As long as before; so do directives, template parameters and what is asserted."""

    def blank(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", found[0])

    passed_over = r"//[^\n]*|/\*.*?\*/|^\s*#[^\n]*|\btemplate <[^\n]*|\b(?:static_assert|TAMIS_PROMISED)\([^\n]*"
    return re.sub(passed_over, blank, text, flags=re.S | re.M)


def closing(code: str, opening: int) -> int:
    """Where the bracket closes that opens there."""
    depth = 0
    for at in range(opening, len(code)):
        depth += {"(": 1, "{": 1, ")": -1, "}": -1}.get(code[at], 0)
        if depth == 0:
            return at
    raise ValueError("an unclosed bracket")


def judge(
    places: list[Mutant], chosen: list[Mutant], noticed: Callable[[Mutant], str], tell: Tell, whole: bool
) -> list[str]:
    """What is wrong, a line each. `noticed` says what notices a mutant, if anything. The marks themselves are judged
    where all marked places are chosen, and their number where those are of all files."""
    wrong: list[str] = []
    counts: Counter[str] = Counter()
    needed = set()
    for mutant in chosen:
        begun = time.monotonic()
        by = noticed(mutant)
        verdict = f"killed by {by}" if by else "equivalent" if mutant.marked else "SURVIVED"
        counts[verdict] += 1
        if verdict == "equivalent":
            needed.add((mutant.file, mutant.line, mutant.kind))
        if verdict == "SURVIVED":
            wrong.append(f"survived: {mutant}")
        tell(f"{verdict:19} {time.monotonic() - begun:5.1f} s  {mutant}")
    tell(f"{sum(counts.values())} of {len(places)} places: " + ", ".join(f"{n} {v}" for v, n in sorted(counts.items())))
    marked = {m for m in places if m.marked}
    if marked <= set(chosen):
        needless = {(m.file, m.line, m.kind) for m in marked} - needed
        wrong += [f"a mark that no mutant needs: {file.name}:{line}: {kind}" for file, line, kind in sorted(needless)]
        if whole and counts["equivalent"] > MOST_EQUIVALENT * len(places):
            wrong.append(f"{counts['equivalent']} of {len(places)} places are marked equivalent: more than 5%")
    return wrong


def command(run: Callable[[str, int, bool | None], list[str]], description: str | None) -> int:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="files whose path has this in it")
    parser.add_argument("--every", type=int, default=1, help="one place of so many")
    parser.add_argument("--marked", action="store_true", default=None, help="places that are marked alone")
    arguments = parser.parse_args()
    wrong = run(arguments.only, arguments.every, arguments.marked)
    print("\n".join(wrong))
    return 1 if wrong else 0
