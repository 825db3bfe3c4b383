"""Training: loss, pictures with their masks, order, resume bit for bit, files, prediction."""

import json
import logging
import math
import signal
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision import tv_tensors

from cloudlearn import training
from cloudlearn.encoders import Normalise, build_classifier, build_unet
from cloudlearn.learning import seeded
from cloudlearn.training import (
    PictureSet,
    bce_dice,
    epoch_batches,
    fit,
    load_network_state,
    make_optimiser,
    native_bf16,
    predict,
    predict_batches,
    save_network,
    train_transform,
)

DRAW = np.random.default_rng(0)
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


# ------------------------------------------------------------------------------------------ the loss


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 5), st.floats(0, 1))
def test_bce_dice_equals_torch_and_smp(seed, batch, classes, share):
    draw = np.random.default_rng(seed)
    logits = torch.tensor(draw.normal(scale=3, size=(batch, classes, 4, 5)))
    target = torch.tensor(draw.random((batch, classes, 4, 5)) < share).double()
    expected = F.binary_cross_entropy_with_logits(logits, target) + smp.losses.DiceLoss(
        "multilabel"
    )(logits, target)
    torch.testing.assert_close(bce_dice(logits, target), expected, atol=1e-9, rtol=0)
    plain = F.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(
        bce_dice(logits, target, dice_weight=0.25),
        plain + 0.25 * (expected - plain),
        atol=1e-9,
        rtol=0,
    )


def test_bce_dice_by_hand_and_at_the_ends():
    target = torch.tensor([[[[1.0, 0], [0, 0]]]])
    assert bce_dice(torch.zeros(1, 1, 2, 2), target).item() == pytest.approx(math.log(2) + 2 / 3)
    assert bce_dice(60 * target - 30, target).item() < 1e-6
    blank = bce_dice(torch.full((1, 1, 2, 2), -200.0), torch.zeros(1, 1, 2, 2))
    assert blank.item() == 0


@pytest.mark.parametrize(
    "shapes", [((2, 4), (2, 4)), ((2, 4, 3, 3), (2, 4, 3, 2)), ((2, 4, 3, 3), (2, 1, 3, 3))]
)
def test_bce_dice_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match="binary_cross_entropy_with_logits"):
        bce_dice(*(torch.zeros(shape) for shape in shapes))


# ------------------------------------------------------------------------------------------ pictures and masks


def test_unknown_planes_keep_their_mark():
    pictures = np.zeros((2, 8, 12, 3), np.uint8)
    targets = np.zeros((2, 3, 8, 12), np.uint8)
    targets[0, 1], targets[1, 2, :4] = 255, 1
    items = PictureSet(pictures, targets, unknown=255)
    assert (
        (items[0][1][1] == 255).all()
        and items[0][1][[0, 2]].max() == 0
        and items[1][1].unique().tolist() == [0, 1]
    )
    with pytest.raises(ValueError, match=r"targets hold \[255\]: 0, 1 and 9 for unknown are meant"):
        PictureSet(pictures, targets, unknown=9)
    with pytest.raises(ValueError, match="must be a bool array"):
        PictureSet(pictures, targets)  # a 0/255 mask is no target
    with pytest.raises(ValueError, match="must be a uint8 array"):
        PictureSet(pictures, targets > 0, unknown=255)


@pytest.mark.parametrize("seed", range(20))
def test_a_mark_moves_with_its_picture(seed):
    picture, mask = np.zeros((64, 96, 3), np.uint8), np.zeros((2, 64, 96), bool)
    picture[10:22, 60:72], mask[1, 10:22, 60:72] = 255, True
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
        source = torch.from_numpy(PICTURES[0]).permute(2, 0, 1), torch.from_numpy(MASKS[0])
        expected = train_transform()(tv_tensors.Image(source[0]), tv_tensors.Mask(source[1]))
    assert torch.equal(picture, expected[0]) and torch.equal(target, expected[1].float())


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
    assert torch.equal(
        PictureSet(PICTURES, MASKS)[3][0].permute(1, 2, 0), torch.from_numpy(PICTURES[3])
    )


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


# ------------------------------------------------------------------------------------------ order and rates


@settings(max_examples=80)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**40), st.integers(0, 99))
def test_every_picture_once_in_even_batches(count, batch_size, seed, epoch):
    batches = epoch_batches(count, batch_size, seed, epoch)
    sizes = [len(batch) for batch in batches]
    assert sorted(torch.cat(batches).tolist()) == list(range(count))
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch_size + (batch_size == 2)
    assert min(sizes) > 1 or count == 1 or batch_size == 1
    assert [b.tolist() for b in batches] == [
        b.tolist() for b in epoch_batches(count, batch_size, seed, epoch)
    ]


def test_epochs_and_seeds_differ():
    orders = {
        tuple(torch.cat(epoch_batches(50, 8, seed, epoch)).tolist())
        for seed in range(6)
        for epoch in range(6)
    }
    assert len(orders) == 36


def test_augmentation_is_new_every_epoch():
    order, seeds = training._Order(20, 6, 3), []
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
    assert [
        len(group["params"]) for group in make_optimiser(small(), 5, 1e-3, 0.5)[0].param_groups
    ] == [len(list(small().parameters()))]
    classifier[1].conv_stem.requires_grad_(False)
    optimiser, _ = make_optimiser(classifier, 5, 1e-3, 0.5)
    assert not any(
        p is classifier[1].conv_stem.weight
        for group in optimiser.param_groups
        for p in group["params"]
    )


# ------------------------------------------------------------------------------------------ fit


@pytest.mark.parametrize("seed", [0, 1])
def test_fit_equals_a_loop_by_hand(tmp_path, seed):
    def plain():
        network = small(seed)
        del network[4]  # dropout draws random numbers of its own
        return network.to(memory_format=torch.channels_last)

    ours, hand, losses = plain(), plain(), []

    def recorded(logits, target):
        losses.append(bce_dice(logits, target))
        return losses[-1]

    log = run(ours, tmp_path, seed=seed, valid=False, loss=recorded)
    items, expected = PictureSet(PICTURES, MASKS), []
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
    before = bce_dice(
        torch.logit(torch.from_numpy(predict(network, pictures)), 1e-6),
        torch.from_numpy(masks).float(),
    )
    log = fit(
        network,
        PictureSet(pictures, masks),
        None,
        tmp_path,
        epochs=60,
        batch_size=2,
        learning_rate=0.2,
        device="cpu",
        precision="32",
        progress=False,
    )
    assert log["train_loss"].iloc[-1] < 0.3 * before
    found = predict(network, pictures) > 0.5
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


def test_interrupted_twice(tmp_path):
    whole, parts = small(), small()
    run(whole, tmp_path, "whole", train_transform())
    for steps in (4, 4):
        with pytest.raises(Unplugged):
            run(parts, tmp_path, "parts", train_transform(), loss=unplug_after(steps), resume=True)
    run(parts, tmp_path, "parts", train_transform(), resume=True)
    assert same(whole, parts)


def test_ctrl_c_arrives_and_signals_are_put_back(tmp_path):
    before, parts, whole = signal.getsignal(signal.SIGINT), small(), small()
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
    np.testing.assert_allclose(predict(best, PICTURES[:5]), seen[1][4], atol=1e-5)
    np.testing.assert_allclose(predict(network, PICTURES[:5]), seen[3][4], atol=1e-5)


def test_validation_loss_counts_the_last_short_batch(tmp_path):
    network = small()
    mean = lambda logits, target: F.binary_cross_entropy_with_logits(logits, target)
    log = run(network, tmp_path, epochs=1, loss=mean)  # 5 pictures in batches of 4 and 1
    network.eval()
    with torch.inference_mode():
        expected = mean(
            network(torch.from_numpy(PICTURES[:5]).permute(0, 3, 1, 2)),
            torch.from_numpy(MASKS[:5]).float(),
        )
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
    log = fit(
        network,
        data,
        data,
        tmp_path,
        loss=F.binary_cross_entropy_with_logits,
        epochs=2,
        device="cpu",
        progress=False,
    )
    assert log["valid_loss"].notna().all() and predict(network, PICTURES, 4, flips=True).shape == (
        10,
        4,
    )


def test_log_file_equals_the_log(tmp_path):
    log = run(small(), tmp_path)
    assert list(log) == ["epoch", "train_loss", "valid_loss", "learning_rate", "seconds"]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "net-log.csv"), log)
    settings_ = json.loads((tmp_path / "net-last.json").read_text())
    assert (
        settings_ == load_network_state(tmp_path / "net-last.safetensors")[1]
        and settings_["steps"] == 3
    )


# ------------------------------------------------------------------------------------------ what stops with a sentence


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
        predict(small(), PICTURES[:0])


def test_one_picture_is_enough_without_batch_normalisation(tmp_path):
    network = nn.Sequential(Normalise((0.5,) * 3, (0.5,) * 3), nn.Conv2d(3, 4, 1))
    assert (
        len(
            fit(
                network,
                PictureSet(PICTURES[:1], MASKS[:1]),
                None,
                tmp_path,
                epochs=2,
                device="cpu",
                progress=False,
            )
        )
        == 2
    )


# ------------------------------------------------------------------------------------------ a good guest


def test_quiet_and_nothing_left_behind(tmp_path, capfd):
    numpy_state, torch_state, threads = (
        np.random.get_state()[1].copy(),
        torch.get_rng_state(),
        torch.get_num_threads(),
    )
    level, interrupt = logging.getLogger("lightning.pytorch").level, signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        run(small(), tmp_path, transform=train_transform())
        assert warnings.filters == filters
    assert tuple(capfd.readouterr()) == ("", "")
    assert (
        torch.equal(torch_state, torch.get_rng_state())
        and (numpy_state == np.random.get_state()[1]).all()
    )
    assert (
        torch.get_num_threads() == threads
        and torch.is_grad_enabled()
        and not torch.are_deterministic_algorithms_enabled()
    )
    assert (
        logging.getLogger("lightning.pytorch").level == level
        and signal.getsignal(signal.SIGINT) is interrupt
    )
    assert {f.name for f in tmp_path.iterdir()} == {
        f"net-{ending}"
        for ending in ("log.csv", "best.json", "best.safetensors", "last.json", "last.safetensors")
    }


def test_progress_goes_to_stderr(tmp_path, capfd):
    run(small(), tmp_path, "clouds", progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "clouds" in err and "12/12" in err


# ------------------------------------------------------------------------------------------ files


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
    assert (
        settings_
        == {"classes": 4, "mean": 0.5, "folder": str(tmp_path)}
        == json.loads(path.with_suffix(".json").read_text())
    )


def test_network_files_are_as_open_as_any_other(tmp_path):
    path = save_network(small(0), tmp_path / "net.safetensors", {})
    (tmp_path / "other").touch()
    assert (
        path.stat().st_mode
        == path.with_suffix(".json").stat().st_mode
        == (tmp_path / "other").stat().st_mode
    )


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


# ------------------------------------------------------------------------------------------ prediction


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 16])
def test_predict_counts_the_last_batch(batch_size):
    network = small().train()
    prob = predict(network, PICTURES, batch_size)
    assert prob.shape == (10, 4, 32, 48) and prob.dtype == np.float32 and network.training
    network.eval()
    with torch.inference_mode():
        expected = network(torch.from_numpy(PICTURES).permute(0, 3, 1, 2)).sigmoid()
    np.testing.assert_allclose(prob, expected, atol=1e-5)
    assert sum(map(len, predict_batches(network, PICTURES, batch_size))) == 10


def test_flips_are_averaged_and_flipped_back():
    network = small().eval()
    prob, ways = predict(network, PICTURES, flips=True), []
    for up, left in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
        ways.append(predict(network, PICTURES[:, ::up, ::left])[..., ::up, ::left])
    np.testing.assert_allclose(prob, np.mean(ways, axis=0), atol=1e-5)
    mirrored = predict(network, PICTURES[:, :, ::-1], flips=True)[..., ::-1]
    np.testing.assert_allclose(mirrored, prob, atol=1e-5)
    assert np.abs(prob - ways[0]).max() > 1e-3


def test_auto_precision_follows_the_hardware(monkeypatch):
    assert native_bf16() in (True, False)
    for able, expected in ((True, "bf16"), (False, "32")):
        monkeypatch.setattr(training, "native_bf16", lambda able=able: able)
        assert training._precision("auto") == expected and training._precision("32") == "32"


def test_half_precision_trains_and_stores_whole_numbers(tmp_path):
    network = small()
    log = run(network, tmp_path, precision="bf16", epochs=2)
    assert np.isfinite(log["train_loss"]).all() and network[1].weight.dtype == torch.float32
    assert load_network_state(tmp_path / "net-last.safetensors")[1]["precision"] == "bf16"
