"""The cloud pipeline: no picture has a say in its own cuts, and a finished run can be opened."""

import json

import numpy as np
import pytest

from cloudlearn.clouds.presence import (
    blank_pairs,
    presence_classifier,
    presence_thresholds,
    write_final,
)
from cloudlearn.clouds.run import CLOUDS, cross_fit, crossed_scores
from cloudlearn.clouds.segment import AREAS, fit_cuts, read_cuts, write_first
from cloudlearn.files import load_pictures
from cloudlearn.prediction import load_run, pipeline_of
from cloudlearn.runs import CloudRun, complete, execute, plain_settings, run_from_settings
from cloudlearn.scores import THRESHOLDS
from cloudlearn.training import OneByOne, predict_pictures


def made_up(seed, count=24):
    "Scores of every pair under every cut, presence and its probabilities, without any network."
    rng = np.random.default_rng(seed)
    tables = rng.random((count, 4, len(THRESHOLDS), len(AREAS)))
    present = rng.random((count, 4)) < 0.6
    present[:4], present[4:8] = True, False
    return tables, present, np.clip(0.3 * present + 0.7 * rng.random((count, 4)), 0, 1)


@pytest.mark.parametrize("seed", range(4))
def test_each_half_is_scored_by_what_the_other_half_chose(seed):
    tables, present, presence = made_up(seed)
    area, corrected = crossed_scores(tables, present, presence, recall=0.9, seed=seed)
    (first, second), _ = cross_fit(present, seed)
    assert sorted([*first, *second]) == list(range(24)) and not set(first) & set(second)
    for fit, score in ((first, second), (second, first)):
        want = read_cuts(tables[score], fit_cuts(tables[fit]))
        np.testing.assert_array_equal(area[score], want)
        blank = presence[score] < presence_thresholds(present[fit], presence[fit], 0.9)
        np.testing.assert_array_equal(corrected[score], blank_pairs(want, present[score], blank))


@pytest.mark.parametrize("seed", range(4))
def test_a_picture_has_no_say_in_its_own_cuts_and_thresholds(seed):
    "Whatever happens to one picture, the others of its half keep their scores."
    tables, present, presence = made_up(seed)
    (first, second), _ = cross_fit(present, seed)
    for half, other in ((first, second), (second, first)):
        changed, doubt = tables.copy(), presence.copy()
        changed[half[0]] = 50 * np.arange(tables[0].size).reshape(tables[0].shape)
        doubt[half[0]] = 0.0
        before = crossed_scores(tables, present, presence, recall=0.9, seed=seed)
        after = crossed_scores(changed, present, doubt, recall=0.9, seed=seed)
        for old, new in zip(before, after):
            np.testing.assert_array_equal(old[half[1:]], new[half[1:]])
        assert (before[0][other] != after[0][other]).any(), "the other half listens to it"


def test_the_classifier_forgets_on_purpose():
    "Dropout alone makes two training passes differ, with batch normalisation at rest; not in use."
    import torch
    from torch import nn

    network = presence_classifier("none")
    pictures = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        network.eval()
        assert torch.equal(network(pictures), network(pictures))
        network.train()
        for layer in network.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()
        assert not torch.equal(network(pictures), network(pictures))


@pytest.fixture(scope="module")
def finished(cloud_run):
    "The settings of a small run that has ended."
    return CloudRun(out=cloud_run, scenes=40, size=(32, 48), epochs=1, progress=False)


def test_a_finished_run_is_loaded_and_answers_as_it_did(finished, tmp_path):
    run = finished
    loaded = load_run(run.out)
    assert loaded.run == run_from_settings(CloudRun, plain_settings(complete(run)), out=run.out)
    assert loaded.pipeline is pipeline_of("clouds")
    sample = (run.out / "scenes" / "sample_submission.csv").read_text().splitlines()
    names = [line.split("_")[0] for line in sample[1::4]]
    folder, (cuts, thresholds) = run.out / "scenes" / "test_images", loaded.decisions
    asked = dict(size=loaded.run.size, cuts=cuts)
    network, classifier = map(OneByOne, loaded.networks)
    first = write_first(tmp_path / "first.csv", network, folder, names, **asked)
    assert first.read_bytes() == (run.out / "first_submission.csv").read_bytes()
    probs = predict_pictures(classifier, load_pictures(folder, names, loaded.run.size))
    final = write_final(tmp_path / "final.csv", first, probs, thresholds)
    assert final.read_bytes() == (run.out / "final_submission.csv").read_bytes()
    assert not any(network.training for network in loaded.networks)


def test_the_record_is_the_settings(finished):
    record = json.loads((finished.out / "run.json").read_text())
    assert record["settings"] == plain_settings(complete(finished))
    assert record["pipeline"] == "clouds"
    # what changes no result is no setting
    assert not {"out", "resume", "progress"} & set(record["settings"])


@pytest.mark.parametrize(
    "change", [{"epochs": 2}, {"loss": "focal"}, {"recall": 0.5}, {"flips": True}]
)
def test_resuming_compares_every_setting(finished, change):
    from dataclasses import replace

    before = (finished.out / "ladder.csv").read_bytes()
    with pytest.raises(ValueError, match=next(iter(change))):
        execute(CLOUDS, replace(finished, resume=True, **change))
    assert (finished.out / "ladder.csv").read_bytes() == before
