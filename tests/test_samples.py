"""The one sample shape: sets are taken apart and laid together without a row going astray."""

import numpy as np
import pytest

from cloudlearn.samples import Samples, join, pick


def made_up(seed, count=6):
    rng = np.random.default_rng(seed)
    names = np.array([f"{seed}-{row}" for row in range(count)])
    pictures = rng.integers(0, 256, (count, 4, 6, 3), dtype=np.uint8)
    return Samples(
        names, pictures, rng.random((count, 2, 4, 6)) < 0.3, rng.random((count, 2)) < 0.7
    )


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
