"""The network's input, and the way back to the scan's own grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import GEOMETRIES, body_array
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from petseg_runtime.errors import InputError, MemoryBudgetError
from petseg_runtime.manifest import ModelManifest
from petseg_runtime.preprocessing import body_threshold, body_threshold_of, onto, preprocess, resample_mask, restore
from petseg_runtime.volume import Geometry, Orientation, Triple, Unit, Volume


def test_the_grid_has_the_manifests_spacing_along_the_patients_axes(volume: Volume, manifest: ModelManifest) -> None:
    network_input = preprocess(volume, manifest.preprocessing)
    extent_mm = (
        np.array([part.stop - part.start for part in network_input.frame.box]) * volume.geometry.canonical_spacing_mm
    )
    assert network_input.array.shape == tuple(np.round(extent_mm / (2.0, 4.0, 4.0)).astype(int))


def test_normalised_over_the_body_before_any_padding(volume: Volume, manifest: ModelManifest) -> None:
    network_input = preprocess(volume, manifest.preprocessing)
    # Air is 0, and the ball of 12 is larger than interpolation reaches: two known values give the scale back.
    per_suv = (network_input.array.max() - network_input.air) / 12.0
    suv = (network_input.array - network_input.air) / per_suv
    body = network_input.array[suv > 0.2]  # a fifth of the body's median, which is 1
    assert body.mean() == pytest.approx(0.0, abs=0.02)
    assert body.std() == pytest.approx(1.0, abs=0.02)


def test_unit_does_not_matter(axial_volume: Volume, manifest: ModelManifest) -> None:
    in_bqml = Volume(axial_volume.array * np.float32(4096.0), axial_volume.geometry, Unit.BQML)
    one, other = (preprocess(v, manifest.preprocessing) for v in (axial_volume, in_bqml))
    np.testing.assert_allclose(one.array, other.array, atol=1e-4)


def test_body_box_leaves_the_air_and_keeps_the_margin(manifest: ModelManifest) -> None:
    geometry = Geometry((40, 60, 60), (4.0, 4.0, 4.0))
    array = np.full(geometry.shape, 0.01, dtype=np.float32)
    array[10:30, 20:40, 15:45] = body_array((20, 20, 30)).clip(0.5)
    array[2, 2, 2] = 5.0  # a single hot voxel in the air is noise
    box = preprocess(Volume(array, geometry), manifest.preprocessing).frame.box
    # 20 mm of margin are five voxels of 4 mm
    assert box == (slice(5, 35), slice(15, 45), slice(10, 50))


@pytest.mark.parametrize("bladder_suv", [5.0, 30.0, 300.0])
@pytest.mark.parametrize("unit", [Unit.SUVBW, Unit.UNKNOWN])
def test_the_body_of_a_scan_cut_around_a_full_bladder_is_its_tissue(
    bladder_suv: float, unit: Unit, manifest: ModelManifest
) -> None:
    """2 l of which a tenth is bladder: its uptake lifts the mean above all tissue, whose median is 0.7."""
    tissue = np.random.default_rng(0).lognormal(np.log(0.7), 0.4, (50, 25, 25)).astype(np.float32)
    tissue[10:25, 5:19, 5:20] = bladder_suv
    volume = Volume(tissue, Geometry(tissue.shape, (4.0, 4.0, 4.0)), unit)
    share = manifest.preprocessing.body_threshold
    threshold, doubtful = body_threshold_of(volume, share)
    assert threshold == pytest.approx(share * 0.7, rel=0.1)
    # Without a unit it is found as well, if the values are SUV, which nothing says. At 5 the mean lies within tissue.
    assert doubtful == (unit is Unit.UNKNOWN and bladder_suv > 5)
    assert preprocess(volume, manifest.preprocessing).body_median == pytest.approx(0.7, rel=0.1)


@pytest.mark.parametrize("scale", [0.001, 0.05])
@pytest.mark.parametrize("bladder_suv", [20.0, 60.0])
@pytest.mark.parametrize("width", [14, 22])  # 28 % of the scan; and 62 %, which no search tells from the body
def test_a_bladder_in_small_numbers_without_a_unit_is_doubtful(
    scale: float, width: int, bladder_suv: float, manifest: ModelManifest
) -> None:
    """As where an image was brought to 0 to 1: the bladder is no brighter than tissue may be, and small."""
    tissue = np.random.default_rng(0).lognormal(np.log(0.7), 0.4, (30, 24, 26)).astype(np.float32)
    tissue[3:28, 1 : 1 + width, 2:24] = bladder_suv
    geometry, share = Geometry(tissue.shape, (4.0, 4.0, 4.0)), manifest.preprocessing.body_threshold
    _, doubtful = body_threshold_of(Volume(tissue * np.float32(scale), geometry), share)
    assert doubtful
    # A cut that holds tissue only has nothing else that could be the body.
    tissue[3:28, 1 : 1 + width, 2:24] = 1.0
    _, doubtful = body_threshold_of(Volume(tissue * np.float32(scale), geometry), share)
    assert not doubtful


@pytest.mark.parametrize(
    ("unit", "scale", "spacing_mm", "doubtful"),
    [
        (Unit.SUVBW, 1.0, 4.0, False),
        (Unit.SUVBW, 20.0, 10.0, True),
        (Unit.UNKNOWN, 1.0, 4.0, True),
        (Unit.UNKNOWN, 1.0, 10.0, False),
        (Unit.BQML, 4096.0, 10.0, False),
        (Unit.UNKNOWN, 20.0, 10.0, False),
        (Unit.UNKNOWN, 4096.0, 4.0, True),
        (Unit.BQML, 4096.0, 4.0, True),
        (Unit.BQML, 40.0, 4.0, True),
    ],
)
def test_a_small_body_in_another_unit_and_a_large_one_are_not_looked_for_in_the_air(
    unit: Unit, scale: float, spacing_mm: float, doubtful: bool, manifest: ModelManifest
) -> None:
    """In Bq/ml, and in grey values, the noise in air may lie where tissue would in SUV."""
    volume = small_body(unit, scale, spacing_mm)
    share = manifest.preprocessing.body_threshold
    assert body_threshold_of(volume, share) == (pytest.approx(scale * share * 0.7, rel=0.1), doubtful)


@pytest.mark.parametrize("scale", [10.0, 20.0, 40.0, 100.0])
def test_where_nothing_tells_a_small_body_from_air_or_a_bladder_that_is_said(
    scale: float, manifest: ModelManifest
) -> None:
    """In grey values of 40 times the SUV, air is as bright as tissue in SUV, and tissue as a bladder."""
    _, doubtful = body_threshold_of(small_body(Unit.UNKNOWN, scale, 4.0), manifest.preprocessing.body_threshold)
    assert doubtful


def small_body(unit: Unit, scale: float, spacing_mm: float) -> Volume:
    """A fifth of 30 x 30 x 30 voxels, in noise; of 4 mm it has 0.38 l, of 10 mm 5.9."""
    rng = np.random.default_rng(0)
    array = rng.lognormal(np.log(0.02), 0.4, (30, 30, 30))
    array[:, 8:22, 8:22] = rng.lognormal(np.log(0.7), 0.4, (30, 14, 14))
    return Volume((scale * array).astype(np.float32), Geometry(array.shape, (spacing_mm,) * 3), unit)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), spread=st.floats(0.1, 4.0), below=st.floats(0.0, 3.0), share=st.floats(0.05, 0.9)
)
def test_the_body_is_what_exceeds_a_share_of_its_own_median(
    seed: int, spread: float, below: float, share: float
) -> None:
    rng = np.random.default_rng(seed)
    array = (rng.lognormal(0.0, spread, int(rng.integers(1, 2000))) - below).astype(np.float32)
    # The definition, word for word: from the mean on, twenty rounds or until it changes by less than a thousandth.
    expected = float(array.mean(dtype=np.float64))
    for _ in range(20):
        body = array[array > expected]
        if body.size == 0:
            break
        previous, expected = expected, share * float(np.median(body))
        if abs(expected - previous) <= 1e-3 * abs(previous):
            break
    assert body_threshold(array, share) == expected


def test_resampling_is_linear_interpolation_at_the_right_places(manifest: ModelManifest) -> None:
    # An independent implementation: SciPy, told where the centres of the new voxels lie.
    geometry = Geometry((20, 24, 22), (3.27, 5.47, 5.47))
    volume = Volume(body_array(geometry.shape).clip(0.5), geometry)
    network_input = preprocess(volume, manifest.preprocessing)
    places = [
        (np.arange(n) + 0.5) * new / old - 0.5
        for n, new, old in zip(network_input.array.shape, (2.0, 4.0, 4.0), geometry.spacing_mm)
    ]
    expected = map_coordinates(volume.array, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")
    mean, std = expected.mean(), expected.std()  # all of it is body
    np.testing.assert_allclose(network_input.array, (expected - mean) / std, atol=1e-3)


def test_what_is_brighter_than_the_ceiling_counts_as_the_ceiling(manifest: ModelManifest) -> None:
    """In medians of the body, so that the unit does not matter. What dims a tumour is the norm over its window."""
    geometry = Geometry((16, 20, 18), (2.0, 4.0, 4.0))
    array = body_array(geometry.shape).clip(0.5)
    array[2:4, 3:5, 3:5] = 60.0  # a vial, or a bladder
    spec, ceiling = manifest.preprocessing, 30.0
    for scale in (1.0, 4096.0):
        volume = Volume(array * np.float32(scale), geometry)
        found = preprocess(volume, replace(spec, ceiling=ceiling))
        clipped = np.minimum(array, ceiling * np.median(array))
        np.testing.assert_allclose(found.array, (clipped - clipped.mean()) / clipped.std(), atol=2e-3)
        assert found.air == pytest.approx(-clipped.mean() / clipped.std(), abs=2e-3)


def turned(degrees: float, axis: int) -> tuple[Triple, Triple, Triple]:
    """Directions `(L, P, S)` of the array axes z, y, x after a turn about L, P or S."""
    left, behind, above = Rotation.from_euler("xyz"[axis], degrees, degrees=True).as_matrix()[:, ::-1].tolist()
    return tuple(left), tuple(behind), tuple(above)


@settings(max_examples=50, deadline=None)
@given(
    degrees=st.floats(-44.0, 44.0),
    axis=st.integers(0, 2),
    shape=st.tuples(*[st.integers(2, 12)] * 3),
    spacing_mm=st.tuples(*[st.floats(0.8, 6.0)] * 3),
    slope=st.tuples(*[st.floats(-3.0, 3.0)] * 3),
)
def test_a_tilted_scan_is_straightened_where_it_lies(
    degrees: float,
    axis: int,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    slope: tuple[float, float, float],
) -> None:
    """Linear interpolation reproduces a function that is linear in the patient: wherever the scan holds a voxel."""
    scan = Geometry(shape, spacing_mm, (-12.5, 40.0, -300.0), turned(degrees, axis))
    straight = scan.straight()
    assert straight.tilt_degrees == 0.0
    assert scan.tilt_degrees == pytest.approx(abs(degrees), abs=1e-4)
    index = np.array(list(np.ndindex(shape)))
    places = (scan.to_lps_mm(index) - np.array(straight.origin_lps_mm))[:, ::-1] / straight.spacing_mm
    assert (places >= -0.5 - 1e-6).all()  # the straight grid holds them all
    assert (places <= np.array(straight.shape) - 0.5 + 1e-3).all()

    def linear(grid: Geometry) -> np.ndarray:
        values = grid.to_lps_mm(np.array(list(np.ndindex(grid.shape)))) @ slope
        return values.reshape(grid.shape).astype(np.float32)

    back = onto(linear(straight), straight, scan)
    inside = ((places >= 0) & (places <= np.array(straight.shape) - 1)).all(axis=1).reshape(shape)
    np.testing.assert_allclose(back[inside], linear(scan)[inside], atol=1e-2, rtol=1e-4)


def test_the_network_sees_a_tilted_patient_straight(manifest: ModelManifest) -> None:
    """The same patient in a straight scan and in one that is turned by 40 degrees about the long axis."""
    straight = Geometry((20, 40, 44), (4.0, 5.0, 5.0), (-107.5, -97.5, 10.0))
    tilted = Geometry((20, 60, 60), (4.0, 5.0, 5.0), direction_lps=turned(40.0, 2))
    centre_mm = straight.to_lps_mm((np.array(straight.shape) - 1) / 2)
    off = centre_mm - tilted.to_lps_mm((np.array(tilted.shape) - 1) / 2)
    tilted = replace(tilted, origin_lps_mm=tuple(off.tolist()))

    def scan(geometry: Geometry) -> Volume:
        left, behind, _ = (geometry.to_lps_mm(np.array(list(np.ndindex(geometry.shape)))) - centre_mm).T
        uptake = np.where((left / 90) ** 2 + (behind / 60) ** 2 < 1, 1.0, 0.0)
        uptake[(left - 30) ** 2 + (behind + 20) ** 2 < 18**2] = 8.0
        return Volume(uptake.reshape(geometry.shape).astype(np.float32), geometry)

    one, other = (preprocess(scan(geometry), manifest.preprocessing) for geometry in (straight, tilted))
    hot = [np.argwhere(found.array > (found.air + found.array.max()) / 2) for found in (one, other)]
    for found, voxels in zip((one, other), hot):
        first = [part.start for part in found.frame.box]
        corner = found.frame.straight.to_lps_mm(np.array(first) - 0.5)[::-1]
        place_mm = corner + (voxels.mean(axis=0) + 0.5) * found.frame.spacing_mm
        np.testing.assert_allclose(place_mm[1:] - centre_mm[::-1][1:], (-20.0, 30.0), atol=1.0)
    assert len(hot[1]) == pytest.approx(len(hot[0]), rel=0.1)


def test_the_share_of_a_side_that_is_body(manifest: ModelManifest) -> None:
    """Body at voxels 10 to 29 of 40 front to back, with five of margin: of the cut side 20 in 30 rows are body."""
    geometry = Geometry((20, 40, 44), (4.0, 4.0, 4.0))
    array = np.full(geometry.shape, 0.01, dtype=np.float32)
    array[:, 10:30, 12:32] = body_array((20, 20, 20)).clip(0.5)
    assert preprocess(Volume(array, geometry), manifest.preprocessing).cut_off == 0.0
    cut = np.ascontiguousarray(array[:, :, 16:])
    for degrees in (0.0, 20.0):  # of its own sides, however they lie
        direction = turned(degrees, 2)
        found = preprocess(
            Volume(cut, Geometry(cut.shape, (4.0, 4.0, 4.0), direction_lps=direction)),
            manifest.preprocessing,
        )
        assert found.cut_off == pytest.approx(20 / 30, abs=0.02)


@pytest.mark.parametrize(("degrees", "straightened"), [(4.9, False), (5.1, True)])
def test_what_is_hardly_tilted_is_taken_as_it_is(
    degrees: float, straightened: bool, axial_volume: Volume, manifest: ModelManifest
) -> None:
    geometry = replace(axial_volume.geometry, direction_lps=turned(degrees, 0))
    one, other = (
        preprocess(volume, manifest.preprocessing)
        for volume in (axial_volume, replace(axial_volume, geometry=geometry))
    )
    assert (other.frame.straight != geometry) == straightened
    if not straightened:
        np.testing.assert_array_equal(one.array, other.array)


def test_a_tilted_scan_of_which_the_straight_one_is_huge_is_refused(manifest: ModelManifest) -> None:
    """A row of voxels along a diagonal has 1e5 of them, and the box round it 1.7e9."""
    geometry = Geometry((1, 1, 100_000), (4.0, 4.0, 4.0), direction_lps=turned(44.0, 2))
    array = np.random.default_rng(0).uniform(1, 2, geometry.shape).astype(np.float32)
    with pytest.raises(MemoryBudgetError, match="Straightened the scan has"):
        preprocess(Volume(array, geometry), manifest.preprocessing)
    tilted = Geometry((20, 60, 60), (4.0, 5.0, 5.0), direction_lps=turned(40.0, 2))
    with pytest.raises(MemoryBudgetError, match="the memory budget is enough for"):
        preprocess(Volume(body_array(tilted.shape), tilted), manifest.preprocessing, max_voxels=50_000)


@pytest.mark.parametrize("kind", [list, np.array])
def test_directions_may_be_a_list_or_an_array(kind: type, axial_volume: Volume, manifest: ModelManifest) -> None:
    geometry = Geometry((24, 30, 32), (4.0, 5.0, 5.0), (-80.0, -70.0, 10.0), kind([[0, 0, 1], [0, 1, 0], [1, 0, 0]]))  # type: ignore[arg-type]
    assert geometry == axial_volume.geometry
    assert hash(geometry) == hash(axial_volume.geometry)


def test_a_mask_comes_back_on_the_scans_own_grid(volume: Volume, manifest: ModelManifest) -> None:
    ball = (volume.array > 6).astype(np.uint8)
    network_input = preprocess(volume, manifest.preprocessing)
    there = resample_mask(ball, network_input.frame)
    back = restore(there.astype(np.float32), network_input.frame) >= 0.5
    assert back.shape == volume.array.shape
    assert 2 * (back & (ball > 0)).sum() / (back.sum() + ball.sum()) > 0.9


def test_the_way_back_is_exact_where_the_grids_agree(manifest: ModelManifest) -> None:
    geometry = Geometry((16, 20, 18), (2.0, 4.0, 4.0), direction_lps=((0, 0, -1), (0, -1, 0), (-1, 0, 0)))
    volume = Volume(body_array(geometry.shape).clip(0.5), geometry)
    network_input = preprocess(volume, manifest.preprocessing)
    values = volume.array[volume.array > 0]
    restored = restore(network_input.array, network_input.frame) * values.std() + values.mean()
    np.testing.assert_allclose(restored, volume.array, atol=1e-3)


@settings(max_examples=50, deadline=None)
@given(
    axes=st.permutations(range(3)),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
)
def test_what_is_written_canonically_lands_in_the_scan(
    axes: list[int], flips: tuple[bool, bool, bool], shape: tuple[int, int, int]
) -> None:
    scan = np.zeros(shape)
    canonical = Orientation((axes[0], axes[1], axes[2]), flips).to_canonical(scan)
    canonical[:] = np.arange(canonical.size).reshape(canonical.shape)
    for index in np.ndindex(canonical.shape):
        place = [0, 0, 0]
        for axis in range(3):
            size = shape[axes[axis]]
            place[axes[axis]] = size - 1 - index[axis] if flips[axis] else index[axis]
        assert scan[tuple(place)] == canonical[index]


@pytest.mark.parametrize("name", sorted(GEOMETRIES))
def test_canonical_axes_run_along_s_p_l(name: str) -> None:
    geometry = GEOMETRIES[name]
    z, y, x = geometry.orientation.axes
    signs = [-1 if flip else 1 for flip in geometry.orientation.flips]
    direction = np.array(geometry.direction_lps)
    # The S part of canonical z, the P part of canonical y and the L part of canonical x are the largest, and positive.
    assert direction[2, z] * signs[0] > 0.7
    assert direction[1, y] * signs[1] > 0.7
    assert direction[0, x] * signs[2] > 0.7


@pytest.mark.parametrize("array", [np.zeros((8, 8, 8)), np.full((8, 8, 8), 3.0)], ids=["zeros", "constant"])
def test_a_scan_without_a_body_is_refused(array: np.ndarray, manifest: ModelManifest) -> None:
    with pytest.raises(InputError, match="no body"):
        preprocess(Volume(array.astype(np.float32), Geometry((8, 8, 8), (4.0, 4.0, 4.0))), manifest.preprocessing)
