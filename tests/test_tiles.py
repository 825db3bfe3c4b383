"""Sliding windows and tiles: the same numbers at less work, seam-free predictions, what a network sees, and the two experiments."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cloudlearn import tiles
from cloudlearn.masks import dilate
from cloudlearn.scenes.clouds import cloud_scene
from cloudlearn.tiles import (PADDING_ARMS, PADDINGS, RINGS, WINDOWS, View, each_tile, fully_convolutional, largest_piece, measure_view, mirror_index,
                              multiplications, padded, padding_experiment, patch_network, predict, region_scores, slide, strip_width, train_labels,
                              window_arm, windows_experiment)
from cloudlearn.unet import UNet, receptive_field


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def conv(a, b, side=3, padding=0): return nn.Conv2d(a, b, side, padding=padding)


def blocky(): return nn.Sequential(conv(3, 4, padding=1), nn.ReLU(), nn.MaxPool2d(4), conv(4, 4, padding=1), nn.Upsample(scale_factor=4), conv(4, 2, padding=1))


NETWORKS = {   # name -> (network, what it sees)
    "1x1": (lambda: conv(3, 2, 1), View(1, 0, 0)),
    "plain": (lambda: nn.Sequential(conv(3, 4, padding=1), nn.ReLU(), conv(4, 2, 5, padding=2)), View(1, 3, 3)),
    "unpadded": (lambda: nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2, 5)), View(1, 3, 3)),
    "pooled": (blocky, View(4, 9, 12)),
    "strided": (lambda: nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, stride=2)), View(2, 0, 0)),
    "pooled, unpadded": (lambda: nn.Sequential(conv(3, 4), nn.MaxPool2d(2), conv(4, 4), nn.Upsample(scale_factor=2), conv(4, 2)), None),
    "patch": (lambda: fully_convolutional(patch_network(21, width=3, norm=True)), View(1, 10, 10)),
    "unet": (lambda: UNet(3, 2, base=2, depth=2, padded=True, norm=True), None),
    "unet, unpadded": (lambda: UNet(3, 2, base=2, depth=2), View(4, 20, 20)),
    "unet, deep": (lambda: UNet(3, 2, base=1, depth=4), View(16, 92, 94)),
}


def make(name, seed=0): return seeded(NETWORKS[name][0], seed)


def image(seed, height, width): return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tensor(picture, dtype): return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].to(dtype)


def in_one_piece(network, picture, view):
    "The scores of the mirrored picture, computed at once."
    (height, width), c = picture.shape[:2], view.context
    mirrored = np.pad(picture, ((c, c + -height % view.stride), (c, c + -width % view.stride), (0, 0)), mode="reflect")
    with torch.no_grad(): scores = network(tensor(mirrored, next(network.parameters()).dtype))[0].numpy()
    cut = c - (len(mirrored) - scores.shape[1]) // 2
    return scores[:, cut:cut + height, cut:cut + width]


# ------------------------------------------------------------------------------------------------ sliding window

@pytest.mark.parametrize("patch, levels", WINDOWS.items())
def test_patch_network(patch, levels):
    network = patch_network(patch, classes=3, width=2, channels=2)
    assert network(torch.zeros(2, 2, patch, patch)).shape == (2, 3)
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in network) == levels
    with pytest.raises(ValueError, match="9, 21, 45 or 93"): patch_network(patch + 1)


@pytest.mark.parametrize("patch", [9, 21, 45])
@pytest.mark.parametrize("seed", range(3))
def test_whole_pictures_give_the_window_s_scores(patch, seed):
    network = seeded(lambda: patch_network(patch, width=3, norm=bool(seed % 2)), seed)
    if seed % 2: seeded(lambda: network.train()(torch.randn(8, 3, patch, patch)) is None or network, seed)    # statistics that are not 0 and 1
    network.eval()
    picture = torch.randn(3, patch + 5 + seed, patch + 4, generator=torch.Generator().manual_seed(seed))
    scores = slide(network, picture, patch, batch=7)
    torch.testing.assert_close(fully_convolutional(network)(picture[None])[0].detach(), scores, rtol=1e-4, atol=1e-5)
    for row, column in ((0, 0), (3, 4), (5 + seed, 1)):
        one = network(picture[None, :, row:row + patch, column:column + patch])[0]
        torch.testing.assert_close(scores[:, row, column], one.detach(), rtol=1e-4, atol=1e-5)


def test_linear_layer_over_a_map():
    network = seeded(lambda: nn.Sequential(conv(2, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 3 * 3, 4), nn.ReLU(), nn.Linear(4, 2)))
    picture = torch.randn(2, 14, 11)
    torch.testing.assert_close(fully_convolutional(network)(picture[None])[0].detach(), slide(network, picture, 8), rtol=1e-4, atol=1e-5)


def test_whole_pictures_leave_the_patch_network_alone():
    network = seeded(lambda: patch_network(9, width=2, norm=True))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    whole = fully_convolutional(network).train()
    whole(torch.randn(2, 3, 20, 20)).sum().backward()
    for p in whole.parameters(): p.data.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_refused_layers():
    for network, words in ((nn.Sequential(conv(3, 2, padding=1)), "padding invents a border"), (nn.Sequential(nn.Conv2d(3, 2, 3, stride=2)), "stride"),
                           (nn.Sequential(nn.Sigmoid()), "cannot turn Sigmoid")):
        with pytest.raises(ValueError, match=words): fully_convolutional(network)
    with pytest.raises(ValueError, match="no patch of 9x9 fits into a picture of 8x20"): slide(patch_network(9), torch.zeros(3, 8, 20), 9)


@pytest.mark.parametrize("patch", WINDOWS)
def test_multiplications(patch):
    network = patch_network(patch, width=4).eval()
    table = multiplications(network, (3, patch, patch))
    with FlopCounterMode(display=False) as counter: network(torch.zeros(1, 3, patch, patch))
    assert counter.get_total_flops() == 2 * table.multiplications.sum()
    assert network[0].weight.device.type == "cpu"
    whole = fully_convolutional(network)
    large = multiplications(whole, (3, 5000 + patch, 5000 + patch)).multiplications.sum() / 5001**2
    assert large == pytest.approx(table.weights.sum(), rel=0.05)      # one place per pixel, edges aside


# ------------------------------------------------------------------------------------------------ views and tiles

@given(length=st.integers(1, 12), reach=st.integers(0, 40))
def test_mirror_index(length, reach):
    assert mirror_index(np.arange(-reach, length + reach), length).tolist() == np.pad(np.arange(length), reach, mode="reflect").tolist()


@pytest.mark.parametrize("name", NETWORKS)
def test_measured_view(name):
    network = make(name).train()
    view = measure_view(network)
    assert network.training and view.context >= view.reach
    if NETWORKS[name][1]: assert view == NETWORKS[name][1]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_view_of_a_unet_is_its_receptive_field(depth):
    view = measure_view(make_unet(depth))
    assert view.stride == 2**depth and view.context % view.stride == 0
    side = 2**depth * 40
    seen = [receptive_field(pixel, depth, padded=True) for pixel in range(side)]
    clean = [pixel for pixel, (first, last) in enumerate(seen) if first >= 0 and last < side]
    assert view.reach == max(clean[0], side - 1 - clean[-1]) and clean == list(range(clean[0], clean[-1] + 1))


def make_unet(depth): return seeded(lambda: UNet(3, 1, base=2, depth=depth, padded=True))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed, height, width, tile", [(0, 70, 101, 32), (1, 64, 33, 48), (2, 17, 9, 16)])
def test_no_seams(name, seed, height, width, tile):
    network, picture = make(name, seed).double(), image(seed, height, width)
    view = measure_view(network)
    tiled, whole = predict(network, picture, tile, view=view), in_one_piece(network, picture, view)
    assert tiled.dtype == np.float64 and tiled.shape == (2 if name != "patch" else 5, height, width)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-9 * max(1, np.abs(whole).max()))


@pytest.mark.parametrize("name", ["plain", "unpadded", "pooled", "strided", "unet", "patch"])
def test_equal_to_the_plain_picture_inside(name):
    network, picture = make(name, 1).double(), image(1, 72, 104)
    view = measure_view(network)
    with torch.no_grad(): plain = network(tensor(picture, torch.float64))[0].numpy()
    tiled, r, margin = predict(network, picture, 16, view=view), view.reach, (72 - plain.shape[1]) // 2
    inside = plain[:, r - margin:72 - r - margin, r - margin:104 - r - margin]
    assert inside.size
    np.testing.assert_allclose(tiled[:, r:72 - r, r:104 - r], inside, rtol=0, atol=1e-9 * np.abs(plain).max())


@given(height=st.integers(1, 60), width=st.integers(1, 60), tile=st.integers(1, 8), more=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_any_size_any_tile(height, width, tile, more):
    network, picture, view = make("pooled").double(), image(0, height, width), View(4, 9, 12)
    tiled = predict(network, picture, 4 * tile, context=9 + more, view=view)
    np.testing.assert_allclose(tiled, in_one_piece(network, picture, view), rtol=0, atol=1e-7)


def test_what_the_guards_guard_against():
    network, picture, view = make("pooled").double(), image(0, 96, 100), View(4, 9, 12)
    whole = in_one_piece(network, picture, view)
    def worst(tile, view): return np.abs(predict(network, picture, tile, view=view) - whole).max()
    assert worst(48, view) < 1e-7
    assert worst(48, View(4, 8, 8)) > 1e-3           # context too small by one step
    assert worst(50, View(1, 12, 12)) > 1e-3         # off the grid
    assert np.abs(predict(network, picture, 48, border="zeros") - whole)[:, 9:-9, 9:-9].max() < 1e-7
    assert np.abs(predict(network, picture, 48, border="zeros") - whole).max() > 1e-3


def test_zeros_beyond_the_border():
    network, picture = make("plain").double(), image(0, 20, 30)
    with torch.no_grad(): plain = nn.Sequential(*[layer for layer in network])(nn.functional.pad(tensor(picture, torch.float64), (3,) * 4))[0, :, 3:-3, 3:-3].numpy()
    np.testing.assert_allclose(predict(network, picture, 8, border="zeros"), plain, rtol=0, atol=1e-9 * np.abs(plain).max())


def test_tiles_cover_once_and_network_is_left_as_it_was():
    network, picture = make("pooled").train(), image(0, 50, 70)
    count, sides = np.zeros((50, 70), int), set()
    for rows, columns, scores in each_tile(network, picture, tile=20):
        assert not network.training and scores.shape == (2, rows.stop - rows.start, columns.stop - columns.start)
        assert rows.start % 4 == 0 and columns.start % 4 == 0
        count[rows, columns] += 1
    assert (count == 1).all() and network.training
    network = make("patch").train()
    with pytest.raises(ValueError, match="takes 10 pixels off each edge"): predict(network, picture, view=View(1, 4, 4))
    assert network.training


def test_windows_have_one_size_and_only_they_are_read():
    read, fed, picture = [], [], image(0, 300, 40)
    class Watched:
        shape, ndim, dtype = picture.shape, 3, picture.dtype
        def __getitem__(self, part):
            read.append(tuple(s.stop - s.start for s in part))
            return picture[part]
    network = make("pooled")
    network.register_forward_hook(lambda layer, given, result: fed.append(tuple(given[0].shape)))
    predict(network, Watched(), tile=32, view=View(4, 9, 12))
    assert set(fed) == {(1, 3, 56, 44)} and len(fed) == 20 == len(read)     # tiles of 32 x 20, with 12 pixels around
    assert max(height for height, _ in read) == 56 and max(width for _, width in read) == 40 - 8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64, bool])
def test_pictures_of_every_type(dtype):
    network = seeded(lambda: conv(1, 2, padding=1))
    picture = (np.random.default_rng(0).random((20, 31)) * 2).astype(dtype)
    scores = predict(network, picture, tile=9)
    with torch.no_grad(): want = network(torch.from_numpy(np.pad(picture, 1, mode="reflect").astype(np.float32))[None, None])[0, :, 1:-1, 1:-1].numpy()
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, want, atol=1e-5)


def test_into_a_file(tmp_path):
    picture = np.memmap(tmp_path / "picture.dat", np.uint8, "w+", shape=(90, 120, 3))
    picture[:] = image(0, 90, 120)
    out, network = np.memmap(tmp_path / "scores.dat", np.float16, "w+", shape=(2, 90, 120)), make("pooled")
    assert predict(network, picture, tile=32, out=out) is out
    np.testing.assert_allclose(out, predict(network, np.asarray(picture)), rtol=2e-3, atol=0.2)


@pytest.mark.parametrize("picture, options, words", [
    (image(0, 8, 8)[None], {}, r"\(H, W\) or \(H, W, channels\)"), (np.zeros((0, 5)), {}, "at least one pixel"), (np.zeros((3, 40, 50)), {}, "channels first"),
    (np.zeros((8, 8, 3), complex), {}, "whole numbers or floats"), (image(0, 8, 8), dict(border="wrap"), "a mirror or zeros"),
    (image(0, 8, 8), dict(tile=50), "take 48 or 52"), (image(0, 8, 8), dict(tile=3), "take 4$"), (image(0, 8, 8), dict(tile=-4), "tile -4"),
    (image(0, 8, 8), dict(context=8), "context 8 is too small.*give at least 9"), (image(0, 8, 8), dict(out=np.zeros((3, 8, 8))), r"fill \(2, 8, 8\)"),
    (np.zeros((8, 8)), {}, "cannot be tiled")])
def test_bad_input(picture, options, words):
    with pytest.raises(ValueError, match=words): predict(make("pooled"), picture, **options)


def test_networks_that_cannot_be_tiled():
    class Mean(nn.Module):
        def forward(self, x): return x - x.mean((2, 3), keepdim=True)
    for network, words in ((Mean(), "No tile is exact"), (patch_network(9), "cannot be tiled"), (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "fully_convolutional"), (nn.AvgPool2d(2), "one score per pixel"),
                           (nn.Threshold(300.0, 0.0), "one number everywhere|swallows NaN"),
                           (nn.Sequential(conv(3, 1), nn.Upsample(size=(64, 64))), "cannot be tiled|No tile is exact")):
        with pytest.raises(ValueError, match=words): measure_view(network.eval(), limit=256)


# ------------------------------------------------------------------------------------------------ measures and experiments

def test_strip_width():
    square = np.zeros((30, 30), bool)
    square[10:20, 10:20] = True
    wider = np.zeros_like(square)
    wider[9:21, 9:21] = True
    assert strip_width(square, square) == 0 and strip_width(wider, square) == 44 / 40
    assert strip_width(np.roll(square, 2, 0), square) == 1
    seen = np.ones_like(square)
    seen[:15] = False
    assert strip_width(np.roll(square, 2, 1), square, seen) == pytest.approx(20 / 20)      # five rows: 10 at the sides, 10 below
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
    assert perfect and all(row["right"] == 1 and row["outline"] == 0 and row["core"] in (1,) or np.isnan(row["core"]) for row in perfect)
    assert all(row["right"] == 0 and np.isnan(row["outline"]) for row in region_scores(np.zeros_like(truth), scene))
    moved, further = region_scores(np.roll(truth, 1, 1), scene), region_scores(np.roll(truth, 3, 1), scene)
    assert np.nanmean([row["outline"] for row in moved]) < np.nanmean([row["outline"] for row in further])
    speckled = np.where(np.random.default_rng(seed).random(truth.shape) < 0.2, 0, truth)
    assert all(row["right"] == 1 for row in region_scores(speckled, scene))


@pytest.mark.parametrize("padding", PADDINGS)
def test_padded_networks_agree_inside(padding):
    network = seeded(lambda: fully_convolutional(patch_network(45, width=2, norm=True)))
    x = torch.randn(1, 3, 60, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): scores, bare = padded(network, padding, 22)(x), network(x)
    assert scores.shape[2:] == (60, 64)
    torch.testing.assert_close(scores[..., 22:-22, 22:-22], bare, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="unknown padding 'wrap'"): padded(network, "wrap", 22)


def test_train_labels_repeats_and_leaves_out():
    pictures, labels = torch.randn(4, 3, 16, 16), torch.randint(0, 5, (4, 16, 16))
    labels[:, :8] = -1
    runs = []
    for _ in range(2):
        network = seeded(lambda: padded(fully_convolutional(patch_network(9, width=4)), "mirror", 4))
        runs.append(train_labels(network, pictures, labels, steps=4))
    other = seeded(lambda: padded(fully_convolutional(patch_network(9, width=4)), "mirror", 4))
    assert runs[0] == runs[1] and not network.training
    assert train_labels(other, pictures, torch.where(labels < 0, -1, (labels + 1) % 5), steps=4) != runs[0]


def test_windows_experiment():
    state = torch.random.get_rng_state()
    frame = windows_experiment(seeds=(0, 1), arms=("9", "U-Net"), train=4, test=3, work=700)
    assert torch.equal(state, torch.random.get_rng_state())
    assert set(frame.seed) == {0, 1} and set(frame.arm) == {"9", "U-Net"} and set(frame.picture) == {0, 1, 2}
    assert not frame.duplicated(["seed", "arm", "picture", "region"]).any()
    work = frame.groupby("arm")[["million", "steps"]].first().prod(axis=1) * 4
    assert ((work - 700).abs() < 700 * 0.4).all()
    regions = [frame[frame.arm == arm].drop(columns=["arm", "right", "core", "outline", "million", "steps"]).reset_index(drop=True) for arm in ("9", "U-Net")]
    assert regions[0].equals(regions[1])        # every arm is scored on the same regions
    weights = {arm: sum(p.numel() for p in window_arm(arm).parameters()) for arm in ("9", "21", "45")}
    assert max(weights.values()) < 1.1 * min(weights.values())
    with pytest.raises(ValueError, match="the arms are 9, 21, 45, U-Net"): windows_experiment(arms=("10",))


def test_padding_experiment():
    frame = padding_experiment(seeds=(0,), train=4, test=2, steps=2)
    assert set(frame.arm) == set(PADDING_ARMS) and list(frame.ring.unique()) == list(RINGS)
    far = frame[frame.ring == 22]
    assert (far.moved == 0).all() and (far.wrong == far.wrong_real).all()
    assert (frame[frame.ring == 0].moved > 0).all()
    real = frame.pivot(index=["picture", "ring"], columns="arm", values="wrong_real")
    assert real["mirror"].equals(real["zeros, unprepared"]) and real["zeros in layers"].equals(real["mirror, unprepared"])
    with pytest.raises(ValueError, match="unknown arm 'wrap'"): padding_experiment(arms=("wrap",))


def test_rings():
    found, labels = torch.zeros(2, 9, 12), torch.zeros(9, 12, dtype=torch.int64)
    exact = found.clone()
    found[1, 0, 0], labels[4, 4] = 50.0, -1
    rows = {row["ring"]: row for row in tiles._ring_scores(found, exact, labels)}
    assert list(rows) == [0, 1, 2, 4] and rows[0]["wrong"] == pytest.approx(1 / 38) and rows[0]["moved"] == pytest.approx(0.5 / 38, abs=1e-6)
    assert all(rows[ring]["moved"] == 0 for ring in (1, 2, 4)) and rows[0]["wrong_real"] == 0
