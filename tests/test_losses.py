"Losses by name: formulas written out in numpy, the libraries, partial labels, and refusals."

import copy
import pickle
from itertools import product

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudlearn.losses import LOSSES, named_loss
from cloudlearn.training import PictureSet, fit

SEEDS = range(4)
ABSENT_IS_FREE = {"dice", "tversky", "focal-tversky"}


def sample(seed, shape=(3, 2, 5, 4), share=0.3, dtype=torch.float64):
    draw = np.random.default_rng(seed)
    logits = torch.tensor(2 * draw.normal(size=shape), dtype=dtype)
    return logits, torch.tensor(draw.random(shape) < share, dtype=dtype)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def pixels(z, t):
    "Cross-entropy of every pixel, from its definition."
    return -np.log(np.where(t > 0, sigmoid(z), 1 - sigmoid(z)))


def overlap(z, t, alpha, beta):
    "Tversky index of one class over the batch."
    p = sigmoid(z)
    hit, extra, missed = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()
    return hit / (hit + alpha * extra + beta * missed)


def lovasz(z, t):
    "Lovász hinge of one class: the IoU lost by each further wrong pixel, counted with sets."
    error = np.maximum(0, 1 - z * (2 * t - 1))
    order, total, before, wrong = np.argsort(-error, kind="stable"), 0.0, 0.0, set()
    there = set(np.flatnonzero(t))
    for pixel in order:
        wrong.add(int(pixel))
        found, drawn = there - wrong, (there - wrong) | (wrong - there)
        lost = 1 - len(found) / len(there | drawn) if there | drawn else 0
        total, before = total + error[pixel] * (lost - before), lost
    return total


def reference(name, z, t):
    "The loss with its defaults: sums over classes, in numpy."
    z, t = z.numpy(), t.numpy()
    each = [(z[:, c].ravel(), t[:, c].ravel()) for c in range(z.shape[1])]
    index = (0.3, 0.7) if "tversky" in name else (0.5, 0.5)
    power = 0.75 if name == "focal-tversky" else 1
    if name == "bce":
        return pixels(z, t).mean()
    if name == "focal":
        return ((1 - np.exp(-pixels(z, t))) ** 2 * pixels(z, t)).mean()
    if name == "weighted-bce":
        weights = [np.where(y > 0, (1 - y).sum() / y.sum(), 1) for _, y in each]
        return np.mean([(w * pixels(x, y)).mean() for w, (x, y) in zip(weights, each)])
    if name == "lovasz":
        return np.mean([lovasz(x, y) for x, y in each])
    if name == "bce-picture-dice":
        few, lost = 0.05 * z[0, 0].size, []
        for p, y in zip(sigmoid(z).reshape(-1, *z.shape[2:]), t.reshape(-1, *t.shape[2:])):
            lost.append(1 - (2 * (p * y).sum() + few) / (p.sum() + y.sum() + few))
        return pixels(z, t).mean() + np.mean(lost)
    mask = np.mean([(1 - overlap(x, y, *index)) ** power if y.any() else 0 for x, y in each])
    return mask + (pixels(z, t).mean() if name == "bce-dice" else 0)


@pytest.mark.parametrize("name, seed", [*product(LOSSES, SEEDS)])
def test_every_loss_is_its_formula(name, seed):
    z, t = sample(seed)
    wanted = reference(name, z, t)
    assert named_loss(name)(z, t).item() == pytest.approx(wanted, abs=2e-6)
    assert named_loss(name)(z.float(), t.float()).item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("name, seed", [*product(sorted(ABSENT_IS_FREE | {"bce-dice"}), SEEDS)])
def test_an_absent_class_adds_no_mask_term_and_no_nan(name, seed):
    z, t = sample(seed)
    t[:, 1] = 0
    z.requires_grad_()
    loss = named_loss(name)(z, t)
    loss.backward()
    assert loss.item() == pytest.approx(reference(name, z.detach(), t), abs=2e-6)
    assert torch.isfinite(z.grad).all() and (z.grad[:, 1] == 0).all() == (name in ABSENT_IS_FREE)


def test_a_picture_painted_in_vain_is_told_so_by_the_loss_of_each_picture_alone():
    z, t = torch.full((2, 1, 8, 8), -2.0, requires_grad=True), torch.zeros(2, 1, 8, 8)
    t[0, 0, :4] = 1
    push = {}
    for name in ("bce-dice", "bce-picture-dice"):
        loss = named_loss(name)(z, t) - named_loss("bce")(z, t)
        push[name] = torch.autograd.grad(loss, z)[0][1, 0].sum().item()
    p = 1 / (1 + np.e**2)
    # of 1 - s / (sum + s), over two pictures
    slope = 0.05 * 64 / (64 * p + 0.05 * 64) ** 2 * p * (1 - p) * 64 / 2
    assert push["bce-picture-dice"] == pytest.approx(slope, rel=1e-4)
    assert push["bce-picture-dice"] > 3 * push["bce-dice"] > 0
    unsmoothed = named_loss("bce-picture-dice", smooth=0.0)(z, 0 * t).item()
    assert unsmoothed == pytest.approx(named_loss("bce")(z, 0 * t).item() + 1)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_on_an_empty_batch_and_on_a_perfect_answer_are_finite(name):
    targets = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    for value, target in product((-40.0, 0.0, 40.0), targets):
        z = torch.full((2, 3, 4, 4), value, requires_grad=True)
        loss = named_loss(name)(z, target)
        loss.backward()
        assert torch.isfinite(loss) and loss >= -1e-6 and torch.isfinite(z.grad).all()
        if (value > 0) == bool(target.any()) and value:
            assert loss.item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_settings_reach_the_library(seed):
    z, t = sample(seed, (3, 3, 5, 4))
    weights = torch.tensor([2.0, 0.5, 7.0])
    weighted = torch.nn.BCEWithLogitsLoss(pos_weight=weights[:, None, None])
    equal = [
        (named_loss("weighted-bce", positive_weight=(2, 0.5, 7)), weighted),
        (named_loss("weighted-bce", positive_weight=weights), weighted),
        (
            named_loss("focal", gamma=3, alpha=0.2),
            lambda z, t: torchvision.ops.sigmoid_focal_loss(z, t, 0.2, 3, "mean"),
        ),
        (named_loss("focal", gamma=0), F.binary_cross_entropy_with_logits),
        (named_loss("dice", smooth=2), smp.losses.DiceLoss("multilabel", smooth=2)),
        (named_loss("dice", log_loss=True), smp.losses.DiceLoss("multilabel", log_loss=True)),
        (named_loss("tversky", alpha=1, beta=1), smp.losses.JaccardLoss("multilabel")),
        (named_loss("tversky", alpha=0.5, beta=0.5), named_loss("dice")),
        (
            named_loss("tversky", alpha=0.1, beta=0.6, smooth=1, log_loss=True),
            smp.losses.TverskyLoss("multilabel", alpha=0.1, beta=0.6, smooth=1, log_loss=True),
        ),
        (named_loss("focal-tversky", gamma=1), named_loss("tversky")),
        (
            named_loss("bce-dice", dice_weight=0.3),
            lambda z, t: (
                F.binary_cross_entropy_with_logits(z, t)
                + 0.3 * smp.losses.DiceLoss("multilabel")(z, t)
            ),
        ),
    ]
    for ours, theirs in equal:
        assert ours(z, t).item() == pytest.approx(theirs(z, t).item(), abs=1e-6)
    one = [
        (named_loss("lovasz"), smp.losses.LovaszLoss("multilabel")),
        (named_loss("lovasz", per_image=True), smp.losses.LovaszLoss("multilabel", per_image=True)),
        (
            named_loss("focal-tversky", gamma=2),
            smp.losses.TverskyLoss("multilabel", alpha=0.3, beta=0.7, gamma=2),
        ),
    ]
    z, t = z[:, :1], t[:, :1]
    for ours, theirs in one:
        wanted = theirs(z.float(), t.float()).item()
        assert ours(z, t).item() == pytest.approx(wanted, abs=1e-6)


def test_one_value_for_each_class_goes_to_its_class():
    z, t = sample(0, (2, 3, 6, 6))
    betas, each = (0.2, 0.5, 0.9), []
    for c, beta in enumerate(betas):
        one = slice(c, c + 1)
        each.append(named_loss("tversky", beta=beta)(z[:, one], t[:, one]).item())
    right = named_loss("tversky", beta=betas)(z, t).item()
    turned = named_loss("tversky", beta=np.array(betas[::-1]))(z, t).item()
    assert right == pytest.approx(np.mean(each), abs=1e-6)
    assert turned != pytest.approx(np.mean(each), abs=1e-4)


def test_without_a_weight_both_sides_of_a_class_weigh_the_same_within_a_factor_of_100():
    t = torch.zeros(1, 2, 10, 100)
    t[0, 0, 0, :40] = 1  # 4 %: factor 24
    t[0, 1, 0, 0] = 1  # 0.1 %: factor 999, held at 100
    z = torch.zeros_like(t, requires_grad=True)
    named_loss("weighted-bce")(z, t).backward()
    up = [-z.grad[0, c][t[0, c] > 0].sum().item() for c in (0, 1)]
    down = [z.grad[0, c][t[0, c] == 0].sum().item() for c in (0, 1)]
    assert up[0] == pytest.approx(down[0]) and up[1] == pytest.approx(down[1] * 100 / 999)
    full = torch.zeros(1, 1, 2, 2, requires_grad=True)
    loss = named_loss("weighted-bce")(full, torch.ones_like(full))
    assert loss.item() == pytest.approx(np.log(2) / 100)


SIX = st.lists(st.booleans(), min_size=6, max_size=6)


@given(st.integers(0, 10**6), st.sampled_from(sorted(LOSSES)), SIX)
@settings(max_examples=120, deadline=None)
def test_unknown_planes_are_as_good_as_not_there(seed, name, labelled):
    z, t = sample(seed, (3, 2, 4, 5))
    known = torch.tensor(labelled).view(3, 2)
    hidden = torch.where(known[..., None, None], t, 255.0)
    ours = named_loss(name, unknown=255)(z.requires_grad_(), hidden)
    ours.backward()
    assert (z.grad[~known] == 0).all() and torch.isfinite(z.grad).all()
    kept = [
        (z.detach()[known[:, c], c : c + 1], t[known[:, c], c : c + 1])
        for c in (0, 1)
        if known[:, c].any()
    ]
    counts = [len(logits) for logits, _ in kept]
    by_pixel = ("bce", "weighted-bce", "focal", "bce-picture-dice")

    def mean_alone(part):
        "The mean of the classes by themselves, weighed by planes where a loss counts pixels."
        alone = [named_loss(part)(*pair).item() for pair in kept]
        return np.average(alone, weights=counts if part in by_pixel else None)

    parts = ("bce", "dice") if name == "bce-dice" else (name,)
    wanted = sum(mean_alone(part) for part in parts) if kept else 0
    assert ours.item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_one_unknown_pixel_makes_a_plane_unknown_and_the_target_is_left_alone(name):
    z, t = sample(1)
    t[0, 0, 2, 3] = 255
    before = t.clone()
    whole = t.clone()
    whole[0, 0] = 255
    assert named_loss(name, unknown=255)(z, t) == named_loss(name, unknown=255)(z, whole)
    assert torch.equal(t, before)
    assert named_loss(name, unknown=255)(z, torch.full_like(t, 255)).item() == 0


@pytest.mark.parametrize("name, seed", [*product(LOSSES, SEEDS)])
def test_partial_labels_change_nothing_where_all_is_known_nor_does_the_order(name, seed):
    z, t = sample(seed, (4, 3, 4, 5))
    loss, order = named_loss(name)(z, t).item(), torch.tensor([2, 0, 3, 1])
    assert named_loss(name, unknown=255)(z, t).item() == loss
    assert named_loss(name)(z[order], t[order]).item() == pytest.approx(loss, abs=1e-6)
    reordered = named_loss(name)(z[:, [2, 0, 1]], t[:, [2, 0, 1]]).item()
    assert reordered == pytest.approx(loss, abs=1e-6)
    assert named_loss(name)(z, t.bool()).item() == loss
    assert named_loss(name)(z, t.to(torch.uint8)).item() == loss


@pytest.mark.parametrize("name, seed", [*product(LOSSES, SEEDS)])
def test_no_loss_pushes_a_pixel_the_wrong_way(name, seed):
    z, t = sample(seed)
    z.requires_grad_()
    named_loss(name)(z, t).backward()
    assert ((z.grad * (1 - 2 * t)) >= -1e-12).all() and z.grad.abs().max() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_travels_between_processes(name):
    z, t = sample(2)
    loss = named_loss(name, unknown=255)
    assert pickle.loads(pickle.dumps(loss))(z, t) == copy.deepcopy(loss)(z, t) == loss(z, t)


def test_fit_takes_a_loss_by_name_and_partial_labels(tmp_path):
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 255, (6, 16, 16, 3), dtype=np.uint8)
    targets = np.stack([pictures[..., 0] > 128, pictures[..., 1] > 128], 1).astype(np.uint8)
    targets[::2, 1] = 255

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 2, 1)

        def forward(self, pictures):
            return self.layer(pictures.float() / 128 - 1)

    log = fit(
        Net(),
        PictureSet(pictures, targets, unknown=255),
        None,
        tmp_path,
        loss=named_loss("bce-dice", unknown=255),
        epochs=6,
        batch_size=3,
        learning_rate=0.1,
        progress=False,
    )
    assert log.train_loss.iloc[-1] < log.train_loss.iloc[0]


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda z, t: named_loss("jaccard"),
            "there is no loss 'jaccard': take one of bce, weighted-bce, dice, focal, tversky, "
            "focal-tversky, lovasz, bce-dice",
        ),
        (lambda z, t: named_loss("bce", gamma=2), "has no setting 'gamma': it takes none"),
        (lambda z, t: named_loss("focal", beta=0.5), "it takes gamma, alpha"),
        (
            lambda z, t: named_loss("focal", alpha=1.5),
            "alpha=1.5 of the loss 'focal' must lie between 0 and 1",
        ),
        (lambda z, t: named_loss("tversky", beta=(0.5, -0.1)), "between 0 and 1"),
        (lambda z, t: named_loss("dice", smooth=float("nan")), "finite and not negative"),
        (
            lambda z, t: named_loss("weighted-bce", positive_weight=float("inf")),
            "finite and not negative",
        ),
        (
            lambda z, t: named_loss("focal", gamma=(1, 2, 3))(z, t),
            "gamma has 3 values for 2 classes",
        ),
        (lambda z, t: named_loss("bce")(z[0], t[0]), r"takes two \(B, C, H, W\) tensors"),
        (lambda z, t: named_loss("bce")(z, t[:, :1]), "of one shape"),
        (lambda z, t: named_loss("bce")(z[:0], t[:0]), "takes two"),
        (
            lambda z, t: named_loss("dice")(z, 255 * t),
            "class 0 goes from 0 to 255, not from 0 to 1: divide masks of 0 and 255 by 255",
        ),
        (lambda z, t: named_loss("bce")(z, t - 1), "goes from -1 to 0"),
        (lambda z, t: named_loss("bce")(z, t * float("nan")), "from nan to nan"),
        (lambda z, t: named_loss("bce", unknown=255)(z, t + 2), "not from 0 to 1"),
    ],
)
def test_refusals_are_sentences(call, words):
    with pytest.raises(ValueError, match=words):
        call(*sample(0))


def test_what_the_library_does_that_the_lesson_warns_of():
    "If one of these changes, the lesson must change too."
    z, empty = torch.zeros(2, 3, 4, 4, requires_grad=True), torch.zeros(2, 3, 4, 4)
    for more in ({}, {"smooth": 1.0}, {"log_loss": True}):
        loss = smp.losses.DiceLoss("multilabel", **more)(z, empty)
        assert loss == 0 and not torch.autograd.grad(loss, z)[0].any()
    focal = smp.losses.TverskyLoss("multilabel", gamma=0.75)(z, empty)
    assert torch.autograd.grad(focal, z)[0].isnan().all()
    with pytest.raises(IndexError):
        smp.losses.FocalLoss("multilabel", ignore_index=255)(z, empty)
    logits, target = sample(0, (2, 3, 4, 5), dtype=torch.float32)
    heap = smp.losses.LovaszLoss("multilabel")(logits, target)
    one_row = logits.reshape(1, 1, -1), target.reshape(1, 1, -1)
    assert heap == pytest.approx(smp.losses.LovaszLoss("binary")(*one_row).item())
    assert abs(heap - named_loss("lovasz")(logits, target)) > 1e-3
