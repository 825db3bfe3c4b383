"""Car photos in memory: photos in which nothing was found, and scenes as samples."""

import numpy as np
import pytest

from cloudlearn.cars.data import leave_out_empty, scene_arrays
from cloudlearn.samples import Samples
from cloudlearn.scenes.cars import car_scene


def sets(seed, count=9):
    rng = np.random.default_rng(seed)
    labelled = rng.random((count, 3)) < 0.6
    masks = (rng.random((count, 3, 4, 6)) < 0.2) & (rng.random((count, 3, 1, 1)) < 0.5)
    masks &= labelled[..., None, None]
    return Samples(
        np.array([f"p{row}" for row in range(count)]),
        rng.integers(0, 255, (count, 4, 6, 3), np.uint8),
        masks,
        labelled,
    )


@pytest.mark.parametrize("seed", range(5))
def test_leave_out_empty_equals_a_loop(seed):
    arrays = sets(seed)
    want = []
    for row in range(9):
        planes = zip(arrays.known[row], arrays.masks[row])
        if any(known and mask.any() for known, mask in planes):
            want.append(row)
    kept = leave_out_empty(arrays)
    assert 0 < len(want) < 9
    for part, full in zip(kept[:4], arrays):
        np.testing.assert_array_equal(part, full[want])


def test_a_pixel_in_an_unknown_plane_keeps_nothing():
    arrays = Samples(
        np.array(["a", "b"]),
        np.zeros((2, 2, 2, 3), np.uint8),
        np.zeros((2, 3, 2, 2), bool),
        np.array([[1, 1, 0], [1, 1, 0]], bool),
    )
    arrays.masks[0, 2] = arrays.masks[1, 1, 1, 1] = True
    assert leave_out_empty(arrays).names.tolist() == ["b"]


def test_scene_arrays_are_the_scenes():
    arrays = scene_arrays([3, 1], "gap", (48, 72), gap=0.05, style="wide")
    for row, seed in enumerate((3, 1)):
        scene = car_scene(seed, "gap", (48, 72), gap=0.05, style="wide")
        for part, want in zip(arrays[1:], (scene.picture, scene.masks, scene.labelled)):
            np.testing.assert_array_equal(part[row], want)
    assert arrays.names.tolist() == ["gap-3", "gap-1"]
    assert arrays.known.tolist() == [[False, False, True]] * 2
