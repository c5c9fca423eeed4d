"""A sample of the mutation run over the CPU kernels' tails; `python -m mutation.cpu` in tests/ is the whole."""

import shutil
import subprocess

import pytest
from mutation import cpu, tails
from mutation.mutants import MOST_EQUIVALENT

SOURCE = """
void f(const float* x, int64_t n, float last) {
  int64_t i = 0;
  for (; i + kLanes<V> <= n; i += kLanes<V>) g(load(x + i));
  if (i < n) g(load_tail(x + i, n - i));  // equivalent: part, fill: a mark
  for (int k = 0; k < kLanes<V>; ++k) v[k] = last < 2 ? 0 : v[k];
  const int64_t few = n < 64 ? n : 64;
  memcpy(y, x, few * sizeof(float));
  if constexpr (sizeof(V) == 64) store_tail(y, 3, (1u << n) - 1);
}
"""
NESTED = """
int64_t f(int64_t n, int64_t i) { return g(load_some(x, n - i < 9 ? n - i : 9)); }
"""


@pytest.fixture(autouse=True)
def poisoned_outputs():
    """No torch here."""


def test_places(tmp_path):
    file = tmp_path / "cpu_one.cpp"
    file.write_text(SOURCE)
    found = [str(m).split(":", 1)[1] for m in tails.mutants(file)]
    assert found == [
        "4: loop: i + kLanes<V> <= n -> false",
        "4: bound: n -> n + 1",
        "4: bound: n -> n - 1",
        "5: check: i < n -> false",
        "5: check: i < n -> true",
        "5: bound: n -> n + 1",
        "5: bound: n -> n - 1",
        "5: part: n - i -> n - i + 1",
        "5: part: n - i -> n - i - 1",
        "5: fill: nothing -> , 0",
        "7: check: n < 64 -> false",
        "7: check: n < 64 -> true",
        "7: minimum: 64 -> 64 - 1",
        "8: part: few -> few + 1",
        "8: part: few -> few - 1",
        "9: part: 3 -> 3 + 1",
        "9: part: 3 -> 3 - 1",
        "9: mask: n -> n + 1",
        "9: mask: n -> n - 1",
    ]
    assert [m.line for m in tails.mutants(file) if m.marked] == [5] * 3


@pytest.mark.skipif(shutil.which(cpu.COMPILER) is None, reason="needs a C++ compiler")
def test_one_mutant_at_a_time(tmp_path, monkeypatch):
    """The text with all of them in it does, for each, what its own text does."""
    file = tmp_path / "cpu_one.cpp"
    file.write_text(NESTED)
    monkeypatch.setattr(cpu, "ROOT", tmp_path)
    places = tails.mutants(file)
    assert len(places) == 6
    around = """#include <stdint.h>
    #include <stdio.h>
    #include <stdlib.h>
    #define kInf 5
    int tamis_mutant, x; int64_t g(int64_t n) { return n; }
    int64_t load_some(int, int64_t n, int fill = -kInf) { return 100 * n + fill; }
    %s
    int main(int, char** a) {
      tamis_mutant = atoi(a[1]);
      for (int n = 5; n < 15; ++n) printf("%%ld ", long(f(n, 2)));
    }"""

    def said(text: str, mutant: int) -> str:
        (tmp_path / "one.cpp").write_text(around % text)
        subprocess.run([cpu.COMPILER, tmp_path / "one.cpp", "-o", tmp_path / "one"], check=True)
        return subprocess.run([tmp_path / "one", str(mutant)], check=True, capture_output=True, text=True).stdout

    whole = cpu.switched(file)
    assert said(whole, 0) == said(NESTED, 0)
    told = {said(whole, cpu.number(m)): m for m in places}
    assert told == {said(m.text(), 0): m for m in places}
    assert said(NESTED, 0) not in told


def test_few_places_are_marked():
    places = [m for file in tails.sources() for m in tails.mutants(file)]
    assert len(places) > 800
    assert len({(m.file, m.line, m.kind) for m in places if m.marked}) <= MOST_EQUIVALENT * len(places)


@pytest.mark.skipif(shutil.which(cpu.COMPILER) is None, reason="needs a C++ compiler")
def test_a_sample_is_noticed():
    assert cpu.run(every=80, marked=False, tell=lambda line: None) == []
