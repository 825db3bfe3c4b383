"The overlap experiment: labels 0 + C + {(A+B) - C}, the softmax loss, and what a network may draw."

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cloudlearn.cars.overlap import (
    draw_missing,
    overlap_experiment,
    overlap_labels,
    softmax_answer,
    softmax_loss,
)
from cloudlearn.cars.segment import UNKNOWN
from cloudlearn.samples import Samples
from cloudlearn.scenes.cars import DAMAGES


def masks_of(seed, n=4, shape=(9, 7)):
    return np.random.default_rng(seed).random((n, 3, *shape)) < 0.3


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_one_label_a_pixel_in_the_order_of_the_formula(seed):
    masks = masks_of(seed)
    a, b, c = masks.transpose(1, 0, 2, 3)
    planes = overlap_labels(masks)
    assert planes.shape == (4, 4, 9, 7) and (planes.sum(axis=1) == 1).all()
    assert (planes[:, 3] == c).all()
    assert (planes[:, 2] == (b & ~c)).all()
    assert (planes[:, 1] == (a & ~b & ~c)).all()
    assert (planes[:, 0] == ~(a | b | c)).all()
    assert ((planes[:, 1] | planes[:, 2]) == ((a | b) & ~c)).all()  # (A+B) - C


@pytest.mark.parametrize(
    "masks",
    [np.zeros((2, 4, 5, 5), bool), np.zeros((2, 3, 5, 5), np.uint8), np.zeros((3, 5, 5), bool)],
)
def test_other_masks_are_refused(masks):
    with pytest.raises(ValueError, match="dent, scratch and spacing"):
        overlap_labels(masks)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5))
def test_the_loss_is_cross_entropy_and_dice_over_known_pixels(seed, classes):
    draw = np.random.default_rng(seed)
    logits = torch.tensor(draw.normal(scale=2, size=(2, classes, 5, 6)))
    label = torch.tensor(draw.integers(0, classes, (2, 5, 6)))
    hidden = torch.tensor(draw.random((2, 5, 6)) < 0.4)
    hot = F.one_hot(label, classes).permute(0, 3, 1, 2).double()
    prob, known = logits.softmax(1), (~hidden)[:, None]
    lost = 0
    for k in range(classes):
        both = (prob[:, k] * hot[:, k] * known[:, 0]).sum()
        total = ((prob[:, k] + hot[:, k]) * known[:, 0]).sum().clamp_min(1e-7)
        if (hot[:, k] * known[:, 0]).sum() > 0:
            lost = lost + 1 - 2 * both / total
    expected = F.cross_entropy(logits, label.masked_fill(hidden, -100)) + lost / classes
    logits.requires_grad_()
    found = softmax_loss(logits, hot.masked_fill(hidden[:, None], UNKNOWN))
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    found.backward()
    assert (logits.grad[hidden[:, None].expand_as(logits)] == 0).all()


def test_nothing_known_costs_nothing():
    logits = torch.zeros(1, 4, 3, 3, requires_grad=True)
    loss = softmax_loss(logits, torch.full((1, 4, 3, 3), float(UNKNOWN)))
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().max() == 0
    with pytest.raises(ValueError, match="of one shape"):
        softmax_loss(logits, torch.zeros(1, 3, 3, 3))


@pytest.mark.parametrize("seed", range(3))
def test_the_answer_is_the_largest_plane(seed):
    logits = np.random.default_rng(seed).normal(size=(3, 4, 6, 5))
    answer = softmax_answer(1 / (1 + np.exp(-logits)))
    assert (answer == (logits.argmax(1)[:, None] == np.arange(1, 4)[:, None, None])).all()
    assert answer.sum(axis=1).max() <= 1


class Bright(nn.Module):
    "Says dent where red is high, scratch where green is, spacing where blue is."

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, pictures):
        return (pictures.float() - 127.5) * self.scale


def test_only_unlabelled_planes_are_drawn():
    rng = np.random.default_rng(0)
    pictures, masks = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), masks_of(1, shape=(8, 8))
    labelled = np.array(
        [[True, True, False], [False, False, True], [True, True, True], [False, False, False]]
    )
    arrays = Samples(np.array(list("abcd")), pictures, masks & labelled[:, :, None, None], labelled)
    filled = draw_missing(Bright(), np.full(3, 0.5), arrays)
    drawn = pictures.transpose(0, 3, 1, 2) > 127
    for i in range(4):
        for c in range(3):
            wanted = arrays.masks if labelled[i, c] else drawn
            assert (filled.masks[i, c] == wanted[i, c]).all()
    assert filled.known.all()
    assert not arrays.known.all()
    assert (arrays.masks == masks & labelled[:, :, None, None]).all()


def test_the_experiment_is_tidy_and_repeatable():
    tiny = dict(counts=(8, 4, 4), shape=(32, 48), epochs=1)
    table = overlap_experiment((3,), **tiny)
    assert list(table.columns[:2]) == ["seed", "arm"]
    assert set(table["class"]) == set(DAMAGES)
    assert len(table) == 3 * 3 * 4
    # the same photos in every arm
    assert table.groupby("arm")["picture"].apply(tuple).nunique() == 1
    assert overlap_experiment((3,), **tiny).equals(table)
