"""The command petseg-train, which says so where its extra is not installed."""

from __future__ import annotations

import sys
from importlib import import_module


def main() -> None:
    """Run petseg-train; ends with its exit code."""
    run("petseg_train.cli", "train")


def run(module: str, extra: str) -> None:
    """Run the command line of a module that needs an extra of the project."""
    try:
        command = import_module(module).main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("petseg"):
            raise
        print(f"petseg-{extra} needs {error.name}, of an extra: pip install 'petseg[{extra}]'.", file=sys.stderr)
        sys.exit(2)
    command()
