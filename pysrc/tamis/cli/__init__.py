"""The `tamis` command. A command's module is imported when it runs."""

import importlib


def main() -> None:
    import typer

    from .._version import __version__

    def version(wanted: bool) -> None:
        if wanted:
            typer.echo(__version__)
            raise typer.Exit

    app = typer.Typer(no_args_is_help=True, add_completion=False)

    @app.callback()
    def options(
        version: bool = typer.Option(False, "--version", callback=version, is_eager=True, help="Print it and leave."),
    ) -> None:
        """Kernels that compute only what matters."""

    for name in ("doctor", "demo", "bench", "aot", "report", "reproduce"):
        module = importlib.import_module(f"tamis.cli.{name}")
        app.command(name)(getattr(module, name))
    for name in ("data", "ann"):
        app.add_typer(getattr(importlib.import_module(f"tamis.cli.{name}"), name), name=name)
    app(prog_name="tamis")
