"""The command petseg-export, which says so where its extra is not installed."""

from __future__ import annotations

from petseg_train.command import run


def main() -> None:
    """Run petseg-export; ends with its exit code."""
    run("petseg_export.cli", "export")
