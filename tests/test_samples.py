"""The one sample shape: sets are taken apart and laid together without a row going astray."""

import numpy as np
import pytest

from cloudlearn.samples import Samples, all_known, join, pick


def made_up(seed, count=6):
    rng = np.random.default_rng(seed)
    names = np.array([f"{seed}-{row}" for row in range(count)])
    pictures = rng.integers(0, 256, (count, 4, 6, 3), dtype=np.uint8)
    masks, known = rng.random((count, 2, 4, 6)) < 0.3, rng.random((count, 2)) < 0.7
    return Samples(names, pictures, masks, known, rng.random((count, 2)) < 0.5)


@pytest.mark.parametrize(
    "rows",
    [np.array([3, 0, 0]), slice(1, 4), np.arange(6) % 2 == 0, np.array([], int)],
    ids=["indices", "slice", "mask", "none"],
)
def test_pick_takes_the_same_rows_of_every_part(rows):
    samples = made_up(1)
    for part, whole in zip(pick(samples, rows), samples, strict=True):
        np.testing.assert_array_equal(part, whole[rows])


def test_joined_and_picked_apart_again():
    sets = [made_up(seed, count) for seed, count in ((1, 3), (2, 1), (3, 4))]
    joined, start = join(*sets), 0
    for one in sets:
        end = start + len(one.names)
        for part, whole in zip(pick(joined, slice(start, end)), one, strict=True):
            np.testing.assert_array_equal(part, whole)
        start = end
    assert start == len(joined.names) == 8


def test_sets_without_masks_or_without_labels():
    one = made_up(1)
    xrays = all_known(one.names, one.pictures, labels=one.labels)
    clouds = all_known(one.names, one.pictures, masks=one.masks)
    assert xrays.known.shape == clouds.known.shape == (6, 2)
    assert xrays.known.all() and clouds.known.all()
    assert pick(xrays, [2, 0]).masks is None and join(xrays, xrays).masks is None
    np.testing.assert_array_equal(pick(xrays, [2, 0]).labels, one.labels[[2, 0]])
    np.testing.assert_array_equal(join(clouds, clouds).masks[6:], one.masks)
    with pytest.raises(ValueError, match="1 of 2 sets have no masks"):
        join(one, xrays)
    with pytest.raises(ValueError, match="1 of 3 sets have no labels"):
        join(one, clouds, one)
