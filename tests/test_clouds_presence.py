"""The final submission: classifier, thresholds, blanking, and files that are scored again."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cloudlearn.clouds.data import encode_masks, score_submission
from cloudlearn.clouds.presence import (
    blank_pairs,
    presence_classifier,
    presence_thresholds,
    train_presence,
    write_final,
)
from cloudlearn.encoders import build_classifier
from cloudlearn.samples import all_known
from cloudlearn.scenes.clouds import CLOUD_CLASSES
from cloudlearn.scores import dice
from cloudlearn.submissions import read_labels, write_submission
from cloudlearn.training import native_bf16, predict_pictures


def presence_of(seed, count=40, classes=4):
    "Presence and probabilities with ties; every class is in some picture."
    rng = np.random.default_rng(seed)
    present = rng.random((count, classes)) < 0.5
    present[0] = True
    return present, (0.4 * present + 0.6 * rng.random(present.shape)).round(2).astype(np.float32)


def masks_of(seed, count):
    "Boxes at the submission's size; about half of the masks are empty."
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, 4, 350, 525), bool)
    for n, c in np.ndindex(count, 4):
        top, bottom = np.sort(rng.integers(0, 350, 2))
        left, right = np.sort(rng.integers(0, 525, 2))
        masks[n, c, top : bottom + 1, left : right + 1] = rng.random() < 0.5
    return masks


class Means(nn.Module):
    "A classifier that sees the mean colour."

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.classifier = nn.Linear(3, 4)

    def forward(self, pictures):
        return self.classifier(pictures.float().mean((2, 3)) / 255)


# ----------------------------------------------------------------------------------- the classifier


def test_a_fresh_classifier_is_undecided():
    pictures = np.random.default_rng(0).integers(0, 256, (6, 64, 96, 3)).astype(np.uint8)
    for seed in range(3):
        prob = predict_pictures(presence_classifier(seed=seed), pictures)
        assert prob.shape == (6, len(CLOUD_CLASSES)) and 0.4 < prob.min() and prob.max() < 0.6


def test_the_seed_settles_the_head_and_nothing_else():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (presence_classifier(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected), "the caller's random numbers were touched"
    assert all(torch.equal(one[name], same[name]) for name in one)
    differs = {name for name in one if not torch.equal(one[name], other[name])}
    assert differs == {"1.classifier.weight"}
    body = build_classifier(classes=4).state_dict()
    assert all(torch.equal(one[name], body[name]) for name in one if "classifier" not in name)


def test_training_minimises_binary_cross_entropy(tmp_path):
    grey = np.random.default_rng(1).integers(0, 256, (12, 8, 8, 1)).repeat(3, 3)
    pictures = (grey // 2 + np.arange(0, 120, 10).reshape(12, 1, 1, 1)).astype(np.uint8)
    # several classes at once
    present = pictures.mean((1, 2, 3))[:, None] > np.array([80, 100, 120, 140])
    samples = all_known(map(str, range(12)), pictures, labels=present)
    network = Means()
    log = train_presence(
        network, samples, samples, tmp_path, epochs=3, batch_size=4, progress=False
    )
    prob = torch.from_numpy(predict_pictures(network, pictures)).float()
    wanted = nn.functional.binary_cross_entropy(prob, torch.from_numpy(present).float())
    close = 1e-3 if native_bf16() else 1e-4
    assert log.valid_loss.iloc[-1] == pytest.approx(float(wanted), rel=close)
    assert log.train_loss.iloc[-1] < log.train_loss.iloc[0]
    assert (tmp_path / "presence-last.safetensors").exists()


# --------------------------------------------------------------------------------------- thresholds


@given(st.integers(0, 10**6), st.floats(0.05, 1))
def test_thresholds_keep_the_recall_and_no_larger_one_does(seed, recall):
    present, probs = presence_of(seed, 25)
    cuts = presence_thresholds(present, probs, recall)
    for true, prob, cut in zip(present.T, probs.T, cuts):
        assert (prob[true] >= cut).mean() >= recall
        larger = prob[prob > cut]
        assert not len(larger) or (prob[true] >= larger.min()).mean() < recall


@pytest.mark.parametrize("seed", range(5))
def test_every_class_has_a_threshold_of_its_own(seed):
    present, probs = presence_of(seed)
    order = np.random.default_rng(seed).permutation(4)
    cuts = presence_thresholds(present, probs)
    reordered = presence_thresholds(present[:, order], probs[:, order])
    np.testing.assert_array_equal(reordered, cuts[order])
    np.testing.assert_array_equal(presence_thresholds(present, probs, 0.5) >= cuts, True)


def test_the_last_picture_counts():
    present, probs = presence_of(3, 33)
    probs[-1], present[-1] = 0.001, True  # a generator of full batches of 32 would drop it
    np.testing.assert_array_equal(presence_thresholds(present, probs, 1.0), np.float32(0.001))


def test_a_class_without_pictures_is_named():
    present, probs = presence_of(0)
    present[:, 2] = False
    with pytest.raises(ValueError, match="Gravel: none of the 40 pictures"):
        presence_thresholds(present, probs)
    with pytest.raises(ValueError, match="pictures by classes"):
        presence_thresholds(present, probs[:, :3])
    with pytest.raises(ValueError, match="pictures by classes"):
        presence_thresholds(present[:, 0], probs[:, 0])


# ----------------------------------------------------------------------------------------- blanking


@given(st.integers(0, 10**6))
def test_blanking_is_scoring_with_emptied_masks(seed):
    rng = np.random.default_rng(seed)
    pred, true = (rng.random((2, 6, 4, 5, 7)) < 0.3) & (rng.random((2, 6, 4, 1, 1)) < 0.6)
    blank = rng.random((6, 4)) < 0.5
    before = dice(pred, true)
    kept = before.copy()
    after = blank_pairs(before, true.any((2, 3)), blank)
    np.testing.assert_array_equal(after, dice(pred & ~blank[..., None, None], true))
    np.testing.assert_array_equal(before, kept)
    assert after.dtype == float


def test_blanking_does_not_broadcast():
    with pytest.raises(ValueError, match="one shape"):
        blank_pairs(np.ones((3, 4)), np.ones((3, 4), bool), np.ones(4, bool))


@pytest.fixture
def files(tmp_path):
    "A first submission and its truth, with pictures in no alphabetical order."
    names = ["d.jpg", "a.jpg", "c.jpg", "b.jpg", "e.jpg"]
    pred, true = masks_of(1, 5), masks_of(2, 5)
    first = write_submission(tmp_path / "first.csv", names, map(encode_masks, pred))
    truth = write_submission(tmp_path / "truth.csv", names, map(encode_masks, true))
    return names, true.any((2, 3)), first, truth


@pytest.mark.parametrize("seed", range(3))
def test_the_final_file_scores_what_blank_pairs_says(files, tmp_path, seed):
    names, present, first, truth = files
    rng = np.random.default_rng(seed)
    probs, cuts = rng.random((5, 4), dtype=np.float32), rng.random(4)
    before, text = score_submission(first, truth), first.read_text()
    final = write_final(tmp_path / "final.csv", first, probs, cuts)
    after = score_submission(final, truth)
    assert list(after.index) == names and first.read_text() == text
    wanted = blank_pairs(before.to_numpy(), present, probs < cuts.astype(np.float32))
    np.testing.assert_array_equal(after.to_numpy(), wanted)


def test_a_pair_at_its_threshold_stays(files, tmp_path):
    _, _, first, _ = files
    probs = np.full((5, 4), 0.7, np.float32)
    table = read_labels(first)

    def final(*cuts):
        return read_labels(write_final(tmp_path / "final.csv", first, probs, np.array(cuts)))

    assert final(0.7, 0.7, 0.7, 0.7).equals(table)  # 0.7 in 64 bits is larger
    above = final(0.71, 0.7, 0.7, 0.7)
    assert above.iloc[:, 0].eq("").all()
    assert above.iloc[:, 1:].equals(table.iloc[:, 1:])


@pytest.mark.parametrize(
    "probs, cuts, message",
    [
        (np.ones((4, 4)), np.ones(4), "5 pictures of 4 classes"),
        (np.ones((5, 3)), np.ones(3), "5 pictures of 4 classes"),
        (np.ones((5, 4)), np.ones(3), "4 thresholds"),
        (np.full((5, 4), np.nan), np.ones(4), "without nan"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(files, tmp_path, probs, cuts, message):
    with pytest.raises(ValueError, match=message):
        write_final(tmp_path / "final.csv", files[2], probs, cuts)
    assert not (tmp_path / "final.csv").exists()
