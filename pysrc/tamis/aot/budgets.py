"""kernels/budgets.json: what each kernel may take at most, and reach at least. No kernel may spill.

{family/kernel: {"sass": [features every variant must show], "registers": {dtype: {arch: most}}, "shared": most,
"occupancy": least percent}}
"""

import json
from pathlib import Path
from typing import Any

from .build import Kernel
from .inventory import kernels_folder

Budgets = dict[str, dict[str, Any]]
FEATURES = {"LDG.128": "LDG", "STG.128": "STG"}  # 128 bits or wider


def load() -> Budgets:
    return dict(json.loads((kernels_folder() / "budgets.json").read_text()))


def violations(kernels: list[Kernel], budgets: Budgets) -> list[str]:
    """One line each; empty where all is well."""
    found = []
    for kernel in kernels:
        e, r = kernel.entry, kernel.resources
        what = f"{e.file}: "
        if r.stack or r.local:
            found.append(f"{what}expected no stack or local memory, got {r.stack} + {r.local} bytes")
        row = budgets.get(f"{e.family}/{e.variant.kernel}", {})
        most = row.get("registers", {}).get(e.variant.dtype, {}).get(e.arch_name)
        if most is None:
            found.append(f"{what}expected a budget in kernels/budgets.json")
            continue
        if r.registers > most:
            found.append(f"{what}expected at most {most} registers, got {r.registers}")
        if r.shared > row["shared"]:
            found.append(f"{what}expected at most {row['shared']} bytes of shared memory, got {r.shared}")
        least = row.get("occupancy", 0)
        if kernel.occupancy < least:
            found.append(f"{what}expected an occupancy of at least {least}%, got {kernel.occupancy}%")
        found += [f"{what}expected {f} in its code" for f in row.get("sass", ()) if not shows(kernel, f)]
    return found


def shows(kernel: Kernel, feature: str) -> bool:
    stores = feature != "STG.128" or writes_rows(kernel)
    return not stores or any(
        op.startswith(FEATURES[feature]) and op.endswith(("128", "256")) for op in _plain(kernel.resources.opcodes)
    )


def writes_rows(kernel: Kernel) -> bool:
    constants = getattr(kernel.entry.variant, "constants", {})
    return bool(constants.get("GRADIENT", True))


def _plain(opcodes: dict[str, int]) -> list[str]:
    return [op.removesuffix(".CONSTANT") for op in opcodes]


def write(kernels: list[Kernel], path: Path) -> None:
    """The budgets these kernels just meet, to the next 8 registers, which is how they are handed out."""
    budgets: Budgets = {}
    for kernel in kernels:
        e, r = kernel.entry, kernel.resources
        row = budgets.setdefault(
            f"{e.family}/{e.variant.kernel}", {"sass": [], "shared": 0, "occupancy": 100, "registers": {}}
        )
        most = row["registers"].setdefault(e.variant.dtype, {})
        most[e.arch_name] = max(most.get(e.arch_name, 0), -(-r.registers // 8) * 8)
        row["shared"] = max(row["shared"], r.shared)
        row["occupancy"] = min(row["occupancy"], int(kernel.occupancy))
    for name, row in budgets.items():
        own = [k for k in kernels if f"{k.entry.family}/{k.entry.variant.kernel}" == name]
        row["sass"] = [feature for feature in FEATURES if all(shows(k, feature) for k in own)]
    path.write_text(json.dumps(budgets, indent=1) + "\n")
