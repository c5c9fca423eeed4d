"""docs/ops.md, made from schemas and docstrings: `python -m tamis.docs [FILE]`."""

import inspect
import sys
import textwrap
from pathlib import Path

import torch

import tamis

FAMILIES = {"ann": tamis.ann, "distill": tamis.distill, "sampling": tamis.sampling, "sparse_mlp": tamis.sparse_mlp}


def page() -> str:
    """Markdown: each public function's signature and docstring, and its raw op's schema."""
    parts = [
        "# Ops\n\nMade by `make docs` from schemas and docstrings. Raw ops have the function's arguments in its\n"
        "order, without `impl`; a number or a tensor is a tensor there.\n"
    ]
    for family, module in FAMILIES.items():
        parts.append(f"## tamis.{family}\n")
        for name in module.__all__:
            value = getattr(module, name)
            doc = inspect.cleandoc(value.__doc__ or "")
            if hasattr(value, "_fields"):
                parts.append(f"### {name}\n\n{doc}\n\nFields: {', '.join(f'`{field}`' for field in value._fields)}.\n")
                continue
            parameters = [str(parameter) for parameter in inspect.signature(value).parameters.values()]
            lines = textwrap.fill(", ".join(parameters), 110, initial_indent="    ", subsequent_indent="    ")
            parts.append(f"### {name}\n\n```\n{name}(\n{lines}\n)\n\n{doc}\n```\n")
            if hasattr(torch.ops.tamis, name):
                schema = str(getattr(torch.ops.tamis, name).default._schema)
                parts.append(f"Raw op:\n\n```\n{textwrap.fill(schema, 118, subsequent_indent='    ')}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(page())
    else:
        sys.stdout.write(page())
