"""petseg-export: `onnx` makes a model of a checkpoint, `engine` an engine of it; `verify` compares the backends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from petseg_runtime.errors import UsageError
from petseg_train.cli import print_table, run_app

if TYPE_CHECKING:
    from petseg_export.verify import Agreement

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
console = Console(highlight=False, soft_wrap=True)


@app.command()
def onnx(
    checkpoint: Annotated[Path, typer.Argument(help="last.ckpt of petseg-train fit")],
    volume: Annotated[Path, typer.Option(help="real scan for the parity check")],
    output: Annotated[Path, typer.Option("--output", "-o", help="the .onnx file")] = Path("model.onnx"),
    name: Annotated[str, typer.Option(help="model name in the manifest")] = "petseg",
    version: Annotated[str, typer.Option(help="model version in the manifest")] = "1",
    training: Annotated[Path | None, typer.Option(help="JSON file: data, licence and metrics for the manifest")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace a model that is there")] = False,
) -> None:
    """Export to ONNX with the manifest inside, and check it against PyTorch on a real volume."""
    from petseg_export.to_onnx import export_onnx
    from petseg_export.verify import check_parity
    from petseg_runtime import read_volume
    from petseg_runtime.outputs.files import check_output_file, prepare_folder, remove_leavings, scratch_folder

    check_output_file(output, [checkpoint, volume], overwrite)
    scan = read_volume(volume)
    provenance = _read_record(training) if training else {}
    prepare_folder(output.parent)
    remove_leavings(output.parent)
    with scratch_folder(output.parent) as scratch:  # until it has passed, so that a model that failed is never found
        candidate = scratch / output.name
        module, _ = export_onnx(checkpoint, candidate, name, version, provenance)
        agreement = check_parity(module, candidate, scan, volume.name)
        candidate.replace(output)
    console.print(
        f"{output}: {output.stat().st_size / 1e6:.1f} MB. Parity with PyTorch on {volume.name}: largest probability "
        f"difference {agreement.largest_probability_difference:.1e}, masks identical."
    )


@app.command()
def engine(
    model: Annotated[Path, typer.Argument(help=".onnx file of petseg-export onnx")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="default beside the model, as MODEL.engine")
    ] = None,
    flavour: Annotated[
        str, typer.Option(help="tensorrt_rtx (needs no GPU) or tensorrt (this machine's GPU)")
    ] = "tensorrt_rtx",
    precision: Annotated[str, typer.Option(help="f32, or fp16 with norms, means and head in f32")] = "f32",
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="of a GPU to serve, such as 8.6; repeatable; 7.5 (Turing) alone, in fp16")
    ] = None,
    max_batch: Annotated[int, typer.Option(help="windows at once, at most")] = 1,
) -> None:
    """Build a TensorRT engine with the manifest inside; without a GPU for TensorRT for RTX."""
    from time import perf_counter

    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from petseg_export.to_engine import build_engine
    from petseg_runtime.engine import ENGINE_SUFFIX
    from petseg_runtime.outputs.files import check_output_file

    path = output or model.with_suffix(ENGINE_SUFFIX)
    check_output_file(path, [model], overwrite=True)  # an engine is built anew with each version of TensorRT
    started = perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(phase: str, done: int, count: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase)
            bar.update(tasks[phase], completed=done, total=count)

        info = build_engine(model, path, flavour, precision, compute_capability or (), max_batch, show)
    console.print(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, {info.flavour} {info.version}, {info.precision}, compute "
        f"capability {', '.join(info.compute_capabilities)}, built in {perf_counter() - started:.1f} s."
    )


@app.command()
def verify(
    models: Annotated[list[Path], typer.Argument(help=".onnx files")],
    volume: Annotated[list[Path], typer.Option(help="scan to compare on; repeatable")],
    checkpoint: Annotated[Path | None, typer.Option(help="also run the PyTorch network, as the reference")] = None,
) -> None:
    """Compare every backend and precision of this machine side by side; non-zero exit on drift."""
    from petseg_export.verify import compare, require_agreement, segmenters_of
    from petseg_runtime import read_volume

    agreements = []
    for model in models:
        segmenters, passed_over = segmenters_of(model, checkpoint)
        for reason in passed_over:
            console.print(reason, style="dim")
        for path in volume:
            found = compare(segmenters, read_volume(path), path.name)
            _print_agreements(found)
            agreements += found
    require_agreement(agreements)


def _print_agreements(agreements: list[Agreement]) -> None:
    """Of one model on one volume, whose names may be long."""
    title = f"{agreements[0].model} on {agreements[0].volume}, compared with {agreements[0].reference}"
    table = Table(title=title, title_justify="left")
    for heading in ("backend", "max |Δp|", "DSC", "voxels", "ΔMTV", "ΔTLG", ""):
        table.add_column(heading, no_wrap=True)
    for agreement in agreements:
        table.add_row(
            agreement.backend,
            f"{agreement.largest_probability_difference:.1e}",
            f"{agreement.mask_dsc:.4f}",
            str(agreement.differing_voxels),
            f"{agreement.mtv_difference:.1e}",
            f"{agreement.tlg_difference:.1e}",
            "ok" if agreement.within_tolerance else "DRIFT",
        )
    print_table(table)


def _read_record(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        record = json.loads(path.read_text(), parse_constant=refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--training {path.name} is not a readable JSON file.") from error
    if not isinstance(record, dict):
        raise UsageError(f"--training {path.name} holds a {type(record).__name__}, expected a JSON object.")
    return record


def main() -> None:
    """Run petseg-export; ends with its exit code."""
    run_app(app, "petseg-export")


if __name__ == "__main__":
    main()
