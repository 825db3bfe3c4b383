"""The first submission: maps, tables of cuts, and the file, against slow references."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cloudlearn.clouds.data import label_masks
from cloudlearn.clouds.segment import (
    AREAS,
    Cuts,
    cut_maps,
    fit_cuts,
    pair_tables,
    probability_maps,
    read_cuts,
    scale_maps,
    segmenter,
    train_segmenter,
    write_first,
)
from cloudlearn.decisions import decide
from cloudlearn.samples import all_known, pick
from cloudlearn.scenes.clouds import CLOUD_CLASSES
from cloudlearn.scores import THRESHOLDS, dice
from cloudlearn.submissions import SUBMISSION_SHAPE, read_labels

GRID = np.array([0.2, 0.35, 0.5, 0.75], np.float32)
SIZES = np.array([0, 1, 3, 12, 60])


class Colours(nn.Module):
    "Logits that can be read off the picture: four planes out of three colours, each another one."

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.scale = nn.Parameter(torch.tensor([6.0, -6.0, 4.0, 2.0]).view(1, 4, 1, 1))

    def forward(self, pictures):
        self.calls += 1
        planes = pictures.float()[:, [0, 1, 2, 0]] / 255 - 0.5
        return planes * self.scale


class Slope(nn.Module):
    "Answers that depend on the place alone, so that every flip changes them."

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, pictures):
        rows, columns = (torch.arange(n, dtype=torch.float32) for n in pictures.shape[2:])
        plane = (rows[:, None] - 2 * columns) / 5 + self.bias
        return plane.expand(len(pictures), 4, *pictures.shape[2:])


def pictures_of(seed, count=5, shape=(12, 18)):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 6, 3)).astype(np.uint8)
    fine = [cv2.resize(one, shape[::-1], interpolation=cv2.INTER_LINEAR) for one in coarse]
    return np.stack(fine)


def samples_of(seed, count):
    "Pictures with four masks that can be read off their colours."
    pictures = pictures_of(seed, count)
    masks = np.stack([pictures[..., c] > 128 for c in (0, 1, 2, 0)], axis=1)
    return all_known(map(str, range(count)), pictures, masks=masks)


def pairs_of(seed, count=4, classes=4, shape=(10, 14)):
    "Maps with many ties, and truths of which a good part is empty."
    rng = np.random.default_rng(seed)
    maps = rng.random((count, classes, *shape), dtype=np.float32)
    maps = np.stack([[cv2.blur(plane, (3, 3)) for plane in four] for four in maps])
    maps = (1.6 * maps - 0.3).clip(0, 1).round(2).astype(np.float32)
    truths = (rng.random(maps.shape) < 0.3) & (rng.random((count, classes, 1, 1)) < 0.6)
    return maps, truths


# -------------------------------------------------------------------------------------- the network


def test_segmenter_is_settled_by_its_seed():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = segmenter(seed=1), segmenter(seed=1), segmenter(seed=2)
    assert torch.equal(torch.rand(1), expected), "the caller's random numbers were touched"
    states = [network.state_dict() for network in (one, same, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    differs = {name for name in states[0] if not torch.equal(states[0][name], states[2][name])}
    assert any("decoder" in name for name in differs)
    assert not any("encoder" in name for name in differs)


@pytest.mark.parametrize("shape", [(32, 64), (35, 53)])
def test_segmenter_answers_for_any_size(shape):
    network, pictures = segmenter(weights="none").eval(), torch.zeros(2, 3, *shape).byte()
    with torch.inference_mode():
        assert network(pictures).shape == (2, len(CLOUD_CLASSES), *shape)


def test_train_segmenter_learns_and_keeps_its_last_weights(tmp_path):
    samples = samples_of(0, 8)
    network = Colours()
    train, valid = pick(samples, slice(6)), pick(samples, slice(6, None))
    asked = dict(epochs=3, batch_size=2, encoder_share=1.0, progress=False)
    log = train_segmenter(network, train, valid, tmp_path, **asked, settings={"note": "x"})
    assert list(log.columns) == ["epoch", "train_loss", "valid_loss", "learning_rate", "seconds"]
    assert log.epoch.tolist() == [1, 2, 3]
    from cloudlearn.training import load_network_state

    state, settings = load_network_state(tmp_path / "segment-last.safetensors")
    assert torch.equal(state["scale"], network.scale.detach())
    assert settings["note"] == "x"
    assert settings["batch_size"] == 2
    assert network.scale[0, 1] > -6, "the plane that answered the wrong way round has not moved"


def test_the_loss_is_the_one_that_was_asked_for(tmp_path):
    from cloudlearn.losses import named_loss

    samples = samples_of(3, 4)
    losses = named_loss("bce-dice", dice_weight=1 / 3), named_loss("focal"), named_loss("lovasz")
    for loss in losses:
        asked = dict(epochs=1, batch_size=4, learning_rate=1e-9, progress=False)
        log = train_segmenter(Colours(), samples, samples, tmp_path, **asked, loss=loss)
        with torch.no_grad():
            logits = Colours()(torch.from_numpy(samples.pictures).permute(0, 3, 1, 2))
            expected = loss(logits, torch.from_numpy(samples.masks).float())
        assert log.valid_loss[0] == pytest.approx(expected.item(), rel=1e-4)


def test_a_network_set_to_eval_is_trained_all_the_same(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)).eval()
    samples = samples_of(0, 6)
    train_segmenter(_Float(network), samples, samples, tmp_path, epochs=1, progress=False)
    assert network[0].running_mean.abs().min() > 1, "batch normalisation has not seen the pictures"


class _Float(nn.Module):
    "A network for raw pictures around one for floats, in the mode in which that is."

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.train(network.training)

    def forward(self, pictures):
        return self.network(pictures.float())


# --------------------------------------------------------------------------------------------- maps


@given(
    st.integers(0, 10**6),
    st.tuples(st.integers(2, 40), st.integers(2, 40)),
    st.tuples(st.integers(2, 90), st.integers(2, 90)),
)
def test_scale_maps_is_torchs_bilinear(seed, small, wanted):
    wanted = tuple(max(pair) for pair in zip(small, wanted))  # maps are enlarged
    maps = np.random.default_rng(seed).random((3, *small), dtype=np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(maps)[None], size=wanted, mode="bilinear", align_corners=False
    )
    ours = scale_maps(maps, wanted)
    assert ours.shape == (3, *wanted) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs[0].numpy(), atol=2e-5)
    assert ours.min() >= maps.min() - 1e-6 and ours.max() <= maps.max() + 1e-6


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), np.uint8), np.zeros((4, 4), np.float32)],
)
def test_scale_maps_takes_probabilities_only(wrong):
    with pytest.raises(ValueError, match="resize_mask"):
        scale_maps(wrong)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 64])
def test_every_picture_gets_its_maps_whatever_the_chunk(chunk):
    network, pictures = Colours(), pictures_of(1)
    maps = list(probability_maps(network, pictures, chunk=chunk))
    assert len(maps) == len(pictures) and maps[0].shape == (4, *SUBMISSION_SHAPE)
    planes = pictures[..., [0, 1, 2, 0]].transpose(0, 3, 1, 2) / 255 - 0.5
    logits = planes * np.array([6, -6, 4, 2]).reshape(4, 1, 1)
    for got, want in zip(maps, 1 / (1 + np.exp(-logits))):
        np.testing.assert_allclose(got, scale_maps(want.astype(np.float32)), atol=1e-5)


def test_flips_are_averaged_and_turned_back():
    pictures = pictures_of(2, 2)
    one, _ = probability_maps(Slope(), pictures, flips=False, shape=(12, 18))
    four, _ = probability_maps(Slope(), pictures, flips=True, shape=(12, 18))
    turned = [one, one[:, ::-1], one[:, :, ::-1], one[:, ::-1, ::-1]]
    np.testing.assert_allclose(four, np.mean(turned, axis=0), atol=1e-6)
    assert np.abs(one - four).max() > 0.1


def test_maps_are_made_when_they_are_asked_for():
    network = Colours()
    maps = probability_maps(network, pictures_of(3, 9), chunk=3)
    assert network.calls == 0
    next(maps)
    assert network.calls == 1
    list(maps)
    assert network.calls == 3
    assert list(probability_maps(network, pictures_of(3)[:0])) == []


# ---------------------------------------------------------------------------------- tables and cuts


@pytest.mark.parametrize("seed", range(4))
def test_tables_hold_what_deciding_and_scoring_gives(seed):
    maps, truths = pairs_of(seed)
    tables = pair_tables(iter(maps), iter(truths), GRID, SIZES)
    assert tables.shape == (4, 4, len(GRID), len(SIZES))
    for (t, threshold), (a, area) in itertools.product(enumerate(GRID), enumerate(SIZES)):
        wanted = dice(decide(maps, threshold, area), truths)
        np.testing.assert_array_equal(tables[:, :, t, a], wanted)


CELLS = st.tuples(st.sampled_from(GRID.tolist()), st.sampled_from(SIZES.tolist()))


@given(st.integers(0, 10**6), st.lists(CELLS, min_size=4, max_size=4))
def test_a_look_up_is_what_cutting_gives(seed, chosen):
    maps, truths = pairs_of(seed, count=2)
    cuts = Cuts(*zip(*chosen))
    looked_up = read_cuts(pair_tables(maps, truths, GRID, SIZES), cuts, GRID, SIZES)
    masks = np.stack([cut_maps(four, cuts) for four in maps])
    np.testing.assert_array_equal(looked_up, dice(masks, truths))


@pytest.mark.parametrize("maps, truths, place", [(3, 2, 2), (2, 3, 2), (0, 1, 0)])
def test_maps_and_truths_must_go_together(maps, truths, place):
    probs, masks = pairs_of(0)
    with pytest.raises(ValueError, match=f"part at picture {place}"):
        pair_tables(iter(probs[:maps]), iter(masks[:truths]), GRID, SIZES)


def test_tables_refuse_nothing_and_too_few_classes():
    probs, masks = pairs_of(0)
    with pytest.raises(ValueError, match="at least one picture"):
        pair_tables([], [], GRID, SIZES)
    with pytest.raises(ValueError, match="part at picture 0"):
        pair_tables(probs, masks[:, :3], GRID, SIZES)


@pytest.mark.parametrize("seed", range(5))
def test_fit_cuts_takes_the_best_cell_of_every_class(seed):
    tables = np.random.default_rng(seed).random((6, 3, len(GRID), len(SIZES)))
    cuts = fit_cuts(tables, GRID, SIZES)
    for c, (cut, area) in enumerate(zip(*cuts)):
        t, a = np.flatnonzero(GRID == np.float32(cut))[0], list(SIZES).index(area)
        assert tables[:, c, t, a].mean() == pytest.approx(tables[:, c].mean(0).max())
    best = tables.mean(0).max((1, 2))
    np.testing.assert_allclose(read_cuts(tables, cuts, GRID, SIZES).mean(0), best)


def test_equal_cells_give_one_half_and_thresholds_read_as_written():
    cuts = fit_cuts(np.ones((2, 4, len(THRESHOLDS), len(AREAS))))
    assert cuts == Cuts((0.5,) * 4, (0,) * 4)
    tables = np.zeros((1, 1, len(THRESHOLDS), len(AREAS)))
    tables[0, 0, 8, 5] = 1
    (cut,), (area,) = fit_cuts(tables)
    assert (cut, area) == (0.35, 10_000)
    assert type(cut) is float and type(area) is int
    assert np.float32(cut) == THRESHOLDS[8]


def test_the_plain_cut_is_on_the_grid():
    tables = np.random.default_rng(0).random((3, 4, len(THRESHOLDS), len(AREAS)))
    found = read_cuts(tables, Cuts((0.5,) * 4, (0,) * 4))
    np.testing.assert_array_equal(found, tables[:, :, 11, 0])


@pytest.mark.parametrize(
    "cuts, message",
    [
        (Cuts((0.5, 0.42), (0, 0)), "threshold 0.42 was not scored"),
        (Cuts((0.5, 0.5), (0, 2)), "minimum area 2 was not scored"),
        (Cuts((0.5,), (0,)), "do not fit 1 classes"),
    ],
)
def test_cuts_off_the_grid_are_refused(cuts, message):
    with pytest.raises(ValueError, match=message):
        read_cuts(np.zeros((3, 2, len(GRID), len(SIZES))), cuts, GRID, SIZES)


def test_cut_maps_is_strict_on_both_sides():
    prob = np.full((5, 6), 0.2, np.float32)
    prob[0, :3], prob[4, 4:] = 0.7, 0.5
    maps = np.stack([prob] * 4)
    on = cut_maps(maps, Cuts((0.5, 0.4, 0.4, 0.7), (0, 2, 3, 0)))
    # 0.5 is not above 0.5, and 2 and 3 pixels are not more than 2 and 3
    assert on.sum((1, 2)).tolist() == [3, 3, 0, 0]
    with pytest.raises(ValueError, match="4 maps"):
        cut_maps(maps, Cuts((0.5,) * 3, (0,) * 3))


# ----------------------------------------------------------------------------------------- the file


@pytest.fixture
def folder(tmp_path):
    for name, picture in zip("abcde", pictures_of(7, 5, (24, 36))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), picture[..., ::-1])
    return tmp_path


NAMES = ["c.png", "a.png", "e.png", "b.png", "d.png"]
CUTS = Cuts((0.5, 0.6, 0.4, 0.5), (0, 5_000, 0, 20_000))


def test_the_file_holds_the_masks_in_the_order_asked_for(folder):
    from cloudlearn.files import load_pictures

    path = write_first(folder / "first.csv", Colours(), folder, NAMES, size=(12, 18), cuts=CUTS)
    table = read_labels(path)
    assert list(table.index) == NAMES
    maps = probability_maps(Colours(), load_pictures(folder, NAMES, (12, 18)))
    masks = np.stack([cut_maps(four, CUTS) for four in maps])
    np.testing.assert_array_equal(label_masks(table, size=SUBMISSION_SHAPE), masks)
    assert masks.any() and not masks.all((2, 3)).any()


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_the_chunk_changes_nothing(folder, chunk):
    asked = dict(size=(12, 18), cuts=CUTS, flips=True)
    whole = write_first(folder / "whole.csv", Colours(), folder, NAMES, **asked)
    parts = write_first(folder / "first.csv", Colours(), folder, NAMES, **asked, chunk=chunk)
    assert parts.read_text() == whole.read_text()


def test_a_missing_picture_leaves_no_file_and_no_damage(folder):
    asked = dict(size=(12, 18), cuts=CUTS)
    path = write_first(folder / "first.csv", Colours(), folder, NAMES[:2], **asked)
    before = path.read_text()
    with pytest.raises(ValueError, match="gone.png"):
        write_first(path, Colours(), folder, NAMES + ["gone.png"], **asked, chunk=2)
    assert path.read_text() == before and not list(folder.glob("*.partial"))
