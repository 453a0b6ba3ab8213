"""Outlines of a mask's slices as closed polygons. Pure NumPy, but for the components."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

Polygon = npt.NDArray[np.float64]

# The corners of a cell between four pixels, clockwise from the top left, count 1, 2, 4 and 8 where they are inside.
# For each sum, the pairs of cell sides (0 top, 1 right, 2 bottom, 3 left) that the outline joins. Where two inside
# corners face each other diagonally they stay apart, as pixels of a component share an edge.
_JOINS: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((3, 0),),
    2: ((0, 1),),
    3: ((3, 1),),
    4: ((1, 2),),
    5: ((3, 0), (1, 2)),
    6: ((0, 2),),
    7: ((3, 2),),
    8: ((2, 3),),
    9: ((0, 2),),
    10: ((0, 1), (2, 3)),
    11: ((1, 2),),
    12: ((1, 3),),
    13: ((0, 1),),
    14: ((3, 0),),
}
# Where the middle of a side lies, in half pixels from the cell's top left pixel (rows, columns).
_MIDDLES = np.array([(0, 1), (1, 2), (2, 1), (1, 0)])


def outlines(mask: npt.NDArray[np.generic]) -> list[Polygon]:
    """Closed polygons round what is not zero in a slice `(y, x)`, vertices `(n, 2)` as rows and columns in pixels.

    The outline runs halfway between pixels inside and outside, so it holds the centres of exactly the pixels inside.
    Each polygon is one set of pixels that share edges. Its holes are joined to it by cuts of no width (the keyhole of
    PS3.3 C.8.8.6.3), so that readers that add polygons and readers that subtract them find the same.
    """
    components = sitk.GetArrayFromImage(
        sitk.ConnectedComponent(sitk.GetImageFromArray(np.ascontiguousarray(mask != 0, np.uint8)), False)
    )
    return [_corners(_joined(_loops(components == number))) for number in range(1, int(components.max()) + 1)]


def _loops(inside: npt.NDArray[np.bool_]) -> list[Polygon]:
    """Every closed line between inside and outside."""
    padded = np.pad(inside, 1).astype(np.intp)
    code = padded[:-1, :-1] + 2 * padded[:-1, 1:] + 4 * padded[1:, 1:] + 8 * padded[1:, :-1]
    neighbours: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for value, joins in _JOINS.items():
        corners = 2 * (np.argwhere(code == value) - 1)
        for first, second in joins:
            for (row, column), (next_row, next_column) in zip(
                (corners + _MIDDLES[first]).tolist(), (corners + _MIDDLES[second]).tolist()
            ):
                neighbours.setdefault((row, column), []).append((next_row, next_column))
                neighbours.setdefault((next_row, next_column), []).append((row, column))
    loops = []
    while neighbours:
        start = next(iter(neighbours))
        loop, here = [start], neighbours.pop(start)[0]
        while here != start:
            one, two = neighbours.pop(here)
            before = loop[-1]
            loop.append(here)
            here = two if one == before else one
        loops.append(np.array(loop) / 2)
    return loops


def _joined(loops: list[Polygon]) -> Polygon:
    """The outer loop with its holes cut open to it; they run the other way round, for readers that count windings."""
    outer, *holes = sorted(loops, key=lambda loop: abs(_area(loop)), reverse=True)
    outer = outer if _area(outer) > 0 else outer[::-1]
    for hole in (loop if _area(loop) < 0 else loop[::-1] for loop in holes):
        at, start = _cut(outer, hole)
        around = np.roll(hole, -start, axis=0)
        outer = np.concatenate([outer[: at + 1], around, around[:1], outer[at:]])
    return outer


def _corners(polygon: Polygon) -> Polygon:
    """The polygon without the vertices that it passes straight through."""
    before, after = polygon - np.roll(polygon, 1, axis=0), np.roll(polygon, -1, axis=0) - polygon
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    returns = (before * after).sum(axis=1) <= 0  # the ends of a cut
    kept: Polygon = polygon[turns | returns]
    return kept


def _cut(outer: Polygon, hole: Polygon) -> tuple[int, int]:
    """The nearest vertices of the two whose connection runs through no pixel's centre."""
    apart = ((outer[:, None] - hole) ** 2).sum(axis=-1)
    for flat in np.argsort(apart, axis=None).tolist():
        at, start = divmod(flat, len(hole))
        halves = np.rint(2 * np.array([outer[at], hole[start]])).astype(int)
        steps = int(np.gcd(*(halves[1] - halves[0])))
        between = halves[0] + np.outer(np.arange(steps + 1), (halves[1] - halves[0]) // max(steps, 1))
        if (between % 2 != 0).any(axis=1).all():
            return at, start
    raise AssertionError("vertices lie between pixels, so some connection does too")


def _area(polygon: Polygon) -> float:
    """In pixels, with a sign that tells which way round the polygon runs."""
    rows, columns = polygon.T
    return float(rows @ np.roll(columns, 1) - columns @ np.roll(rows, 1)) / 2
