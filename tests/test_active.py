"""Active learning: generated leaves, the network's doubt, and the experiment's bookkeeping."""

import numpy as np
import pytest

from cloudlearn import active
from cloudlearn.active import ACTIVE_ARMS, active_experiment, leaf_picture, uncertainty
from cloudlearn.cli import find_experiment


def test_one_seed_one_picture():
    one, again, other = leaf_picture(5), leaf_picture(5), leaf_picture(6)
    np.testing.assert_array_equal(one.picture, again.picture)
    assert (one.picture != other.picture).any()
    assert one.picture.shape == (64, 96, 3) and one.truth.shape == (1, 64, 96)
    assert leaf_picture(5, (32, 48)).picture.shape == (32, 48, 3)


def test_grounds_come_in_their_shares_and_some_pictures_are_empty():
    leaves = [leaf_picture(seed) for seed in range(200)]
    share = np.mean([leaf.ground == "path" for leaf in leaves])
    assert 0.45 < share < 0.75
    assert 0.08 < np.mean([not leaf.truth.any() for leaf in leaves]) < 0.35


def test_doubt_is_the_mean_entropy_in_bits():
    assert uncertainty(np.full((1, 2, 2), 0.5)) == pytest.approx(1)
    assert uncertainty(np.array([[[0.0, 1.0]]])) == pytest.approx(0, abs=1e-5)
    maps = np.random.default_rng(0).random((3, 2, 4, 5))
    flat = maps.reshape(3, -1)
    expected = -(flat * np.log2(flat) + (1 - flat) * np.log2(1 - flat)).mean(axis=1)
    np.testing.assert_allclose(uncertainty(maps), expected)


def test_the_arms_differ_in_the_five_alone(monkeypatch):
    "A stand-in for training writes down what it was given; its doubt grows with brightness."
    seen = []

    def stand_in(folder, out, epochs, seed):
        parts = {
            part: sorted(path.stem for path in (folder / "images" / part).iterdir())
            for part in ("train", "valid", "test")
        }
        seen.append((seed, epochs, parts))

        def answer(picture):
            share = picture.mean() / 512  # 0 to a half
            return np.full((1, 64, 96), share), np.zeros((1, 64, 96), bool)

        return answer

    monkeypatch.setattr(active, "_train_leaves", stand_in)
    table = active_experiment(seeds=(3,), pool=20, test=2)
    assert list(table["arm"].unique()) == list(ACTIVE_ARMS) and len(table) == 6
    ten, uncertain, drawn = (parts for _, _, parts in seen)
    assert ten["train"] == [f"{number:03d}" for number in range(6)]
    assert all(parts["valid"] == ["006", "007"] for parts in (ten, uncertain, drawn))
    bright = [leaf_picture(3000 + number).picture.mean() for number in range(10, 20)]
    brightest = sorted(f"{10 + number:03d}" for number in np.argsort(bright)[-5:])
    assert uncertain["train"][6:] == brightest
    assert len(set(drawn["train"])) == 11 and set(drawn["train"][6:]) <= {
        f"{number:03d}" for number in range(10, 20)
    }


def test_the_command_knows_it():
    assert find_experiment("active") is active_experiment
