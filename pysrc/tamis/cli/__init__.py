"""The `tamis` command. A command's module is imported when it runs."""

import importlib


def main() -> None:
    import typer

    app = typer.Typer(help="Kernels that compute only what matters.", no_args_is_help=True, add_completion=False)
    for name in ("doctor", "demo", "bench", "aot", "report"):
        module = importlib.import_module(f"tamis.cli.{name}")
        app.command(name)(getattr(module, name))
    app(prog_name="tamis")
