"cloudlearn.evidence: intervals over seeds and pictures, gains in pairs, verdicts, records."

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudlearn.evidence import paired_gain, read_result, run_experiment, seed_interval, verdict


def table(seed=0, seeds=3, pictures=6, classes=("a", "b"), gain=0.1):
    rng, rows, bonus = np.random.default_rng(seed), [], {"old": 0, "new": gain}
    for s, arm, p, c in itertools.product(range(seeds), bonus, range(pictures), classes):
        row = {"seed": s, "arm": arm, "picture": p, "class": c}
        rows.append(row | {"dice": rng.random() + bonus[arm]})
    return pd.DataFrame(rows)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 6))
def test_the_interval_holds_the_mean_and_shifts_with_the_numbers(seed, seeds, pictures):
    frame = table(seed, seeds, pictures)
    low, high = seed_interval(frame, draws=300)
    assert low <= frame["dice"].mean() + 0.5 and high >= frame["dice"].mean() - 0.5 and low <= high
    moved = seed_interval(frame.assign(dice=frame["dice"] + 7), draws=300)
    assert moved == pytest.approx((low + 7, high + 7))
    # the order of rows is nothing
    shuffled = frame.sample(frac=1, random_state=1)
    assert seed_interval(shuffled, draws=300) == pytest.approx((low, high))


def test_seeds_are_resampled_and_pictures_stay_whole():
    apart = pd.DataFrame(dict(seed=[0, 0, 1, 1], picture=[0, 1, 0, 1], dice=[0.0, 0.0, 1.0, 1.0]))
    assert seed_interval(apart) == (0.0, 1.0)  # a world of one seed alone is possible
    alike = pd.DataFrame(dict(seed=[0, 0], picture=[3, 3], dice=[0.0, 1.0]))
    assert seed_interval(alike) == (0.5, 0.5)  # one picture: its two rows are never torn apart
    steady = pd.DataFrame(dict(seed=[0, 1, 2], dice=[0.4, 0.4, 0.4]))
    assert seed_interval(steady) == pytest.approx((0.4, 0.4))


def test_rows_without_a_number_are_left_out():
    frame = table()
    frame.loc[::3, "dice"] = np.nan
    assert seed_interval(frame) == seed_interval(frame.dropna())
    with pytest.raises(ValueError, match="no row has a dice"):
        seed_interval(frame.assign(dice=np.nan))
    with pytest.raises(ValueError, match="columns seed and iou"):
        seed_interval(frame, "iou")
    with pytest.raises(ValueError, match="share in"):
        seed_interval(frame, level=95)


@pytest.mark.parametrize("seed", range(4))
def test_gain_is_the_mean_difference_of_pairs(seed):
    frame = table(seed)
    gain = paired_gain(frame, "new", "old")
    means = frame.groupby("arm")["dice"].mean()
    assert gain["gain"] == pytest.approx(means["new"] - means["old"])
    assert gain["seeds"] == 3
    assert gain["rows"] == 36
    back = paired_gain(frame, "old", "new")
    assert back["gain"] == pytest.approx(-gain["gain"])
    assert (back["low"], back["high"]) == pytest.approx((-gain["high"], -gain["low"]), abs=0.03)
    exact = frame.assign(dice=frame["picture"] + 0.25 * (frame["arm"] == "new"))
    # difficulty of pictures cancels
    assert paired_gain(exact, "new", "old")["low"] == pytest.approx(0.25)


def test_what_is_no_pair_is_refused():
    frame = table()
    with pytest.raises(ValueError, match="there are old, new"):
        paired_gain(frame, "newest", "old")
    with pytest.raises(ValueError, match="not scored on the same seed, picture, class"):
        paired_gain(frame.drop(index=0), "new", "old")
    with pytest.raises(ValueError, match="two rows for one seed, picture, class"):
        paired_gain(pd.concat([frame, frame[:1]]), "old", "new")


@pytest.mark.parametrize(
    "low, high, says",
    [
        (0.1, 0.2, "reproduced"),
        (0.0, 0.2, "not reproduced: no gain was shown"),
        (-0.2, -0.1, "not reproduced: the opposite was measured"),
        ([0.1, -0.1], [0.2, 0.1], "only under these conditions: 1 of 2"),
        ([-0.1, -0.2], [0.1, -0.1], "not reproduced: no gain was shown"),
    ],
)
def test_verdicts(low, high, says):
    assert verdict(low, high) == says


@pytest.mark.parametrize("low, high", [(0.2, 0.1), ([], []), ([0.1], [0.2, 0.3]), (np.nan, 0.1)])
def test_no_interval_no_verdict(low, high):
    with pytest.raises(ValueError, match="lower and an upper end"):
        verdict(low, high)


def toy(seeds=(0, 1, 2), throws=4):
    "Numbers that depend on the seed alone."
    rows = []
    for seed in seeds:
        for i, thrown in enumerate(np.random.default_rng(seed).random(throws)):
            rows.append(dict(seed=seed, arm="one", picture=i, dice=thrown))
    return pd.DataFrame(rows)


def test_a_run_is_recorded_and_can_be_repeated(tmp_path):
    first = run_experiment("toy", toy, 3, tmp_path / "a")
    assert first.equals(toy()) and run_experiment("toy", toy, 3, tmp_path / "b").equals(first)
    assert (tmp_path / "a/toy.csv").read_bytes() == (tmp_path / "b/toy.csv").read_bytes()
    kept = read_result(tmp_path / "a/toy.csv")
    np.testing.assert_allclose(kept["dice"], first["dice"], rtol=1e-4)
    record = json.loads((tmp_path / "a/toy.json").read_text())
    assert record["seeds"] == [0, 1, 2]
    assert record["settings"] == {"throws": "4"}
    assert record["rows"] == 12
    assert "torch" in record["versions"]
    assert {"commit", "date", "processor", "seconds"} <= set(record)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["toy.csv", "toy.json"]


def test_an_interrupted_experiment_goes_on_with_the_seeds_left(tmp_path, monkeypatch):
    asked = []

    def halting(seeds=(0, 1, 2)):
        asked.extend(seeds)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return toy(seeds)

    with pytest.raises(KeyboardInterrupt):
        run_experiment("toy", halting, 3, tmp_path)
    assert not (tmp_path / "toy.csv").exists()
    found = run_experiment("toy", halting, 3, tmp_path)
    assert asked == [0, 1, 1, 2] and found.equals(toy())
    assert json.loads((tmp_path / "toy.json").read_text())["goes_on_from"] == [0]
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        run_experiment("toy", halting, 3, tmp_path)
    about = tmp_path / "toy.seeds" / "about.json"
    kept = about.read_text()
    about.write_text(kept[:-9])  # damaged: not ours to believe
    with pytest.raises(ValueError, match="seeds of another state"):
        run_experiment("toy", halting, 3, tmp_path)
    about.write_text(kept)
    monkeypatch.setattr("cloudlearn.evidence.versions", lambda: {"torch": "another"})
    with pytest.raises(ValueError, match="seeds of another state"):
        run_experiment("toy", halting, 3, tmp_path)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "toy.seeds").mkdir()
    (tmp_path / "toy.seeds" / "0.csv").write_text("mine")
    with pytest.raises(ValueError, match="is not from this experiment"):
        run_experiment("toy", toy, 1, tmp_path)
    assert (tmp_path / "toy.seeds" / "0.csv").read_text() == "mine"


def test_seeds_side_by_side_give_the_same_table(tmp_path):
    one = run_experiment("toy", toy, 3, tmp_path / "one")
    assert run_experiment("toy", toy, 3, tmp_path / "two", jobs=2).equals(one)
    with pytest.raises(ValueError, match="at least one seed runs at a time"):
        run_experiment("toy", toy, 3, tmp_path / "no", jobs=0)


def test_counts_and_files_are_checked(tmp_path):
    with pytest.raises(ValueError, match="at least one seed"):
        run_experiment("toy", toy, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="cloudlearn experiment toy --seeds 5"):
        read_result(tmp_path / "toy.csv")


def test_arms_are_paired_by_seed_and_picture_and_not_by_place():
    frame = table(gain=0.05)
    old, new = (frame[frame["arm"] == arm] for arm in ("old", "new"))
    shuffled = pd.concat([old.sample(frac=1, random_state=3), new.sample(frac=1, random_state=4)])
    assert paired_gain(shuffled, "new", "old") == pytest.approx(paired_gain(frame, "new", "old"))
    alike = frame["seed"] + frame["picture"] / 10 + 0.05 * (frame["arm"] == "new")
    alike = frame.assign(dice=alike).sample(frac=1, random_state=5)
    found = paired_gain(alike, "new", "old")  # the same gain in every pair leaves no doubt
    assert (found["low"], found["high"]) == pytest.approx((0.05, 0.05))
