"""A sample of the mutation run; `python -m cuda_emulator.mutate` in tests/ is the whole."""

from cuda_emulator import mutate
from cuda_emulator.mutants import mutants
from mutation.mutants import MOST_EQUIVALENT

SOURCE = """// a < b
template <int A = 1 < 2>
void kernel() {
  for (int i = 0; i < n; ++i) x += i & mask;
  if (i >= n) return;
  if (a(b) && c) go();  // equivalent: check: it goes anyway
  __syncthreads();
  y = a == b ? min(c, d) : e ? f<1, 2>(g, h) : 0;
  z = (n + kStep - 1) / kStep;
}
"""


def test_places(tmp_path):
    file = tmp_path / "kernel.cuh"
    file.write_text(SOURCE)
    found = {str(m).removeprefix(tmp_path.name + "/"): m for m in mutants(file)}
    assert set(found) == {
        "kernel.cuh:4: loop: for (int i = 0; i < n; ++i) -> for (int i = 0; false; ++i)",
        "kernel.cuh:4: comparison: < -> <=",
        "kernel.cuh:4: logic or mask: & -> |",
        "kernel.cuh:5: comparison: >= -> >",
        "kernel.cuh:5: check: if (i >= n) -> if ((i >= n), false)",
        "kernel.cuh:6: logic or mask: && -> ||",
        "kernel.cuh:6: check: if (a(b) && c) -> if ((a(b) && c), true)",
        "kernel.cuh:7: barrier: __syncthreads(); -> ;",
        "kernel.cuh:8: equality: == -> !=",
        "kernel.cuh:8: extreme: min( -> max(",
        "kernel.cuh:8: choice: min(c, d) : e ? f<1, 2>(g, h) : 0 -> (min(c, d)) : (min(c, d))",
        "kernel.cuh:8: choice: min(c, d) : e ? f<1, 2>(g, h) : 0 -> (e ? f<1, 2>(g, h) : 0) : (e ? f<1, 2>(g, h) : 0)",
        "kernel.cuh:8: choice: f<1, 2>(g, h) : 0 -> (f<1, 2>(g, h)) : (f<1, 2>(g, h))",
        "kernel.cuh:8: choice: f<1, 2>(g, h) : 0 -> (0) : (0)",
        "kernel.cuh:9: rounding: + kStep - 1 -> nothing",
    }
    assert [(m.line, m.kind) for m in found.values() if m.marked] == [(6, "check")]
    assert "\n  ;\n" in found["kernel.cuh:7: barrier: __syncthreads(); -> ;"].text()


def test_few_places_are_marked():
    places = [m for file in mutate.cuda_sources() for m in mutants(file)]
    assert len(places) > 500
    assert sum(m.marked for m in places) <= MOST_EQUIVALENT * len(places)


def test_a_sample_is_noticed():
    assert mutate.run(every=80, marked=False, tell=lambda line: None) == []
