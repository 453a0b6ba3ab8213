"""The network's input, and the way back to the scan's own grid."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import GEOMETRIES, body_array
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from petseg_runtime.errors import InputError
from petseg_runtime.manifest import ModelManifest
from petseg_runtime.preprocessing import body_threshold, preprocess, resample_mask, restore
from petseg_runtime.volume import Geometry, Orientation, Unit, Volume


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
