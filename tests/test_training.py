"""Training: pictures with their masks, order, resume bit for bit, files, prediction."""

import json
import logging
import math
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision import tv_tensors

from cloudlearn import training
from cloudlearn.encoders import Normalise, build_classifier, build_unet
from cloudlearn.learning import seeded
from cloudlearn.losses import named_loss
from cloudlearn.samples import UNKNOWN
from cloudlearn.training import (
    PictureSet,
    epoch_batches,
    fit,
    keep_unknown,
    load_network_state,
    make_optimiser,
    native_bf16,
    predict_batches,
    predict_pictures,
    save_network,
    train_transform,
)

DRAW = np.random.default_rng(0)
bce_dice = named_loss("bce-dice")
PICTURES = DRAW.integers(0, 256, (10, 32, 48, 3), dtype=np.uint8)
MASKS = PICTURES[..., :1].transpose(0, 3, 1, 2) > np.array([60, 110, 160, 210]).reshape(4, 1, 1)
LABELS = MASKS.mean((2, 3)) > 0.5


def small(seed=0, classes=4):
    "A network with batch normalisation and dropout: whatever is not reproducible shows."
    with seeded(seed):
        return nn.Sequential(
            Normalise((0.5,) * 3, (0.5,) * 3),
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(8, classes, 1),
        )


def run(network, out, name="net", transform=None, valid=True, **options):
    "`fit` on the small set, quietly and on the CPU."
    options = {
        "epochs": 4,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "device": "cpu",
        "precision": "32",
        "progress": False,
    } | options
    return fit(
        network,
        PictureSet(PICTURES, MASKS, transform),
        PictureSet(PICTURES[:5], MASKS[:5]) if valid else None,
        out,
        name=name,
        **options,
    )


def same(one, two):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )


class Unplugged(Exception):
    pass


def unplug_after(steps, error=Unplugged):
    "A loss that gives up in the middle of training step `steps` + 1."
    left = iter(range(steps))

    def loss(logits, target):
        if logits.requires_grad and next(left, None) is None:
            raise error
        return bce_dice(logits, target)

    return loss


# ------------------------------------------------------------------------------- pictures and masks


def test_unknown_planes_keep_their_mark():
    pictures = np.zeros((2, 8, 12, 3), np.uint8)
    targets = np.zeros((2, 3, 8, 12), np.uint8)
    targets[0, 1] = 255
    targets[1, 2, :4] = 1
    items = PictureSet(pictures, targets, unknown=255)
    first, second = items[0][1], items[1][1]
    assert (first[1] == 255).all() and first[[0, 2]].max() == 0
    assert second.unique().tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"targets hold \[255\]: 0, 1 and 9 for unknown are meant"):
        PictureSet(pictures, targets, unknown=9)
    with pytest.raises(ValueError, match="must be a bool array"):
        PictureSet(pictures, targets)  # a 0/255 mask is no target
    with pytest.raises(ValueError, match="must be a uint8 array"):
        PictureSet(pictures, targets > 0, unknown=255)


@pytest.mark.parametrize("seed", range(5))
def test_the_unknown_stays_unknown_when_turned(seed):
    targets = np.zeros((1, 2, 40, 60), np.uint8)
    targets[0, 0], targets[0, 1] = 1, UNKNOWN
    pictures = np.full((1, 40, 60, 3), 255, np.uint8)
    turn = train_transform(scale=(0.5, 0.6), degrees=40)
    found = []
    for transform in (turn, keep_unknown(turn)):
        with seeded(seed):
            found.append(PictureSet(pictures, targets, transform, unknown=UNKNOWN)[0])
    (bare, with_corners), (kept, target) = found
    assert torch.equal(bare, kept) and torch.equal(with_corners[0], target[0])
    assert set(with_corners[1].unique().tolist()) == {0, UNKNOWN}
    assert set(target[0].unique().tolist()) == {0, 1} and (target[1] == UNKNOWN).all()


@pytest.mark.parametrize("seed", range(20))
def test_a_mark_moves_with_its_picture(seed):
    picture = np.zeros((64, 96, 3), np.uint8)
    mask = np.zeros((2, 64, 96), bool)
    picture[10:22, 60:72] = 255
    mask[1, 10:22, 60:72] = True
    with seeded(seed):
        moved, target = PictureSet(picture[None], mask[None], train_transform())[0]
    white = moved[0] > 127
    assert set(target.unique().tolist()) == {0, 1} and not target[0].any()
    assert 2 * (white & target[1].bool()).sum() / (white.sum() + target[1].sum()) > 0.93
    centres = [torch.nonzero(m).double().mean(0) for m in (white, target[1])]
    assert (centres[0] - centres[1]).abs().max() < 0.75


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_moved_with_nearest_neighbour(seed):
    with seeded(seed):
        picture, target = PictureSet(PICTURES[:1], MASKS[:1], train_transform())[0]
    with seeded(seed):
        image = tv_tensors.Image(torch.from_numpy(PICTURES[0]).permute(2, 0, 1))
        moved, mask = train_transform()(image, tv_tensors.Mask(torch.from_numpy(MASKS[0])))
    assert torch.equal(picture, moved) and torch.equal(target, mask.float())


def test_transform_really_flips_turns_and_scales():
    set_ = PictureSet(PICTURES[:1], MASKS[:1], train_transform())
    with seeded(0):
        views = [set_[0][0] for _ in range(8)]
    assert len({view.numpy().tobytes() for view in views}) == 8
    with seeded(0):
        flips = PictureSet(PICTURES[:1], MASKS[:1], train_transform(scale=(1, 1), degrees=0))
        seen = {flips[0][0].numpy().tobytes() for _ in range(40)}
    source = torch.from_numpy(PICTURES[0]).permute(2, 0, 1)
    assert seen == {source.flip(way).numpy().tobytes() for way in ((), (1,), (2,), (1, 2))}


def test_items_are_plain_tensors_of_the_right_kind():
    for targets in (MASKS, LABELS):
        for transform in (None, train_transform()):
            picture, target = PictureSet(PICTURES, targets, transform)[3]
            assert type(picture) is type(target) is torch.Tensor
            assert picture.dtype == torch.uint8 and picture.shape == (3, 32, 48)
            assert target.dtype == torch.float32 and target.shape == targets.shape[1:]
    plain = PictureSet(PICTURES, MASKS)[3][0]
    assert torch.equal(plain.permute(1, 2, 0), torch.from_numpy(PICTURES[3]))


@pytest.mark.parametrize(
    "pictures, targets, words",
    [
        (PICTURES / 255, MASKS, "uint8"),
        (PICTURES[..., :1], MASKS, r"\(N, H, W, 3\)"),
        (PICTURES, MASKS.astype(float), "bool"),
        (PICTURES[:9], MASKS, "do not belong together"),
        (PICTURES[:, :30], MASKS, "do not belong together"),
        (PICTURES, MASKS[:, 0], "bool array"),
    ],
)
def test_picture_set_refuses(pictures, targets, words):
    with pytest.raises(ValueError, match=words):
        PictureSet(pictures, targets)


# ---------------------------------------------------------------------------------- order and rates


@settings(max_examples=80)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 99))
def test_every_picture_once_in_even_batches(count, batch_size, seed, epoch):
    batches = epoch_batches(count, batch_size, seed, epoch)
    sizes = [len(batch) for batch in batches]
    assert sorted(torch.cat(batches).tolist()) == list(range(count))
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch_size + (batch_size == 2)
    assert min(sizes) > 1 or count == 1 or batch_size == 1
    again = epoch_batches(count, batch_size, seed, epoch)
    assert all(torch.equal(one, two) for one, two in zip(batches, again, strict=True))


def test_epochs_and_seeds_differ():
    orders = {
        tuple(torch.cat(epoch_batches(50, 8, seed, epoch)).tolist())
        for seed in range(6)
        for epoch in range(6)
    }
    assert len(orders) == 36


def test_augmentation_is_new_every_epoch():
    order = training._Order(20, 6, 3)
    seeds = []
    for epoch in range(4):
        order.set_epoch(epoch)
        pairs = dict(pair for batch in order for pair in batch)
        assert sorted(pairs) == list(range(20)) and len(order) == 4
        seeds += pairs.values()
    assert len(set(seeds)) == 80


def test_the_encoder_learns_at_its_share():
    unet = build_unet(weights="none")
    optimiser, schedule = make_optimiser(unet, 20, 1e-3, 0.1)
    encoder, rest = (set(map(id, group["params"])) for group in optimiser.param_groups)
    for name, parameter in unet.named_parameters():
        assert id(parameter) in (encoder if "encoder" in name else rest)
    peaks, last = np.zeros(2), None
    for _ in range(20):
        last = np.array([group["lr"] for group in optimiser.param_groups])
        peaks = np.maximum(peaks, last)
        optimiser.step()
        schedule.step()
    assert peaks == pytest.approx([1e-4, 1e-3], rel=0.02) and (last < 1e-7).all()


def test_groups_of_a_classifier_and_of_a_plain_network():
    classifier = build_classifier(weights="none")
    head = {id(p) for p in classifier[1].classifier.parameters()}
    optimiser, _ = make_optimiser(classifier, 5, 1e-3, 0.5)
    assert {id(p) for p in optimiser.param_groups[1]["params"]} == head
    plain, _ = make_optimiser(small(), 5, 1e-3, 0.5)
    assert [len(group["params"]) for group in plain.param_groups] == [len([*small().parameters()])]
    assert plain.param_groups[0]["max_lr"] == 1e-3
    frozen = classifier[1].conv_stem.requires_grad_(False).weight
    optimiser, _ = make_optimiser(classifier, 5, 1e-3, 0.5)
    assert not any(p is frozen for group in optimiser.param_groups for p in group["params"])


# ---------------------------------------------------------------------------------------------- fit


@pytest.mark.parametrize("seed", [0, 1])
def test_fit_equals_a_loop_by_hand(tmp_path, seed):
    def plain():
        network = small(seed)
        del network[4]  # dropout draws random numbers of its own
        return network.to(memory_format=torch.channels_last)

    ours, hand = plain(), plain()
    losses = []

    def recorded(logits, target):
        losses.append(bce_dice(logits, target))
        return losses[-1]

    log = run(ours, tmp_path, seed=seed, valid=False, loss=recorded)
    items = PictureSet(PICTURES, MASKS)
    expected = []
    optimiser, schedule = make_optimiser(hand, 12, 1e-2, 0.1)
    for epoch in range(4):
        for batch in epoch_batches(10, 4, seed, epoch):
            x, y = (torch.stack(part) for part in zip(*[items[int(i)] for i in batch]))
            loss = bce_dice(hand(x.contiguous(memory_format=torch.channels_last)), y)
            optimiser.zero_grad()
            loss.backward()
            rate = optimiser.param_groups[-1]["lr"]
            optimiser.step()
            schedule.step()
            expected.append(loss.item())
    assert [loss.item() for loss in losses] == pytest.approx(expected, abs=1e-6)
    sizes = [len(b) for b in epoch_batches(10, 4, seed, 0)]
    assert log["train_loss"].tolist() == pytest.approx(
        [np.average(expected[i : i + 3], weights=sizes) for i in range(0, 12, 3)], abs=1e-6
    )
    assert log["learning_rate"].iloc[-1] == pytest.approx(rate)
    assert log["epoch"].tolist() == [1, 2, 3, 4] and log["valid_loss"].isna().all()


def test_learns_two_pictures_by_heart(tmp_path):
    pictures, masks = PICTURES[:2], MASKS[:2]
    network = small()
    start = torch.logit(torch.from_numpy(predict_pictures(network, pictures)), 1e-6)
    before = bce_dice(start, torch.from_numpy(masks).float())
    options = {"batch_size": 2, "learning_rate": 0.2, "device": "cpu", "precision": "32"}
    two = PictureSet(pictures, masks)
    log = fit(network, two, None, tmp_path, epochs=60, progress=False, **options)
    assert log["train_loss"].iloc[-1] < 0.3 * before
    found = predict_pictures(network, pictures) > 0.5
    assert 2 * (found & masks).sum() / (found.sum() + masks.sum()) > 0.95


@pytest.mark.parametrize("steps, seed", [(0, 0), (2, 0), (3, 0), (7, 0), (7, 5), (11, 9)])
def test_interrupted_and_resumed_is_uninterrupted(tmp_path, steps, seed):
    whole, broken, resumed = small(), small(), small(seed=99 if steps > 3 else 0)
    log = run(whole, tmp_path, "whole", train_transform(), seed=seed)
    with pytest.raises(Unplugged):
        run(broken, tmp_path, "parts", train_transform(), seed=seed, loss=unplug_after(steps))
    again = run(resumed, tmp_path, "parts", train_transform(), seed=seed, resume=True)
    assert same(whole, resumed)
    pd.testing.assert_frame_equal(
        log.drop(columns="seconds"), again.drop(columns="seconds"), check_exact=True
    )
    for kind in ("best", "last"):
        one, two = (
            load_network_state(tmp_path / f"{name}-{kind}.safetensors")[0]
            for name in ("whole", "parts")
        )
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert not list(tmp_path.glob("*.ckpt")) and not list(tmp_path.glob("*.tmp"))


def curve(folder, name):
    "The values of a curve, as TensorBoard's own reader finds them."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload().Scalars(name)
    return [(event.step, event.value) for event in events]


def test_curves_for_tensorboard_hold_every_epoch_even_of_a_resumed_run(tmp_path):
    with pytest.raises(Unplugged):
        run(small(), tmp_path, loss=unplug_after(7), board=True)
    assert not list(tmp_path.glob("*tensorboard*"))
    log = run(small(), tmp_path, resume=True, board=True)
    for name in ("train_loss", "valid_loss", "learning_rate"):
        found = curve(tmp_path / "net-tensorboard", f"net/{name}")
        assert [epoch for epoch, _ in found] == [1, 2, 3, 4]
        np.testing.assert_allclose([value for _, value in found], log[name], rtol=1e-6)
    (tmp_path / "net-tensorboard" / "notes.txt").write_text("mine")
    run(small(), tmp_path)  # afresh: the old curves go, and nothing else
    assert [path.name for path in (tmp_path / "net-tensorboard").iterdir()] == ["notes.txt"]
    (tmp_path / "net-tensorboard" / "notes.txt").unlink()
    run(small(), tmp_path, board=True)
    assert len(curve(tmp_path / "net-tensorboard", "net/train_loss")) == 4


def test_without_tensorboard_it_is_said_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r'pip install "cloudlearn\[log\]"'):
        run(small(), tmp_path, board=True)
    assert not list(tmp_path.iterdir())


def test_interrupted_twice(tmp_path):
    whole, parts = small(), small()
    run(whole, tmp_path, "whole", train_transform())
    for steps in (4, 4):
        with pytest.raises(Unplugged):
            run(parts, tmp_path, "parts", train_transform(), loss=unplug_after(steps), resume=True)
    run(parts, tmp_path, "parts", train_transform(), resume=True)
    assert same(whole, parts)


def test_a_run_goes_on_in_a_folder_that_was_moved(tmp_path):
    whole, parts = small(), small()
    log = run(whole, tmp_path / "whole")
    with pytest.raises(Unplugged):
        run(parts, tmp_path / "old", loss=unplug_after(7))
    (tmp_path / "old").rename(tmp_path / "new")
    again = run(parts, tmp_path / "new", resume=True)
    assert same(whole, parts) and again["valid_loss"].equals(log["valid_loss"])
    assert not (tmp_path / "old").exists() and not list((tmp_path / "new").glob("*.ckpt"))


def test_the_checkpoint_follows_the_name_and_a_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unplugged):
        run(small(), "~", "red.one", loss=unplug_after(7))
    assert (tmp_path / "~" / "red.one-resume.ckpt").exists()
    with pytest.raises(ValueError, match="take the braces out"):
        run(small(), tmp_path, "red{epoch}")


def test_ctrl_c_arrives_and_signals_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    parts, whole = small(), small()
    with pytest.raises(KeyboardInterrupt):
        run(parts, tmp_path, "parts", loss=unplug_after(7, KeyboardInterrupt))
    assert signal.getsignal(signal.SIGINT) is before
    run(parts, tmp_path, "parts", resume=True)
    run(whole, tmp_path, "whole")
    assert same(whole, parts)


def test_a_finished_run_is_read_not_repeated(tmp_path):
    first, second = small(), small(seed=3)
    log = run(first, tmp_path)
    again = run(second, tmp_path, resume=True, loss=unplug_after(0))
    assert same(first, second)
    pd.testing.assert_frame_equal(log, again)


def test_a_fresh_start_forgets_the_old_run(tmp_path):
    with pytest.raises(Unplugged):
        run(small(), tmp_path, loss=unplug_after(7))
    with pytest.raises(Unplugged):
        run(small(), tmp_path, loss=unplug_after(1))
    assert not list(tmp_path.glob("net-*"))
    one, two = small(), small()
    run(one, tmp_path, resume=True)
    run(two, tmp_path, "other")
    assert same(one, two)


@pytest.mark.parametrize("what", ["a pixel", "a label", "a validation picture", "the order"])
@pytest.mark.parametrize("finished", [False, True])
def test_resume_refuses_other_data(tmp_path, what, finished):
    def sets(changed):
        pictures, masks = PICTURES.copy(), MASKS.copy()
        if changed == "a pixel":
            pictures[2, 5, 7, 1] ^= 1
        if changed == "a label":
            masks[1, 0, 3, 3] ^= True
        if changed == "a validation picture":
            pictures[9, 0, 0, 0] ^= 1
        rows = [1, 0, *range(2, 7)] if changed == "the order" else range(7)
        train = PictureSet(pictures[rows], masks[rows])
        return train, PictureSet(pictures[7:], masks[7:])

    options = {"epochs": 2, "batch_size": 4, "device": "cpu", "precision": "32", "progress": False}
    if finished:
        fit(small(), *sets(None), tmp_path, **options)
    else:
        with pytest.raises(Unplugged):
            fit(small(), *sets(None), tmp_path, loss=unplug_after(3), **options)
    with pytest.raises(ValueError, match="pictures or labels have changed since .*segment-"):
        fit(small(), *sets(what), tmp_path, resume=True, **options)
    fit(small(), *sets(None), tmp_path, resume=True, **options)


def test_resume_refuses_other_settings(tmp_path):
    with pytest.raises(Unplugged):
        run(small(), tmp_path, loss=unplug_after(7))
    for change in (
        {"epochs": 5},
        {"batch_size": 5},
        {"learning_rate": 0.1},
        {"seed": 1},
        {"settings": {"encoder": "other"}},
    ):
        with pytest.raises(
            ValueError, match=f"begun with .*{next(iter(change.get('settings', change)))}"
        ):
            run(small(), tmp_path, resume=True, **change)
    (tmp_path / "net-resume.ckpt").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        run(small(), tmp_path, resume=True)


def test_the_checkpoint_holds_tensors_and_plain_values_only(tmp_path):
    with pytest.raises(Unplugged):
        run(
            small(),
            tmp_path,
            loss=unplug_after(7),
            settings={"folder": tmp_path, "share": np.float32(0.5)},
        )
    state = torch.load(tmp_path / "net-resume.ckpt", weights_only=True)
    assert state["epoch"] == 1 and len(state["callbacks"]["_Record"]["rows"]) == 2


def test_the_best_network_is_kept(tmp_path):
    scores = iter([0.1, 0.7, 0.3, 0.7])
    seen = []

    def metric(prob, true):
        seen.append((prob.shape, prob.dtype, true.shape, true.dtype, prob.copy()))
        return next(scores)

    network = small()
    log = run(network, tmp_path, metric=metric)
    assert log["metric"].tolist() == [0.1, 0.7, 0.3, 0.7]
    assert all(entry[:4] == ((5, 4, 32, 48), np.float32, (5, 4, 32, 48), bool) for entry in seen)
    state, settings_ = load_network_state(tmp_path / "net-best.safetensors")
    assert len(settings_["log"]) == 2 and settings_["epochs"] == 4
    best = small()
    best.load_state_dict(state)
    np.testing.assert_allclose(predict_pictures(best, PICTURES[:5]), seen[1][4], atol=1e-5)
    np.testing.assert_allclose(predict_pictures(network, PICTURES[:5]), seen[3][4], atol=1e-5)


def test_validation_loss_counts_the_last_short_batch(tmp_path):
    network = small()
    mean = F.binary_cross_entropy_with_logits
    log = run(network, tmp_path, epochs=1, loss=mean)  # 5 pictures in batches of 4 and 1
    network.eval()
    with torch.inference_mode():
        logits = network(torch.from_numpy(PICTURES[:5]).permute(0, 3, 1, 2))
        expected = mean(logits, torch.from_numpy(MASKS[:5]).float())
    assert log["valid_loss"].iloc[0] == pytest.approx(expected.item(), abs=1e-5)


def test_labels_train_a_classifier(tmp_path):
    with seeded(0):
        network = nn.Sequential(
            Normalise((0.5,) * 3, (0.5,) * 3),
            nn.Conv2d(3, 4, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
    data = PictureSet(PICTURES, LABELS, train_transform())
    options = {"loss": F.binary_cross_entropy_with_logits, "device": "cpu", "progress": False}
    log = fit(network, data, data, tmp_path, epochs=2, **options)
    assert log["valid_loss"].notna().all()
    assert predict_pictures(network, PICTURES, 4, flips=True).shape == (10, 4)


def test_log_file_equals_the_log(tmp_path):
    log = run(small(), tmp_path)
    assert list(log) == ["epoch", "train_loss", "valid_loss", "learning_rate", "seconds"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "net-log.csv"), log)
    settings_ = json.loads((tmp_path / "net-last.json").read_text())
    assert settings_ == load_network_state(tmp_path / "net-last.safetensors")[1]
    assert settings_["steps"] == 3


# ----------------------------------------------------------------------- what stops with a sentence


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_loss_stops(tmp_path, value):
    calls = []

    def loss(logits, target):
        calls.append(1)
        return bce_dice(logits, target) * (value if len(calls) == 5 else 1)

    with pytest.raises(
        ValueError,
        match=rf"became {value} in epoch 2, step 2: lower the learning rate \(now 0.01\)",
    ):
        run(small(), tmp_path, valid=False, loss=loss)


def test_a_broken_metric_stops(tmp_path):
    with pytest.raises(ValueError, match="a metric that has no answer"):
        run(small(), tmp_path, metric=lambda prob, true: math.nan)


def test_what_cannot_be_trained(tmp_path):
    one, none = PictureSet(PICTURES[:1], MASKS[:1]), PictureSet(PICTURES[:0], MASKS[:0])
    cases = [
        ((one, None), {}, "a batch of one picture"),
        ((none, None), {}, "training set is empty"),
        ((one, none), {}, "validation set is empty"),
        ((PictureSet(PICTURES, MASKS), None), {"batch_size": 1}, "a batch of one picture"),
        ((one, None), {"epochs": 0}, "start at 1"),
        ((one, None), {"precision": "16"}, "precision is"),
    ]
    for sets, options, words in cases:
        with pytest.raises(ValueError, match=words):
            fit(small(), *sets, tmp_path, progress=False, **options)
    with pytest.raises(ValueError, match="build it with classes=4"):
        run(small(classes=3), tmp_path)
    with pytest.raises(ValueError, match="the array is empty"):
        predict_pictures(small(), PICTURES[:0])


def test_one_picture_is_enough_without_batch_normalisation(tmp_path):
    network = nn.Sequential(Normalise((0.5,) * 3, (0.5,) * 3), nn.Conv2d(3, 4, 1))
    one = PictureSet(PICTURES[:1], MASKS[:1])
    log = fit(network, one, None, tmp_path, epochs=2, device="cpu", progress=False)
    assert len(log) == 2


# ------------------------------------------------------------------------------------- a good guest


def test_quiet_and_nothing_left_behind(tmp_path, capfd):
    numpy_state = np.random.get_state()[1].copy()
    torch_state = torch.get_rng_state()
    threads = torch.get_num_threads()
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    interrupt = signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        run(small(), tmp_path, transform=train_transform())
        assert warnings.filters == filters
    assert tuple(capfd.readouterr()) == ("", "")
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()
    assert torch.get_num_threads() == threads and torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert [logger.level for logger in loggers] == levels
    assert signal.getsignal(signal.SIGINT) is interrupt
    endings = ["best.json", "best.safetensors", "last.json", "last.safetensors", "log.csv"]
    assert sorted(f.name for f in tmp_path.iterdir()) == [f"net-{ending}" for ending in endings]


def test_one_bar_on_stderr_that_speaks_twice_in_a_short_run(tmp_path, capfd):
    run(small(), tmp_path, "clouds", progress=True)
    out, err = capfd.readouterr()
    drawn = [text for text in err.replace("\n", "\r").split("\r") if text]
    assert out == "" and len(drawn) == 2, drawn  # no terminal: at the start and at the end
    assert "clouds" in drawn[0] and "0/12" in drawn[0]
    assert "12/12" in drawn[1] and "epoch=4" in drawn[1]


def test_the_bar_of_a_resumed_run_goes_on_where_it_stopped(tmp_path, capfd):
    with pytest.raises(Unplugged):
        run(small(), tmp_path, progress=True, loss=unplug_after(7))
    assert "0/12" in capfd.readouterr().err
    run(small(), tmp_path, progress=True, resume=True)
    err = capfd.readouterr().err
    assert "6/12" in err and "12/12" in err and "0/12" not in err


# -------------------------------------------------------------------------------------------- files


def test_network_file_round_trip(tmp_path):
    network = small().to(memory_format=torch.channels_last)
    path = save_network(
        network,
        tmp_path / "deep" / "net.safetensors",
        {"classes": 4, "mean": np.float32(0.5), "folder": tmp_path},
    )
    state, settings_ = load_network_state(path)
    assert list(state) == sorted(network.state_dict()) or set(state) == set(network.state_dict())
    assert all(torch.equal(t, state[name]) for name, t in network.state_dict().items())
    assert settings_ == {"classes": 4, "mean": 0.5, "folder": str(tmp_path)}
    assert settings_ == json.loads(path.with_suffix(".json").read_text())


def test_network_files_are_as_open_as_any_other(tmp_path):
    path = save_network(small(0), tmp_path / "net.safetensors", {})
    (tmp_path / "other").touch()
    mode = (tmp_path / "other").stat().st_mode
    assert path.stat().st_mode == path.with_suffix(".json").stat().st_mode == mode


def test_network_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = save_network(small(0), tmp_path / "net.safetensors", {"run": 1})

    def full(self, content):
        with open(self, "wb") as file:
            file.write(content[:9])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        save_network(small(1), path, {"run": 2})
    state, settings_ = load_network_state(path)
    assert settings_ == {"run": 1} and torch.equal(state["1.weight"], small(0)[1].weight)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["net.json", "net.safetensors"]


def test_unreadable_network_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no network at"):
        load_network_state(tmp_path / "net.safetensors")
    path = save_network(small(), tmp_path / "net.safetensors", {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_network_state(path)
    with pytest.raises(ValueError, match="ends in .safetensors"):
        save_network(small(), tmp_path / "net.pth", {})
    with pytest.raises(ValueError, match="not Conv2d"):
        save_network(small(), path, {"layer": nn.Conv2d(1, 1, 1)})


# --------------------------------------------------------------------------------------- prediction


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 16])
def test_predict_counts_the_last_batch(batch_size):
    network = small().train()
    prob = predict_pictures(network, PICTURES, batch_size)
    assert prob.shape == (10, 4, 32, 48) and prob.dtype == np.float32 and network.training
    network.eval()
    with torch.inference_mode():
        expected = network(torch.from_numpy(PICTURES).permute(0, 3, 1, 2)).sigmoid()
    np.testing.assert_allclose(prob, expected, atol=1e-5)
    assert sum(map(len, predict_batches(network, PICTURES, batch_size))) == 10


def test_flips_are_averaged_and_flipped_back():
    network = small().eval()
    prob = predict_pictures(network, PICTURES, flips=True)
    ways = []
    for up, left in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
        ways.append(predict_pictures(network, PICTURES[:, ::up, ::left])[..., ::up, ::left])
    np.testing.assert_allclose(prob, np.mean(ways, axis=0), atol=1e-5)
    mirrored = predict_pictures(network, PICTURES[:, :, ::-1], flips=True)[..., ::-1]
    np.testing.assert_allclose(mirrored, prob, atol=1e-5)
    assert np.abs(prob - ways[0]).max() > 1e-3


def test_auto_precision_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, gains in (("amx_bf16", True), ("avx512_bf16", False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True})
        assert native_bf16() == gains
    for able, expected in ((True, "bf16"), (False, "32")):
        monkeypatch.setattr(training, "native_bf16", lambda able=able: able)
        assert training._precision("auto") == expected and training._precision("32") == "32"


def test_half_precision_trains_and_stores_whole_numbers(tmp_path):
    network = small()
    log = run(network, tmp_path, precision="bf16", epochs=2)
    assert np.isfinite(log["train_loss"]).all() and network[1].weight.dtype == torch.float32
    assert load_network_state(tmp_path / "net-last.safetensors")[1]["precision"] == "bf16"


# ------------------------------------------------------------------------------------------- memory


def test_what_a_step_keeps_is_counted_without_computing():
    "One layer on 2 x 3 x 8 x 8: it keeps its input for the backward pass, the sum its output."
    layer = nn.Sequential(Floats(), nn.Conv2d(3, 5, 1, bias=False), nn.ReLU())
    numbers = 2 * 8 * 8
    need = training.step_memory(layer, (8, 8), 2)
    # the picture as numbers, what ReLU gives (kept, and the answer), the weights and three more
    assert need == 4 * (3 + 5 + 5) * numbers + 4 * 4 * 3 * 5
    large = training.step_memory(layer, (8192, 8192), 64)  # terabytes, on paper
    assert large > 10**11 and next(layer.parameters()).device.type == "cpu"


class Floats(nn.Module):
    def forward(self, pictures):
        return pictures.float()


def test_a_step_that_cannot_fit_is_refused_before_it_begins(monkeypatch, tmp_path):
    for place in ("files", "training"):
        monkeypatch.setattr(f"cloudlearn.{place}.free_memory", lambda: 10**5)
    network = small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    words = "--size 32x48: a step of training with 4 pictures takes about .* take a smaller --size"
    with pytest.raises(ValueError, match=words):
        run(network, tmp_path)
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())
    monkeypatch.setattr("cloudlearn.files.free_memory", lambda: 10**7)
    run(network, tmp_path, epochs=1)  # counted, and found small enough
