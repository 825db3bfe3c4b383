"""Borders and tiles: seam-free predictions, what a network sees, and the padding experiment."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cloudlearn import tiles
from cloudlearn.learning import seeded
from cloudlearn.tiles import (
    PADDING_ARMS,
    PADDINGS,
    RINGS,
    View,
    each_tile,
    measure_view,
    mirror_index,
    padded,
    padding_experiment,
    predict,
)
from cloudlearn.unet import PaddedUNet, UNet
from cloudlearn.windows import fully_convolutional, patch_network


def ready(make, seed=0):
    "A network with first weights from `seed`, ready to be asked."
    with seeded(seed):
        return make().eval()


def conv(a, b, side=3, padding=0):
    return nn.Conv2d(a, b, side, padding=padding)


def blocky():
    return nn.Sequential(
        conv(3, 4, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        conv(4, 4, padding=1),
        nn.Upsample(scale_factor=4),
        conv(4, 2, padding=1),
    )


def strided():
    down, up = nn.Conv2d(3, 4, 2, stride=2), nn.ConvTranspose2d(4, 2, 2, stride=2)
    return nn.Sequential(down, nn.ReLU(), up)


def unpadded_blocky():
    up = nn.Upsample(scale_factor=2)
    return nn.Sequential(conv(3, 4), nn.MaxPool2d(2), conv(4, 4), up, conv(4, 2))


def plain():
    return nn.Sequential(conv(3, 4, padding=1), nn.ReLU(), conv(4, 2, 5, padding=2))


NETWORKS = {  # name -> (network, what it sees)
    "1x1": (lambda: conv(3, 2, 1), View(1, 0, 0)),
    "plain": (plain, View(1, 3, 3)),
    "unpadded": (lambda: nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2, 5)), View(1, 3, 3)),
    "pooled": (blocky, View(4, 9, 12)),
    "strided": (strided, View(2, 0, 0)),
    "pooled, unpadded": (unpadded_blocky, None),
    "patch": (lambda: fully_convolutional(patch_network(21, width=3, norm=True)), View(1, 10, 10)),
    "unet": (lambda: PaddedUNet(3, 2, base=2, depth=2), None),
    "unet, unpadded": (lambda: UNet(3, 2, base=2, depth=2), View(4, 20, 20)),
    "unet, deep": (lambda: UNet(3, 2, base=1, depth=4), View(16, 92, 94)),
}


def make(name, seed=0):
    return ready(NETWORKS[name][0], seed)


def image(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tensor(picture, dtype):
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].to(dtype)


def in_one_piece(network, picture, view):
    "The scores of the mirrored picture, computed at once."
    (height, width), c = picture.shape[:2], view.context
    below, right = c + -height % view.stride, c + -width % view.stride
    mirrored = np.pad(picture, ((c, below), (c, right), (0, 0)), mode="reflect")
    x = tensor(mirrored, next(network.parameters()).dtype)
    with torch.no_grad():
        scores = network(x)[0].numpy()
    cut = c - (len(mirrored) - scores.shape[1]) // 2
    return scores[:, cut : cut + height, cut : cut + width]


# --------------------------------------------------------------------------------- views and tiles


@given(length=st.integers(1, 12), reach=st.integers(0, 40))
def test_mirror_index(length, reach):
    mirrored = np.pad(np.arange(length), reach, mode="reflect")
    assert mirror_index(np.arange(-reach, length + reach), length).tolist() == mirrored.tolist()


@pytest.mark.parametrize("name", NETWORKS)
def test_measured_view(name):
    network = make(name).train()
    view = measure_view(network)
    assert network.training and view.context >= view.reach
    if NETWORKS[name][1]:
        assert view == NETWORKS[name][1]


def receptive_field(pixel, depth):
    "First and last row that a score of a padded U-Net depends on; they may lie outside."
    first, last = pixel - 2, pixel + 2
    for _ in range(depth):
        first, last = first // 2 - 2, last // 2 + 2
    for _ in range(depth):
        first, last = 2 * first - 2, 2 * last + 3
    return first, last


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_view_of_a_unet_is_its_receptive_field(depth):
    view = measure_view(make_unet(depth))
    assert view.stride == 2**depth and view.context % view.stride == 0
    side = 2**depth * 40
    seen = [receptive_field(pixel, depth) for pixel in range(side)]
    clean = [pixel for pixel, (first, last) in enumerate(seen) if first >= 0 and last < side]
    assert view.reach == max(clean[0], side - 1 - clean[-1])
    assert clean == list(range(clean[0], clean[-1] + 1))


def make_unet(depth):
    return ready(lambda: PaddedUNet(3, 1, base=2, depth=depth))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    "seed, height, width, tile", [(0, 70, 101, 32), (1, 64, 33, 48), (2, 17, 9, 16)]
)
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
    with torch.no_grad():
        plain = network(tensor(picture, torch.float64))[0].numpy()
    r, margin = view.reach, (72 - plain.shape[1]) // 2
    tiled = predict(network, picture, 16, view=view)[:, r : 72 - r, r : 104 - r]
    inside = plain[:, r - margin : 72 - r - margin, r - margin : 104 - r - margin]
    assert inside.size
    np.testing.assert_allclose(tiled, inside, rtol=0, atol=1e-9 * np.abs(plain).max())


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    tile=st.integers(1, 8),
    more=st.integers(0, 9),
)
@settings(max_examples=20, deadline=None)
def test_any_size_any_tile(height, width, tile, more):
    network, picture, view = make("pooled").double(), image(0, height, width), View(4, 9, 12)
    tiled = predict(network, picture, 4 * tile, context=9 + more, view=view)
    np.testing.assert_allclose(tiled, in_one_piece(network, picture, view), rtol=0, atol=1e-7)


def test_what_the_guards_guard_against():
    network, picture, view = make("pooled").double(), image(0, 96, 100), View(4, 9, 12)
    whole = in_one_piece(network, picture, view)

    def worst(tile, view):
        return np.abs(predict(network, picture, tile, view=view) - whole).max()

    assert worst(48, view) < 1e-7
    assert worst(48, View(4, 8, 8)) > 1e-3  # context too small by one step
    assert worst(50, View(1, 12, 12)) > 1e-3  # off the grid
    with_zeros = np.abs(predict(network, picture, 48, border="zeros") - whole)
    assert with_zeros[:, 9:-9, 9:-9].max() < 1e-7 and with_zeros.max() > 1e-3


def test_zeros_beyond_the_border():
    network, picture = make("plain").double(), image(0, 20, 30)
    x = nn.functional.pad(tensor(picture, torch.float64), (3,) * 4)
    with torch.no_grad():
        plain = network(x)[0, :, 3:-3, 3:-3].numpy()
    tiled = predict(network, picture, 8, border="zeros")
    np.testing.assert_allclose(tiled, plain, rtol=0, atol=1e-9 * np.abs(plain).max())


def test_tiles_cover_once_and_network_is_left_as_it_was():
    network, picture = make("pooled").train(), image(0, 50, 70)
    count = np.zeros((50, 70), int)
    for rows, columns, scores in each_tile(network, picture, tile=20):
        assert not network.training
        assert scores.shape == (2, rows.stop - rows.start, columns.stop - columns.start)
        count[rows, columns] += 1
    assert (count == 1).all() and network.training
    network = make("patch").train()
    with pytest.raises(ValueError, match="takes 10 pixels off each edge"):
        predict(network, picture, view=View(1, 4, 4))
    assert network.training


class Whole(nn.Module):
    "A network that looks at all of its window: every score is the window's mean."

    def forward(self, x):
        return x.mean((1, 2, 3), keepdim=True).expand(-1, 1, *x.shape[2:])


def test_a_network_without_a_bounded_view_is_blended():
    picture = image(0, 90, 130)
    picture[:, 64:] //= 2
    hard = predict(Whole(), picture, 32, view=View(1, 16, 16))[0]
    soft = predict(Whole(), picture, 32, view=View(1, 4, 16))[0]  # 24 pixels from tile to tile
    steps = [max(abs(np.diff(maps, axis=axis)).max() for axis in (0, 1)) for maps in (hard, soft)]
    assert steps[1] < steps[0] / 20
    assert abs(soft.mean() - hard.mean()) < 1
    even = np.full((90, 130, 3), 7, np.uint8)
    np.testing.assert_allclose(predict(Whole(), even, 32, view=View(1, 0, 16)), 7, rtol=1e-6)


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
    assert set(fed) == {(1, 3, 56, 44)}  # tiles of 32 x 20, with 12 pixels around
    assert len(fed) == 20 == len(read)
    assert max(height for height, _ in read) == 56 and max(width for _, width in read) == 40 - 8


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64, bool])
def test_pictures_of_every_type(dtype):
    network = ready(lambda: conv(1, 2, padding=1))
    picture = (np.random.default_rng(0).random((20, 31)) * 2).astype(dtype)
    scores = predict(network, picture, tile=9)
    mirrored = np.pad(picture, 1, mode="reflect").astype(np.float32)
    with torch.no_grad():
        want = network(torch.from_numpy(mirrored)[None, None])[0, :, 1:-1, 1:-1]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, want.numpy(), atol=1e-5)


def test_into_a_file(tmp_path):
    picture = np.memmap(tmp_path / "picture.dat", np.uint8, "w+", shape=(90, 120, 3))
    picture[:] = image(0, 90, 120)
    out = np.memmap(tmp_path / "scores.dat", np.float16, "w+", shape=(2, 90, 120))
    network = make("pooled")
    assert predict(network, picture, tile=32, out=out) is out
    np.testing.assert_allclose(out, predict(network, np.asarray(picture)), rtol=2e-3, atol=0.2)


SMALL = image(0, 8, 8)


@pytest.mark.parametrize(
    "picture, options, words",
    [
        (SMALL[None], {}, r"\(H, W\) or \(H, W, channels\)"),
        (np.zeros((0, 5)), {}, "at least one pixel"),
        (np.zeros((3, 40, 50)), {}, "channels first"),
        (np.zeros((8, 8, 3), complex), {}, "whole numbers or floats"),
        (np.zeros((8, 8)), {}, "cannot be tiled"),
        (SMALL, {"border": "wrap"}, "a mirror or zeros"),
        (SMALL, {"tile": 50}, "take 48 or 52"),
        (SMALL, {"tile": 3}, "take 4$"),
        (SMALL, {"tile": -4}, "tile -4"),
        (SMALL, {"context": 8}, "context 8 is too small.*give at least 9"),
        (SMALL, {"out": np.zeros((3, 8, 8))}, r"fill \(2, 8, 8\)"),
    ],
)
def test_bad_input(picture, options, words):
    with pytest.raises(ValueError, match=words):
        predict(make("pooled"), picture, **options)


class Mean(nn.Module):
    "Every score depends on the whole picture."

    def forward(self, x):
        return x - x.mean((2, 3), keepdim=True)


@pytest.mark.parametrize(
    "build, words",
    [
        (Mean, "No tile is exact"),
        (lambda: patch_network(9), "cannot be tiled"),
        (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), "fully_convolutional"),
        (lambda: nn.AvgPool2d(2), "one score per pixel"),
        (lambda: nn.Threshold(300.0, 0.0), "one number everywhere|swallows NaN"),
        (
            lambda: nn.Sequential(conv(3, 1), nn.Upsample(size=(64, 64))),
            "cannot be tiled|No tile is exact",
        ),
    ],
)
def test_networks_that_cannot_be_tiled(build, words):
    with pytest.raises(ValueError, match=words):
        measure_view(build().eval(), limit=256)


@given(side=st.integers(1, 500), steps=st.integers(1, 40), stride=st.sampled_from([1, 2, 4, 16]))
def test_tiles_are_equal_and_few(side, steps, stride):
    tile = steps * stride
    one = tiles._tile_side(side, tile, stride)
    assert one % stride == 0 and one <= tile
    assert -(-side // one) == -(-side // tile)


# --------------------------------------------------------------------------------- borders


@pytest.mark.parametrize("padding", PADDINGS)
def test_padded_networks_agree_inside(padding):
    network = ready(lambda: fully_convolutional(patch_network(45, width=2, norm=True)))
    x = torch.randn(1, 3, 60, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores, bare = padded(network, padding, 22)(x), network(x)
    assert scores.shape[2:] == (60, 64)
    torch.testing.assert_close(scores[..., 22:-22, 22:-22], bare, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="unknown padding 'wrap'"):
        padded(network, "wrap", 22)


def test_padding_experiment():
    frame = padding_experiment(seeds=(0,), train=4, test=2, steps=2)
    assert set(frame.arm) == set(PADDING_ARMS) and list(frame.ring.unique()) == list(RINGS)
    far = frame[frame.ring == 22]
    assert (far.moved == 0).all() and (far.wrong == far.wrong_real).all()
    assert (frame[frame.ring == 0].moved > 0).all()
    real = frame.pivot(index=["picture", "ring"], columns="arm", values="wrong_real")
    assert real["mirror"].equals(real["zeros, unprepared"])
    assert real["zeros in layers"].equals(real["mirror, unprepared"])
    with pytest.raises(ValueError, match="unknown arm 'wrap'"):
        padding_experiment(arms=("wrap",))


def test_rings():
    found, labels = torch.zeros(2, 9, 12), torch.zeros(9, 12, dtype=torch.int64)
    exact = found.clone()
    found[1, 0, 0], labels[4, 4] = 50.0, -1
    rows = {row["ring"]: row for row in tiles._ring_scores(found, exact, labels)}
    assert list(rows) == [0, 1, 2, 4]
    assert rows[0]["wrong"] == pytest.approx(1 / 38)
    assert rows[0]["moved"] == pytest.approx(0.5 / 38, abs=1e-6)
    assert all(rows[ring]["moved"] == 0 for ring in (1, 2, 4)) and rows[0]["wrong_real"] == 0
