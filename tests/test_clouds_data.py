"""Cloud labels as masks, the split by picture, and the score against an independent loop."""

import itertools

import numpy as np
import pytest
from tables import BLANK, HEAD, frame, rows

from cloudlearn.clouds.data import encode_masks, label_masks, score_submission
from cloudlearn.files import split_pictures
from cloudlearn.masks import resize_mask, rle_decode
from cloudlearn.scenes.clouds import CLOUD_CLASSES, RLE_SHAPE
from cloudlearn.submissions import SUBMISSION_SHAPE, check_folder, read_labels, write_submission

# -------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("shape", [(350, 525), (160, 240), (37, 61)])
def test_label_masks_equal_decode_and_resize(cloud_folder, shape):
    labels = read_labels(cloud_folder / "train.csv")
    want = [
        [resize_mask(rle_decode(text, RLE_SHAPE), shape) for text in four]
        for four in labels.to_numpy()
    ]
    masks = label_masks(labels, shape)
    assert masks.dtype == bool and (masks == np.array(want)).all()
    assert (masks.any((2, 3)) == (labels != "").to_numpy()).all()


def test_label_masks_go_by_the_names_of_the_columns():
    labels = frame(["1 1", "2 1", "3 1", "4 1"])
    want = label_masks(labels, (2, 3), (2, 3))
    assert [np.flatnonzero(plane.T).tolist() for plane in want[0]] == [
        [0],
        [1],
        [2],
        [3],
    ]  # down the columns, from 1
    assert (label_masks(labels[list(CLOUD_CLASSES[::-1])], (2, 3), (2, 3)) == want).all()


def test_label_masks_name_picture_class_and_run():
    with pytest.raises(
        ValueError, match=r"train\.csv: 1\.jpg_Gravel: run 2 of 2, '2940000 2', ends after"
    ):
        label_masks(frame(BLANK, ["", "", "1 1 2940000 2", ""]), (10, 15), source="train.csv")


# ---------------------------------------------------------------------------------------- the score


def loop_dice(guess, truth, scale):
    "The competition's Dice for two texts, pixel set by pixel set."

    def pixels(text, height):
        numbers = [int(word) for word in text.split()]
        return {
            divmod(pixel - 1, height)
            for start, length in zip(numbers[::2], numbers[1::2])
            for pixel in range(start, start + length)
        }

    a, b = pixels(guess, 350), pixels(truth, 350 * scale)
    if scale > 1:
        b = {
            (column // scale, row // scale)
            for column, row in b
            if column % scale == row % scale == scale // 2
        }
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


@pytest.mark.parametrize("seed", range(2))
def test_score_equals_an_independent_loop(tmp_path, seed):
    rng, names, texts = np.random.default_rng(seed), ["a.jpg", "b.jpg", "c.jpg"], {}
    for shape in (SUBMISSION_SHAPE, RLE_SHAPE):
        masks = np.zeros((3, 4, *shape), bool)
        for picture, plane in itertools.product(range(3), range(4)):
            top, left = rng.uniform(0, 0.7, 2) * shape
            if rng.random() < 0.6:
                masks[
                    picture,
                    plane,
                    int(top) : int(top + 0.1 * shape[0]),
                    int(left) : int(left + 0.2 * shape[1]),
                ] = True
        masks[0, 0, -3:, -3:] = True
        texts[shape] = [encode_masks(four) for four in masks]
    submission = write_submission(tmp_path / "s.csv", names, texts[SUBMISSION_SHAPE])
    truth = write_submission(tmp_path / "t.csv", names[::-1], texts[RLE_SHAPE][::-1], RLE_SHAPE)
    want = [
        [loop_dice(guess, true, 4) for guess, true in zip(*pair)]
        for pair in zip(texts[SUBMISSION_SHAPE], texts[RLE_SHAPE])
    ]
    scores = score_submission(submission, truth)
    assert list(scores.index) == names and list(scores.columns) == list(CLOUD_CLASSES)
    np.testing.assert_allclose(scores.to_numpy(), want, rtol=0, atol=1e-12)
    assert (score_submission(submission, submission).to_numpy() == 1).all()


def test_blank_scores_the_empty_share_and_one_pixel_spoils_it(cloud_folder, tmp_path):
    truth = read_labels(cloud_folder / "test_labels.csv")
    blank = write_submission(tmp_path / "blank.csv", list(truth.index), [BLANK] * len(truth))
    assert (
        score_submission(blank, cloud_folder / "test_labels.csv").to_numpy().mean()
        == (truth == "").to_numpy().mean()
    )
    assert (
        score_submission(cloud_folder / "sample_submission.csv", cloud_folder / "test_labels.csv")
        .to_numpy()
        .max()
        < 0.01
    )
    perfect = write_submission(
        tmp_path / "perfect.csv", list(truth.index), map(encode_masks, label_masks(truth))
    )
    assert (score_submission(perfect, cloud_folder / "test_labels.csv").to_numpy() == 1).all()


def test_score_refuses_other_pictures_and_other_grids(csv):
    one, two = (
        csv(HEAD + rows("a.jpg"), "one.csv"),
        csv(HEAD + rows("a.jpg") + rows("b.jpg"), "two.csv"),
    )
    for pair in ((one, two), (two, one)):
        with pytest.raises(
            ValueError, match=r"one\.csv: pictures of the other file are missing: 1, first b\.jpg"
        ):
            score_submission(*pair)
    large = csv(HEAD + rows("a.jpg", "2940000 1"), "large.csv")
    with pytest.raises(
        ValueError, match=r"large\.csv, line 2: a\.jpg_Fish: run 1 of 1, '2940000 1', ends after"
    ):
        score_submission(large, one)


# ------------------------------------------------------------------------------------ real pictures


@pytest.fixture(scope="session")
def real_labels(real_data):
    return check_folder(real_data / "clouds")


@pytest.mark.real
def test_real_masks_agree_with_decode_and_resize(real_labels):
    labels = real_labels[0].iloc[::60]
    masks = label_masks(labels, (160, 240))
    for four, planes in zip(labels.to_numpy(), masks):
        for text, mask in zip(four, planes):
            assert (mask == resize_mask(rle_decode(text, RLE_SHAPE), (160, 240))).all()
    assert 0.2 < masks.mean((2, 3))[masks.any((2, 3))].mean() < 0.32


@pytest.mark.real
def test_real_split(real_labels):
    presence = (real_labels[0] != "").to_numpy()
    for seed in range(5):
        first, second = split_pictures(presence, 1 / 6, seed)
        assert len(first) == 1000 and len(second) == 200
        gap = presence[first].mean(0) - presence[second].mean(0)
        assert np.abs(gap).max() < 0.02
