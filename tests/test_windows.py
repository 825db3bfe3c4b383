"""Sliding windows: the same numbers at less work, scores of regions, and the experiment."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cloudlearn.learning import seeded, t_interval
from cloudlearn.masks import dilate
from cloudlearn.scenes.clouds import cloud_scene
from cloudlearn.unet import PaddedUNet
from cloudlearn.windows import (
    WINDOWS,
    fully_convolutional,
    gain,
    largest_piece,
    multiplications,
    patch_network,
    region_scores,
    slide,
    strip_width,
    train_labels,
    window_arm,
    windows_experiment,
)


def ready(make, seed=0):
    "A network with first weights from `seed`, ready to be asked."
    with seeded(seed):
        return make().eval()


def conv(a, b, side=3, padding=0):
    return nn.Conv2d(a, b, side, padding=padding)


# ---------------------------------------------------------------------------------- sliding window


@pytest.mark.parametrize("patch, levels", WINDOWS.items())
def test_patch_network(patch, levels):
    network = patch_network(patch, classes=3, width=2, channels=2)
    assert network(torch.zeros(2, 2, patch, patch)).shape == (2, 3)
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in network) == levels
    with pytest.raises(ValueError, match="9, 21, 45 or 93"):
        patch_network(patch + 1)


@pytest.mark.parametrize("patch", [9, 21, 45])
@pytest.mark.parametrize("seed", range(3))
def test_whole_pictures_give_the_window_s_scores(patch, seed):
    network = ready(lambda: patch_network(patch, width=3, norm=bool(seed % 2)), seed)
    if seed % 2:
        with seeded(seed):
            network.train()(torch.randn(8, 3, patch, patch))  # statistics that are not 0 and 1
    network.eval()
    generator = torch.Generator().manual_seed(seed)
    picture = torch.randn(3, patch + 5 + seed, patch + 4, generator=generator)
    scores = slide(network, picture, patch, batch=7)
    whole = fully_convolutional(network)(picture[None])[0].detach()
    torch.testing.assert_close(whole, scores, rtol=1e-4, atol=1e-5)
    for row, column in ((0, 0), (3, 4), (5 + seed, 1)):
        one = network(picture[None, :, row : row + patch, column : column + patch])[0]
        torch.testing.assert_close(scores[:, row, column], one.detach(), rtol=1e-4, atol=1e-5)


def test_linear_layer_over_a_map():
    def small():
        lines = nn.Linear(3 * 3 * 3, 4), nn.ReLU(), nn.Linear(4, 2)
        return nn.Sequential(conv(2, 3), nn.MaxPool2d(2), nn.Flatten(), *lines)

    network = ready(small)
    picture = torch.randn(2, 14, 11)
    whole = fully_convolutional(network)(picture[None])[0].detach()
    torch.testing.assert_close(whole, slide(network, picture, 8), rtol=1e-4, atol=1e-5)


def test_whole_pictures_leave_the_patch_network_alone():
    network = ready(lambda: patch_network(9, width=2, norm=True))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    whole = fully_convolutional(network).train()
    whole(torch.randn(2, 3, 20, 20)).sum().backward()
    for p in whole.parameters():
        p.data.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_refused_layers():
    refused = (
        (conv(3, 2, padding=1), "padding invents a border"),
        (nn.Conv2d(3, 2, 3, stride=2), "stride"),
        (nn.Sigmoid(), "cannot turn Sigmoid"),
    )
    for layer, words in refused:
        with pytest.raises(ValueError, match=words):
            fully_convolutional(nn.Sequential(layer))
    with pytest.raises(ValueError, match="no patch of 9x9 fits into a picture of 8x20"):
        slide(patch_network(9), torch.zeros(3, 8, 20), 9)


@pytest.mark.parametrize("patch", WINDOWS)
def test_multiplications(patch):
    network = patch_network(patch, width=4).eval()
    table = multiplications(network, (3, patch, patch))
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, patch, patch))
    assert counter.get_total_flops() == 2 * table.multiplications.sum()
    assert network[0].weight.device.type == "cpu"
    whole = fully_convolutional(network)
    large = multiplications(whole, (3, 5000 + patch, 5000 + patch)).multiplications.sum() / 5001**2
    assert large == pytest.approx(table.weights.sum(), rel=0.05)  # edges aside, one a pixel


# ------------------------------------------------------------------------- measures and experiment


def test_strip_width():
    square = np.zeros((30, 30), bool)
    square[10:20, 10:20] = True
    wider = np.zeros_like(square)
    wider[9:21, 9:21] = True
    assert strip_width(square, square) == 0 and strip_width(wider, square) == 44 / 40
    assert strip_width(np.roll(square, 2, 0), square) == 1
    seen = np.ones_like(square)
    seen[:15] = False
    off = strip_width(np.roll(square, 2, 1), square, seen)
    assert off == pytest.approx(20 / 20)  # five rows: 10 at the sides, 10 below
    assert np.isnan(strip_width(square, np.ones_like(square)))


def test_largest_piece():
    ring = dilate(np.eye(1, 900, 465, dtype=bool).reshape(30, 30), 8)
    hollow = ring & ~dilate(np.eye(1, 900, 465, dtype=bool).reshape(30, 30), 4)
    speck = hollow.copy()
    speck[0, 0] = speck[29, 28:] = True
    assert (largest_piece(speck) == ring).all()
    assert not largest_piece(np.zeros((5, 6), bool)).any()


@pytest.mark.parametrize("seed", range(6))
def test_region_scores(seed):
    scene = cloud_scene(seed, (64, 96))
    truth = np.einsum("chw,c->hw", scene.truth, np.arange(1, 5))
    perfect = region_scores(truth, scene)
    assert perfect
    for row in perfect:
        assert row["right"] == 1 and row["outline"] == 0
        assert row["core"] == 1 or np.isnan(row["core"])
    for row in region_scores(np.zeros_like(truth), scene):
        assert row["right"] == 0 and np.isnan(row["outline"])
    off = []
    for step in (1, 3):
        moved = region_scores(np.roll(truth, step, 1), scene)
        off.append(np.nanmean([row["outline"] for row in moved]))
    assert off[0] < off[1]
    speckled = np.where(np.random.default_rng(seed).random(truth.shape) < 0.2, 0, truth)
    assert all(row["right"] == 1 for row in region_scores(speckled, scene))


def test_train_labels_repeats_and_leaves_out():
    pictures, labels = torch.randn(4, 3, 16, 16), torch.randint(0, 5, (4, 16, 16))
    labels[:, :8] = -1

    def mirrored():
        whole = fully_convolutional(patch_network(9, width=4))
        return nn.Sequential(nn.ReflectionPad2d(4), *whole)

    runs = []
    for _ in range(2):
        network = ready(mirrored)
        runs.append(train_labels(network, pictures, labels, steps=4))
    assert runs[0] == runs[1] and not network.training
    others = torch.where(labels < 0, -1, (labels + 1) % 5)
    assert train_labels(ready(mirrored), pictures, others, steps=4) != runs[0]


def test_windows_experiment():
    state = torch.random.get_rng_state()
    arms = ("9", "U-Net")
    frame = windows_experiment((0, 1), arms=arms, train=4, test=3, work=700, unet=PaddedUNet)
    assert torch.equal(state, torch.random.get_rng_state())
    assert set(frame.seed) == {0, 1} and set(frame.arm) == set(arms)
    assert set(frame.picture) == {0, 1, 2}
    assert not frame.duplicated(["seed", "arm", "picture", "region"]).any()
    work = frame.groupby("arm")[["million", "steps"]].first().prod(axis=1) * 4
    assert ((work - 700).abs() < 700 * 0.4).all()
    place = ["seed", "picture", "class", "region"]
    nine, unet = (frame[frame.arm == arm][place].reset_index(drop=True) for arm in ("9", "U-Net"))
    assert nine.equals(unet)  # every arm is scored on the same regions
    weights = []
    for arm in ("9", "21", "45"):
        weights.append(sum(p.numel() for p in window_arm(arm).parameters()))
    assert max(weights) < 1.1 * min(weights)
    with pytest.raises(ValueError, match="the arms are 9, 21, 45, U-Net"):
        windows_experiment(arms=("10",))
    for ask in (windows_experiment, lambda: window_arm("U-Net")):
        with pytest.raises(ValueError, match="give unet=PaddedUNet of cloudlearn.unet"):
            ask()


def test_gain():
    rng, rows = np.random.default_rng(0), []
    for seed, picture, region in np.ndindex(3, 5, 2):
        base = rng.random()
        for arm, more in (("a", 0.25), ("b", 0.0)):
            row = {"seed": seed, "picture": picture, "region": region, "arm": arm}
            rows.append(row | {"right": base + more, "outline": np.nan if picture == 4 else base})
    frame = pd.DataFrame(rows)
    better = gain(frame, "a", "b", "right")
    assert better["rows"] == 30
    for name in ("gain", "low", "high"):
        assert better[name] == pytest.approx(0.25)  # paired: no noise
    assert gain(frame, "b", "a", "right")["gain"] == pytest.approx(-0.25)
    assert better["seeds"] == 3
    seeds = frame.seed * (frame.arm == "a") / 10  # one seed, one number: 0.25, 0.35 and 0.45
    spread = gain(frame.assign(right=frame.right + seeds), "a", "b", "right")
    assert (spread["low"], spread["high"]) == pytest.approx(t_interval([0.25, 0.35, 0.45]))
    assert gain(frame, "a", "b", "outline")["rows"] == 24  # what one of both lacks is left out
