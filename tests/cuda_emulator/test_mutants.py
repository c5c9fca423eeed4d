"""A sample of the mutation run; `python -m cuda_emulator.mutate` in tests/ is the whole."""

from cuda_emulator import mutate
from cuda_emulator.build import ROOT
from cuda_emulator.mutants import mutants
from mutation.mutants import MOST_EQUIVALENT

SOURCE = """// a < b
template <int A = 1 < 2>
void kernel() {
  for (int i = 0; i < n; ++i) x += i & mask;
  if (i >= n) return;
  if (a(b) && c) go();  // equivalent: it goes anyway
  __syncthreads();
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
    }
    assert [m.line for m in found.values() if m.marked] == [6, 6]
    assert "  ;\n}" in found["kernel.cuh:7: barrier: __syncthreads(); -> ;"].text()


def test_few_places_are_marked():
    places = [m for file in (ROOT / "kernels").rglob("*.cuh") for m in mutants(file)]
    lines = {(m.file, m.line) for m in places if m.marked}
    assert len(places) > 80
    assert len(lines) <= MOST_EQUIVALENT * len(places)


def test_a_sample_is_noticed():
    assert mutate.run(every=80, marked=False, tell=lambda line: None) == []
