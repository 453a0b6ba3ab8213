"""One page for the physician: what was found in a scan, what it was found with, and a place to accept or reject it.

The page is one HTML file that loads nothing from elsewhere, and prints on A4 and letter paper.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from petseg_runtime import __version__
from petseg_runtime.manifest import ModelManifest
from petseg_runtime.outputs.files import whole_file
from petseg_runtime.outputs.preview import RgbArray, as_png, render_lesion, render_preview
from petseg_runtime.quantification import RegionStatistics, ScanStatistics
from petseg_runtime.segmentation import Segmentation
from petseg_runtime.volume import Unit, Volume

_PICTURED_LESIONS = 6
_BARS = 30
_CAUTION = "For research only. Not a medical device; not for diagnosis or treatment."

# Columns of the lesions' table: heading, field, decimals.
_COLUMNS = (
    ("MTV, ml", "mtv_ml", 1),
    ("SUVmax", "suv_max", 2),
    ("SUVpeak", "suv_peak", 2),
    ("SUVmean", "suv_mean", 2),
    ("TLG, g", "tlg_g", 1),
    ("41 % volume, ml", "mtv_41_ml", 1),
    ("SUV 2.5 volume, ml", "mtv_suv25_ml", 1),
    ("diameter, mm", "diameter_mm", 0),
    ("to the edge, mm", "edge_mm", 0),
    ("probability", "mean_probability", 2),
)


@dataclass(frozen=True)
class IndexedScan:
    """A scan of the index: its name, quantities, number of warnings, and page relative to the index (None: none)."""

    name: str
    statistics: ScanStatistics
    warnings: int
    page: str | None


def write_report(
    name: str,
    volume: Volume,
    segmentation: Segmentation,
    manifest: ModelManifest,
    record: dict[str, Any],
    path: Path,
) -> None:
    """Write the page of one scan.

    Parameters
    ----------
    name : of the scan, as its files have it; the page names no patient.
    record : content of `_run.json`, see `records.run_record`.
    """
    statistics = segmentation.statistics
    sections = [
        _head(name, record),
        _warnings(record["warnings"]),
        _tiles(statistics),
        _figure(
            render_preview(volume, segmentation.mask, cut=True),
            "Maximum-intensity projections; red: outline of the mask.",
        ),
        "<h2>Lesions</h2>",
        _table(statistics),
        *(
            _figure(
                render_lesion(volume, segmentation.lesion_labels, lesion.label),
                f"Lesion {lesion.label}: slices through its hottest voxel.",
            )
            for lesion in statistics.lesions[:_PICTURED_LESIONS]
        ),
        _histogram(volume, segmentation),
        "<h2>Where the numbers come from</h2>",
        "".join(f"<p>{escape(text)}</p>" for text in record["decisions"]),
        _model(manifest, record),
        _review(),
    ]
    _write_page(f"PETSeg: {name}", sections, path)


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
        numbers = [(tumour.mtv_ml, 1), (tumour.suv_max, 2), (tumour.suv_peak, 2), (tumour.tlg_g, 1)]
        quantities = [_number(value, decimals) for value, decimals in numbers]
        body.append([shown, str(scan.statistics.lesion_count), *quantities, str(scan.warnings)])
    refused = [[escape(name), escape(reason)] for name, reason in failures]
    sections = [
        f"<h1>PETSeg: {len(scans) + len(failures)} scans</h1>",
        f'<p class="caution">{_CAUTION}</p>',
        _rows(head, body),
        *(["<h2>Refused</h2>", _rows(["scan", "reason"], refused)] if refused else []),
    ]
    _write_page("PETSeg: results", sections, path)


def _head(name: str, record: dict[str, Any]) -> str:
    when = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return (
        f'<h1>{escape(name)}</h1><p class="caution">{_CAUTION}</p><p>Outlined {when} by PETSeg {__version__} on '
        f"{escape(record['device'].upper())}.</p>"
    )


def _warnings(warnings: Iterable[str]) -> str:
    lines = "".join(f"<p>{escape(text)}</p>" for text in warnings)
    return f'<div class="warnings">{lines}</div>' if lines else ""


def _tiles(statistics: ScanStatistics) -> str:
    tumour = statistics.tumour
    values = [
        ("lesions", str(statistics.lesion_count)),
        ("MTV, ml", _number(tumour.mtv_ml, 1)),
        ("SUVmax", _number(tumour.suv_max, 2)),
        ("SUVpeak", _number(tumour.suv_peak, 2)),
        ("TLG, g", _number(tumour.tlg_g, 1)),
        ("Dmax, mm", _number(statistics.dmax_mm, 0)),
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
        [name, *(_number(getattr(region, field, None), decimals) for _, field, decimals in _COLUMNS)]
        for name, region in [*regions, ("all", statistics.tumour)]
    ]
    return _rows(["lesion", *(heading for heading, _, _ in _COLUMNS)], rows)


def _histogram(volume: Volume, segmentation: Segmentation) -> str:
    """Volume of the tumour by uptake, as bars drawn in place."""
    values = volume.array[segmentation.mask > 0]
    if not len(values):
        return ""
    counts, edges = np.histogram(values, bins=_BARS, range=(min(0.0, float(values.min())), float(values.max()) or 1.0))
    volumes_ml = counts * volume.geometry.voxel_volume_ml
    step, height, left = 20, 160, 60
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
        ("SHA-256", record["model"]["sha256"]),
        *((key, training[key]) for key in ("data", "field_of_view", "licence") if key in training),
        *training.get("metrics", {}).items(),
        *((key, "none" if value == [] else value) for key, value in record["settings"].items()),
        ("runtime", f"PETSeg {record['petseg_version']}, Python {record['python_version']}, {record['backend']}"),
    ]
    return "<h2>Model and software</h2>" + _definitions(entries)


def _review() -> str:
    return (
        '<h2>Review</h2><form class="review"><p><label><input type="checkbox"> accepted</label>'
        '<label><input type="checkbox"> accepted with changes</label>'
        '<label><input type="checkbox"> rejected</label></p>'
        '<label class="line">Remarks <textarea rows="3"></textarea></label>'
        '<label class="line">Name, date, signature <input type="text"></label></form>'
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


def _rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table; the cells of `body` are HTML already."""
    headings = "".join(f"<th>{escape(text)}</th>" for text in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body)
    return f"<table><thead><tr>{headings}</tr></thead><tbody>{lines}</tbody></table>"


def _number(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:.{decimals}f}"


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
