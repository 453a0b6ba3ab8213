"""One page for the physician: what was found in a scan, what it was found with, and a place to accept or reject it.

The page is one HTML file that loads nothing from elsewhere, and prints on A4 and letter paper.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from petseg_runtime import __version__
from petseg_runtime.manifest import ModelManifest
from petseg_runtime.outputs.files import whole_file
from petseg_runtime.outputs.numbers import amount, number
from petseg_runtime.outputs.preview import RgbArray, as_png, grey_window, render_lesion, render_preview
from petseg_runtime.quantification import RegionStatistics, ScanStatistics
from petseg_runtime.segmentation import Segmentation
from petseg_runtime.volume import Unit, Volume

_PICTURED_LESIONS = 6
_BARS = 30
_CAUTION = "For research only. Not a medical device; not for diagnosis or treatment."

_whole = partial(number, decimals=0)
_fine = partial(number, decimals=2)

# Columns of the lesions' table: heading, field, how it is written.
_COLUMNS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("MTV, ml", "mtv_ml", amount),
    ("SUVmax", "suv_max", _fine),
    ("SUVpeak", "suv_peak", _fine),
    ("SUVmean", "suv_mean", _fine),
    ("TLG, g", "tlg_g", amount),
    ("41 % volume, ml", "mtv_41_ml", amount),
    ("SUV 2.5 volume, ml", "mtv_suv25_ml", amount),
    ("diameter, mm", "diameter_mm", _whole),
    ("to the edge, mm", "edge_mm", _whole),
    ("probability", "mean_probability", _fine),
)


@dataclass(frozen=True)
class IndexedScan:
    """A scan of the index: its name, quantities, number of warnings, and page relative to the index (None: none)."""

    name: str
    statistics: ScanStatistics
    warnings: int
    page: str | None


def write_report(
    label: str,
    volume: Volume,
    segmentation: Segmentation,
    manifest: ModelManifest,
    record: dict[str, Any],
    path: Path,
) -> None:
    """Write the page of one scan.

    Parameters
    ----------
    label : of the scan: its folder and name, which tell it from others of the same name.
    record : content of `_run.json`, see `records.run_record`; only its `identity`, where asked for, names a patient.
    """
    statistics, window = segmentation.statistics, grey_window(volume)
    sections = [
        _head(label, record),
        _warnings(record["warnings"]),
        _tiles(statistics),
        _figure(
            render_preview(volume, segmentation.mask, cut=True),
            f"Maximum-intensity projections: {window}. Red: outline of the mask.",
        ),
        "<h2>Lesions</h2>",
        _table(statistics),
        *(
            _figure(
                render_lesion(volume, segmentation.lesion_labels, lesion.label),
                f"Lesion {lesion.label}: slices through its hottest voxel, {window}. Red: its outline; blue: others'.",
            )
            for lesion in statistics.lesions[:_PICTURED_LESIONS]
        ),
        _not_pictured(statistics),
        _histogram(volume, segmentation),
        "<h2>Where the numbers come from</h2>",
        "".join(f"<p>{escape(text)}</p>" for text in record["decisions"]),
        _model(manifest, record),
        _review(label),
    ]
    _write_page(f"PETSeg: {label}", sections, path)


def write_index(scans: Sequence[IndexedScan], failures: Sequence[tuple[str, str]], path: Path) -> None:
    """Write the page of a folder of scans: each with its quantities and a link to its own page.

    Parameters
    ----------
    failures : name and reason of each scan that was refused.
    """
    head = ["scan", "lesions", "MTV, ml", "SUVmax", "SUVpeak", "TLG, g", "warnings"]
    body = []
    for scan in scans:
        tumour, name = scan.statistics.tumour, escape(scan.name)
        shown = name if scan.page is None else f'<a href="{escape(quote(scan.page), quote=True)}">{name}</a>'
        quantities = [amount(tumour.mtv_ml), _fine(tumour.suv_max), _fine(tumour.suv_peak), amount(tumour.tlg_g)]
        body.append([shown, str(scan.statistics.lesion_count), *quantities, str(scan.warnings)])
    refused = [[escape(name), escape(reason)] for name, reason in failures]
    sections = [
        f"<h1>PETSeg: {len(scans) + len(failures)} scans</h1>",
        f'<p class="caution">{_CAUTION}</p>',
        _rows(head, body),
        *(["<h2>Refused</h2>", _rows(["scan", "reason"], refused, "refused")] if refused else []),
    ]
    _write_page("PETSeg: results", sections, path)


def _head(label: str, record: dict[str, Any]) -> str:
    identity = [(keyword, value) for keyword, value in record.get("identity", {}).items() if value]
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return (
        f'<h1>{escape(label)}</h1><p class="caution">{_CAUTION}</p><p>Outlined {when} by PETSeg {__version__} on '
        f"{escape(record['device'].upper())}.</p>" + (_definitions(identity) if identity else "")
    )


def _warnings(warnings: Iterable[str]) -> str:
    lines = "".join(f"<p>{escape(text)}</p>" for text in warnings)
    return f'<div class="warnings">{lines}</div>' if lines else ""


def _tiles(statistics: ScanStatistics) -> str:
    tumour = statistics.tumour
    values = [
        ("lesions", str(statistics.lesion_count)),
        ("MTV, ml", amount(tumour.mtv_ml)),
        ("SUVmax", _fine(tumour.suv_max)),
        ("SUVpeak", _fine(tumour.suv_peak)),
        ("TLG, g", amount(tumour.tlg_g)),
        ("Dmax, mm", _whole(statistics.dmax_mm)),
    ]
    return (
        '<ul class="tiles">'
        + "".join(f"<li><b>{value}</b><span>{what}</span></li>" for what, value in values)
        + "</ul>"
    )


def _table(statistics: ScanStatistics) -> str:
    if not statistics.lesions:
        return "<p>No tumour was found.</p>"
    regions: list[tuple[str, RegionStatistics]] = [(str(lesion.label), lesion) for lesion in statistics.lesions]
    rows = [
        [name, *(written(getattr(region, field, None)) for _, field, written in _COLUMNS)]
        for name, region in [*regions, ("all", statistics.tumour)]
    ]
    return _rows(["lesion", *(heading for heading, _, _ in _COLUMNS)], rows)


def _not_pictured(statistics: ScanStatistics) -> str:
    if statistics.lesion_count <= _PICTURED_LESIONS:
        return ""
    return f"<p>Pictured are the {_PICTURED_LESIONS} largest of {statistics.lesion_count} lesions.</p>"


def _histogram(volume: Volume, segmentation: Segmentation) -> str:
    """Volume of the tumour by uptake, as bars drawn in place."""
    values = volume.array[segmentation.mask > 0]
    if not len(values):
        return ""
    counts, edges = np.histogram(values, bins=_BARS, range=(min(0.0, float(values.min())), float(values.max()) or 1.0))
    volumes_ml = counts * volume.geometry.voxel_volume_ml
    step, height, left = 20, 160, 90  # left of the bars is room for a volume as 4.99e-05 ml
    bars = "".join(
        f'<rect x="{left + k * step}" y="{10 + height * (1 - ml / volumes_ml.max()):.1f}" width="{step - 2}" '
        f'height="{height * ml / volumes_ml.max():.1f}" fill="#b3202f"/>'
        for k, ml in enumerate(volumes_ml)
    )
    ticks = "".join(
        f'<text x="{left + k * step}" y="{height + 28}" text-anchor="middle">{edges[k]:.3g}</text>'
        for k in range(0, _BARS + 1, 5)
    )
    what = {Unit.SUVBW: "SUVbw, g/ml", Unit.BQML: "Bq/ml"}.get(volume.unit, "the scan's own unit")
    return (
        f'<figure><svg viewBox="0 0 {left + _BARS * step + 40} {height + 54}" role="img" aria-label="Uptake" '
        'font-family="inherit" font-size="13" fill="#55606e">'
        f'<line x1="{left}" y1="{height + 10.5}" x2="{left + _BARS * step}" y2="{height + 10.5}" stroke="#55606e"/>'
        f'{bars}{ticks}<text x="{left - 6}" y="20" text-anchor="end">{volumes_ml.max():.3g} ml</text>'
        f'<text x="{left + _BARS * step / 2}" y="{height + 48}" text-anchor="middle">{what}</text></svg>'
        "<figcaption>Volume of the tumour by uptake.</figcaption></figure>"
    )


def _model(manifest: ModelManifest, record: dict[str, Any]) -> str:
    training = manifest.training
    entries = [
        ("model", f"{manifest.name}, version {manifest.version}"),
        ("model SHA-256", record["model"]["sha256"]),
        ("input SHA-256", record["input_sha256"]),
        *((key, training[key]) for key in ("data", "field_of_view", "licence") if key in training),
        *training.get("metrics", {}).items(),
        *((key, "none" if value == [] else value) for key, value in record["settings"].items()),
        ("runtime", f"PETSeg {record['petseg_version']}, Python {record['python_version']}, {record['backend']}"),
    ]
    return "<h2>Scan, model and software</h2>" + _definitions(entries)


def _review(label: str) -> str:
    """The scan is named again: the box may be printed on a sheet of its own."""
    verdicts = "".join(
        f'<label><input type="radio" name="verdict"> {verdict}</label>'
        for verdict in ("accepted", "accepted with changes", "rejected")
    )
    return (
        f'<section class="whole"><h2>Review of {escape(label)}</h2><form class="review"><p>{verdicts}</p>'
        '<label class="line">Remarks <textarea rows="3"></textarea></label>'
        '<label class="line">Name, date, signature <input type="text"></label></form></section>'
    )


def _figure(picture: RgbArray, caption: str) -> str:
    data = base64.b64encode(as_png(picture)).decode()
    text = escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _definitions(entries: Iterable[tuple[str, object]]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>" for key, value in entries)
        + "</dl>"
    )


def _rows(head: Sequence[str], body: Sequence[Sequence[str]], kind: str = "numbers") -> str:
    """A table, `kind` its class; the cells of `body` are HTML already."""
    headings = "".join(f"<th>{escape(text)}</th>" for text in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body)
    return f'<table class="{kind}"><thead><tr>{headings}</tr></thead><tbody>{lines}</tbody></table>'


def _write_page(title: str, sections: Iterable[str], path: Path) -> None:
    # The policy makes the promise of the docstring hold, whatever a name or message contains.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    style = (files("petseg_runtime.outputs") / "report.css").read_text(encoding="utf-8")
    page = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head><body>'
        + "\n".join(sections)
        + "</body></html>\n"
    )
    with whole_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
