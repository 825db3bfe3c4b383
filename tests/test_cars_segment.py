"""Partial labels, DeepLab's refusals, thresholds per class, and the scores of car photos."""

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from torchvision import tv_tensors

from cloudlearn.cars import segment
from cloudlearn.cars.segment import (
    UNKNOWN,
    baseline_experiment,
    car_scores,
    car_transform,
    cut,
    deeplab,
    empty_experiment,
    forget_empty,
    partial_targets,
    picture_scores,
    regime_experiment,
    scene_sets,
    train_cars,
)
from cloudlearn.encoders import build_unet
from cloudlearn.learning import seeded
from cloudlearn.samples import Samples
from cloudlearn.scenes.cars import DAMAGES
from cloudlearn.scores import dice
from cloudlearn.training import predict_pictures

MASKS = arrays_of.arrays(bool, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9)))


def photos(seed=0, count=6, shape=(8, 9), classes=3):
    "Random photos; each class is looked for in about two of three, and drawn in half of these."
    rng = np.random.default_rng(seed)
    labelled = rng.random((count, classes)) < 0.7
    drawn = labelled & (rng.random((count, classes)) < 0.6)
    masks = (rng.random((count, classes, *shape)) < 0.3) & drawn[:, :, None, None]
    return Samples(
        np.array([f"photo-{i}" for i in range(count)]),
        rng.integers(0, 256, (count, *shape, 3)).astype(np.uint8),
        masks,
        labelled,
    )


# ----------------------------------------------------------------------------------- partial labels


@pytest.mark.parametrize("seed", range(3))
def test_targets_mark_exactly_the_unlabelled_planes(seed):
    known = photos(seed)
    target = partial_targets(known.masks, known.known)
    assert target.dtype == np.uint8
    for i, c in np.ndindex(known.known.shape):
        assert (target[i, c] == (known.masks[i, c] if known.known[i, c] else UNKNOWN)).all()


def test_a_mask_drawn_where_nobody_looked_is_unknown():
    assert (partial_targets(np.ones((1, 1, 2, 2), bool), np.array([[False]])) == UNKNOWN).all()


@pytest.mark.parametrize(
    "masks, labelled",
    [
        (np.zeros((2, 3, 4, 4)), np.ones((2, 3), bool)),
        (np.zeros((2, 3, 4, 4), bool), np.ones((2, 3))),
        (np.zeros((2, 3, 4, 4), bool), np.ones((3, 2), bool)),
        (np.zeros((2, 4, 4), bool), np.ones((2, 4), bool)),
    ],
)
def test_targets_refuse_what_does_not_fit(masks, labelled):
    with pytest.raises(ValueError, match="both bool"):
        partial_targets(masks, labelled)


def test_forget_empty_forgets_empty_planes_alone():
    known = photos(3)
    forgotten = forget_empty(known)
    assert (forgotten.known == (known.known & known.masks.any((2, 3)))).all()
    assert forgotten.masks is known.masks and (known.known.sum() > forgotten.known.sum())


# ----------------------------------------------------------------------------- network and training


@pytest.mark.parametrize("plus", [False, True])
def test_deeplab_answers_at_the_size_of_the_picture(plus):
    network = deeplab(plus=plus, classes=2, depth=4).eval()
    assert predict_pictures(network, np.zeros((1, 64, 96, 3), np.uint8)).shape == (1, 2, 64, 96)


@pytest.mark.parametrize("stride", [8, 16])
def test_the_encoder_keeps_its_imagenet_weights_and_its_stride(stride):
    ours, unet = deeplab(stride=stride)[1].encoder, build_unet()[1].encoder.state_dict()
    assert ours.output_stride == stride
    assert all(torch.equal(tensor, unet[name]) for name, tensor in ours.state_dict().items())


def test_the_seed_decides_the_decoder_and_the_caller_keeps_his_stream():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    heads = [deeplab(seed=seed, depth=4)[1].segmentation_head for seed in (0, 0, 1)]
    first, again, other = (head[0].weight for head in heads)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_deeplab_refuses_in_words():
    network = deeplab(depth=4).train()
    with pytest.raises(ValueError, match="batch of one picture"):
        network(torch.zeros(1, 3, 32, 48, dtype=torch.uint8))
    with pytest.raises(ValueError, match="100 x 90 do not divide by 16: take 96 x 80 or 112 x 96"):
        network(torch.zeros(2, 3, 100, 90, dtype=torch.uint8))
    with pytest.raises(ValueError, match="take 16 x 16 or 16 x 16"):
        network(torch.zeros(2, 3, 7, 9, dtype=torch.uint8))
    with pytest.raises(ValueError, match="cannot be widened"):
        deeplab("densenet121", "none")
    with pytest.raises(ValueError, match="did you mean"):
        deeplab("resnet43")
    with pytest.raises(ValueError, match="stride is 8 or 16"):
        deeplab(stride=4)


@pytest.mark.parametrize("seed", range(4))
def test_corners_are_empty_where_somebody_looked_and_unknown_elsewhere(seed):
    picture = tv_tensors.Image(torch.full((3, 30, 40), 200, dtype=torch.uint8))
    planes = torch.tensor([1, UNKNOWN], dtype=torch.uint8)[:, None, None]
    mask = tv_tensors.Mask(planes.expand(2, 30, 40).clone())
    with seeded(seed):
        turned, (seen, never) = car_transform(degrees=40, scale=(0.5, 0.6))(picture, mask)
    assert set(seen.unique().tolist()) == {0, 1} and (never == UNKNOWN).all()
    assert (seen[(turned == 0).all(0)] == 0).all()


def test_never_upside_down():
    picture = tv_tensors.Image(torch.arange(64, dtype=torch.uint8).view(1, 8, 8).repeat(3, 1, 1))
    mask = tv_tensors.Mask(torch.zeros(1, 8, 8, dtype=torch.uint8))
    for seed in range(8):
        with seeded(seed):
            turned, _ = car_transform(degrees=0, scale=(1, 1))(picture, mask)
        assert torch.equal(turned, picture) or torch.equal(turned, picture.flip(2))


def test_training_learns_and_leaves_unknown_planes_alone(tmp_path):
    train, valid, _ = scene_sets(0, (4, 2, 1), (32, 48))
    only = train._replace(known=train.known & [True, False, False])
    network = deeplab(depth=4)
    before = network[1].segmentation_head[0].weight.detach().clone()
    log = train_cars(network, only, valid, tmp_path, epochs=3, learning_rate=3e-3)
    assert log.train_loss.iloc[-1] < log.train_loss.iloc[0] and log.valid_loss.notna().all()
    change = (network[1].segmentation_head[0].weight - before).abs().amax((1, 2, 3))
    assert change[0] > 10 * change[1:].max()  # AdamW's weight decay alone moves the other two
    assert (tmp_path / "segment-last.safetensors").exists()


# ----------------------------------------------------------------------------- decisions and scores


def test_a_probability_on_the_threshold_is_off():
    assert not cut(np.full((1, 1, 1, 1), 0.3, np.float32), np.array([0.3], np.float32)).any()


@pytest.mark.parametrize("seed", range(3))
def test_scores_by_hand(seed):
    known = photos(seed, 12)
    pred = np.random.default_rng(seed + 9).random(known.masks.shape) < 0.3
    rows, table = picture_scores(pred, known), car_scores(pred, known).set_index("class")
    assert len(rows) == known.known.sum() and list(table.index) == list(DAMAGES)
    for c, name in enumerate(DAMAGES):
        looked = known.known[:, c]
        shown = looked & known.masks[:, c].any((1, 2))
        per = [dice(pred[i, c], known.masks[i, c]) for i in np.flatnonzero(looked)]
        parts = (pred & known.masks, pred, known.masks)
        both, said, true = (part[shown, c].sum() for part in parts)
        row, own = table.loc[name], rows[rows["class"] == name]
        assert (row.pictures, row.present) == (looked.sum(), shown.sum())
        assert row.dice == pytest.approx(np.mean(per)) == pytest.approx(own.dice.mean())
        assert row.low <= row.dice <= row.high
        assert row.dice_present == pytest.approx(own[own.present].dice.mean())
        assert row.recall == pytest.approx(both / true)
        assert row.precision == pytest.approx(both / said)
        assert list(own.picture) == list(known.names[looked])


def test_scores_of_absent_classes_are_not_numbers():
    known = photos(2, 4)
    known = known._replace(masks=known.masks & False, known=np.array([[True, False, True]] * 4))
    pred = np.zeros_like(known.masks)
    rows, table = picture_scores(pred, known), car_scores(pred, known).set_index("class")
    assert rows.dice.eq(1).all()
    assert rows[["recall", "precision"]].isna().all(axis=None)
    assert not rows.present.any()
    assert table.loc["scratch", "pictures"] == 0 and np.isnan(table.loc["scratch", "dice"])
    assert table.loc["dent", "dice"] == 1 and np.isnan(table.loc["dent", "dice_present"])
    with pytest.raises(ValueError, match="do not belong to photos"):
        car_scores(pred[:2], known)


# -------------------------------------------------------------------------------------- experiments


def test_scene_sets_share_no_scene():
    sets = [part for seed in (0, 1) for part in scene_sets(seed, (3, 2, 2), (32, 48))]
    names = [(seed // 3, name) for seed, part in enumerate(sets) for name in part.names]
    assert len({name for _, name in names}) == len(names) == 28
    assert [len(part.names) for part in sets[:3]] == [6, 4, 4]
    with pytest.raises(ValueError, match="1000 scenes"):
        scene_sets(0, (900, 90, 11))


@pytest.fixture
def trained(monkeypatch):
    "Experiments without networks: what would be trained is noted, answers are drawn by lot."
    runs = []

    def maps(network, train, parts, epochs, seed, learning_rate):
        runs.append((network, train, epochs, seed))
        lots = [np.random.default_rng(len(runs)) for _ in parts]
        return [lot.random(part.masks.shape, dtype=np.float32) for lot, part in zip(lots, parts)]

    monkeypatch.setattr(segment, "_trained_maps", maps)
    monkeypatch.setattr(segment, "deeplab", lambda **settings: settings)
    return runs


@pytest.mark.parametrize(
    "experiment, settings, arms",
    [
        (baseline_experiment, {}, 3),
        (empty_experiment, {}, 3),
        (regime_experiment, dict(gaps=(0.05,), photos=(1, 3)), 2),
    ],
)
def test_the_arms_of_an_experiment_share_photos_steps_and_seeds(
    trained, experiment, settings, arms
):
    table = experiment(seeds=(3, 5), counts=(6, 3, 2), shape=(32, 48), **settings)
    assert not table.duplicated(["seed", "arm", "picture", "class"]).any()
    assert table.threshold.notna().all()
    for _, rows in table.groupby("seed"):
        assert rows.arm.nunique() == arms
        scored = [zip(part.picture, part["class"]) for _, part in rows.groupby("arm")]
        assert len({frozenset(pairs) for pairs in scored}) == 1
    assert len({len(train.names) for _, train, _, _ in trained}) == 1
    assert len({epochs for _, _, epochs, _ in trained}) == 1
    assert all(network["seed"] == seed for network, _, _, seed in trained)
    tested = set(table.picture)
    assert not any(tested & set(train.names) for _, train, _, _ in trained)


def test_the_arms_of_claim_7(trained):
    empty_experiment(seeds=(0,), counts=(20, 2, 2), shape=(32, 48))
    kept, photos_out, masks_out = (train for _, train, _, _ in trained)
    assert (~kept.masks.any((1, 2, 3))).any() and photos_out.masks.any((1, 2, 3)).all()
    assert (masks_out.known == (kept.known & kept.masks.any((2, 3)))).all()
    assert set(photos_out.names) == set(kept.names[kept.masks.any((1, 2, 3))])


def test_the_arms_of_the_regime(trained):
    table = regime_experiment(
        seeds=(0,), gaps=(0.02, 0.1), photos=(1, 4), counts=(6, 2, 3), shape=(64, 96)
    )
    assert [int(train.known[:, 2].sum()) for _, train, _, _ in trained] == [1, 4, 1, 4]
    assert set(table["class"]) == {"spacing"}
    assert table.groupby("gap").share.first().is_monotonic_increasing


def test_a_small_experiment_really_trains():
    table = baseline_experiment(seeds=(1,), counts=(2, 2, 2), shape=(32, 48), epochs=1)
    assert set(table.arm) == {"blind", "DeepLabV3", "DeepLabV3+"} and len(table) == 18
