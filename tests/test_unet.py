"""U-Net from zero: sizes, weights, what a score sees, equality with references, the experiment."""

import ast
import inspect

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cloudlearn.learning import seeded, start_weights
from cloudlearn.masks import dilate, rle_decode
from cloudlearn.scores import dice
from cloudlearn.tasks import mask_things
from cloudlearn.unet import (
    BORDER_ARMS,
    CUTS,
    SKIP_ARMS,
    DoubleConv,
    PaddedDoubleConv,
    PaddedUNet,
    PaddedUp,
    UNet,
    Up,
    _bent_batch,
    _cell_scores,
    bend,
    border_experiment,
    border_weights,
    cell_batch,
    cell_scene,
    check_pictures,
    check_side,
    close_skips,
    crop,
    elastic_flow,
    feature_maps,
    input_gradient,
    part_cells,
    receptive_field,
    show_unet,
    skip_experiment,
    things_f1,
    touching_scene,
    train_plain,
    unet_plan,
)

matplotlib.use("Agg")
DOWN = [570, 568, 284, 282, 280, 140, 138, 136, 68, 66, 64, 32, 30, 28]
UP = [56, 54, 52, 104, 102, 100, 200, 198, 196, 392, 390, 388, 388]
PAPER = DOWN + UP


def make(seed, kind, *args, **kwargs):
    with seeded(seed):
        return kind(*args, **kwargs)


def test_paper():
    with torch.device("meta"):
        network, picture = UNet(), torch.zeros(1, 1, 572, 572)
    assert network(picture).shape == (1, 2, 388, 388)
    assert (
        sum(p.numel() for p in network.parameters()) == 31_030_658 == unet_plan().parameters.sum()
    )
    assert unet_plan().side.tolist() == PAPER
    assert [m.shape[2] for m in feature_maps(network, picture).values()] == PAPER


@pytest.mark.parametrize(
    "settings",
    [
        dict(side=188),
        dict(side=84, in_channels=3, classes=4, base=3, depth=2),
        dict(side=36, depth=1, base=2),
        dict(side=92, base=5, depth=3),
    ],
)
def test_plan_is_the_network(settings):
    plan = unet_plan(**settings)
    side = settings.pop("side")
    with torch.device("meta"):
        network = UNet(**settings)
        picture = torch.zeros(1, settings.get("in_channels", 1), side, side)
    network.eval()
    assert plan.parameters.sum() == sum(p.numel() for p in network.parameters())
    maps = feature_maps(network, picture)
    assert list(maps) == [f"{row.path} {row.level} {row.layer}" for row in plan.itertuples()]
    assert [tuple(m.shape[1:]) for m in maps.values()] == list(
        zip(plan.channels, plan.side, plan.side)
    )
    with FlopCounterMode(display=False) as counter:
        network(picture)
    assert counter.get_total_flops() == 2 * plan.multiplications.sum()


@pytest.mark.parametrize("seed", range(5))
def test_forward_step_by_step(seed):
    "Against plain torch functions, in the paper's order."
    network = make(seed, UNet, 2, 3, base=4, depth=2).double()
    x = torch.randn(
        2, 2, 52, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )

    def double(x, block):
        for conv in (block[0], block[2]):
            x = F.relu(F.conv2d(x, conv.weight, conv.bias))
        return x

    a = double(x, network.down[0])
    b = double(F.max_pool2d(a, 2), network.down[1])
    deep = double(F.max_pool2d(b, 2), network.down[2])
    for skip, block, cut in ((b, network.up[0], 4), (a, network.up[1], 16)):
        deep = F.conv_transpose2d(deep, block.up.weight, block.up.bias, stride=2)
        deep = double(torch.cat([deep, skip[:, :, cut:-cut, cut:-cut]], 1), block.convs)
    want = F.conv2d(deep, network.scores.weight, network.scores.bias)
    assert want.shape == (2, 3, 12, 20)
    torch.testing.assert_close(network(x), want)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [(24, 40), (23, 37)])
def test_padded_forward_step_by_step(seed, size):
    "The everyday network against plain torch functions, at even and at odd sizes."
    network = make(seed, PaddedUNet, 2, 3, base=4, depth=2).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64)

    def double(x, block):
        for conv, norm in ((block[0], block[1]), (block[3], block[4])):
            x = F.conv2d(F.pad(x, (1, 1, 1, 1)), conv.weight)
            mean = x.mean((0, 2, 3), keepdim=True)
            variance = x.var((0, 2, 3), correction=0, keepdim=True)
            x = F.relu((x - mean) / (variance + norm.eps).sqrt())
        return x

    a = double(x, network.down[0])
    b = double(F.max_pool2d(a, 2, ceil_mode=True), network.down[1])
    deep = double(F.max_pool2d(b, 2, ceil_mode=True), network.down[2])
    for skip, block in ((b, network.up[0]), (a, network.up[1])):
        height, width = skip.shape[2:]
        deep = F.conv_transpose2d(deep, block.up.weight, block.up.bias, stride=2)
        deep = double(torch.cat([deep[:, :, :height, :width], skip], 1), block.convs)
    want = F.conv2d(deep, network.scores.weight, network.scores.bias)
    assert want.shape == (2, 3, *size)
    torch.testing.assert_close(network.train()(x), want)


def test_padded_sizes():
    "Sides are halved upwards and come back; the layers have the names of the paper's network."
    network = make(0, PaddedUNet, 1, 2, base=2, depth=3).eval()
    maps = feature_maps(network, torch.zeros(1, 1, 35, 35))
    assert list(maps) == list(
        feature_maps(make(0, UNet, base=1, depth=3), torch.zeros(1, 1, 92, 92))
    )
    sides = [35, 35, 18, 18, 18, 9, 9, 9, 5, 5, 5, 10, 9, 9, 18, 18, 18, 36, 35, 35, 35]
    assert [m.shape[2] for m in maps.values()] == sides


@given(height=st.integers(1, 40), width=st.integers(1, 40), depth=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_padded_takes_any_size(height, width, depth):
    network = PaddedUNet(3, 4, base=1, depth=depth).eval()
    assert network(torch.zeros(2, 3, height, width)).shape == (2, 4, height, width)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_check_side(depth):
    first, step = {1: 18, 2: 44, 3: 92, 4: 188}[depth], 2**depth
    good = set(range(first, 700, step))
    for side in range(1, 650):
        if side in good:
            check_side(side, depth)
        else:
            with pytest.raises(ValueError) as error:
                check_side(side, depth)
            above = min(n for n in good if n > side)
            assert f"{above}, or a PaddedUNet" in str(error.value)
            if side > first:
                assert f"take {above - step} or {above}" in str(error.value)
    network = UNet(base=1, depth=depth)
    assert network(torch.zeros(1, 1, first, first + step)).shape[2:] == (
        unet_plan(first, depth=depth).side.iloc[-1],
        unet_plan(first + step, depth=depth).side.iloc[-1],
    )


def test_bad_input_in_words():
    with pytest.raises(ValueError, match="492 or 508"):
        UNet(base=1)(torch.zeros(1, 1, 572, 500))
    with pytest.raises(ValueError, match="492 or 508"):
        unet_plan(500)
    with pytest.raises(ValueError, match="expected float pictures"):
        PaddedUNet(1, base=1)(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        PaddedUNet(base=1)(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"\(B, 1, H, W\)"):
        UNet(base=1)(torch.zeros(1, 3, 572, 572))
    with pytest.raises(ValueError, match="expected float pictures"):
        check_pictures(torch.zeros(1, 32, 32), 1)
    for levels in ((3,), (-1,)):
        with pytest.raises(ValueError, match="levels 0 to 2"):
            close_skips(PaddedUNet(base=1, depth=3), keep=levels)
    for kind in (UNet, PaddedUNet):
        with pytest.raises(ValueError, match="depth from 1"):
            kind(base=1, depth=0)
    with pytest.raises(ValueError, match="larger"):
        crop(torch.zeros(4, 4), (5, 4))


@pytest.mark.parametrize("depth, side", [(1, 52), (2, 52), (3, 108)])
def test_receptive_field_by_nan(depth, side):
    "One NaN in the picture: it reaches exactly the scores that see it."
    network, seen = make(0, UNet, base=2, depth=depth).eval(), []
    for row in range(side):
        x = torch.rand(1, 1, side, side)
        x[..., row, :] = np.nan
        seen.append(network(x)[0, 0].isnan().any(1))
    seen = torch.stack(seen)  # picture row, score row
    for score in range(seen.shape[1]):
        rows = seen[:, score].nonzero()[:, 0].tolist()
        first, last = receptive_field(score, depth)
        assert rows == list(range(max(first, 0), min(last, side - 1) + 1))


@pytest.mark.parametrize("pixel", [(0, 0), (3, 4), (17, 31)])
def test_gradient_stays_in_the_field(pixel):
    network = make(1, UNet, base=2)
    network.pool = nn.AvgPool2d(2)  # a maximum listens to one of its four
    for p in network.parameters():
        p.data.abs_()  # and a ReLU that is off, to nothing
    heard = input_gradient(network, (1, 220, 220), pixel, draws=1)
    for axis, n in enumerate(pixel):
        where = np.flatnonzero(heard.any(1 - axis))
        assert (where[0], where[-1]) == receptive_field(n)


def test_skips():
    x = torch.randn(1, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    networks = {arm: make(3, PaddedUNet, 1, 1, base=4).eval() for arm in SKIP_ARMS}
    for arm, levels in SKIP_ARMS.items():
        close_skips(networks[arm], keep=levels)
    states = [network.state_dict() for network in networks.values()]
    assert all(
        torch.equal(state[key], states[0][key]) for state in states for key in states[0]
    )  # one start for all arms
    outputs = torch.cat([network(x) for network in networks.values()])
    assert len(torch.unique(outputs.flatten(1), dim=0)) == len(
        SKIP_ARMS
    )  # and seven different answers


@pytest.mark.parametrize("level", range(4))
def test_a_skip_hands_over_its_own_level(level):
    "The gradient reaches the skip half of a level's first convolution only where it is open."
    network = make(0, PaddedUNet, 1, 1, base=2)
    close_skips(network, keep=(level,))
    pictures = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    network(pictures).square().sum().backward()
    for at, block in zip((3, 2, 1, 0), network.up):
        weight = block.convs[0].weight
        skip_half = weight.grad[:, weight.shape[1] // 2 :]
        assert (skip_half.abs().sum() > 0) == (at == level)


@pytest.mark.parametrize("kind, size", [(UNet, (92, 100)), (PaddedUNet, (40, 33))])
def test_gradient_reaches_every_weight(kind, size):
    network = make(2, kind, 3, 2, base=4, depth=3)
    pictures = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    network(pictures).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for name, p in network.named_parameters()
    )


@pytest.mark.parametrize("seed", range(3))
def test_start_weights(seed):
    network = make(seed, UNet, base=16, depth=3)
    for layer in network.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            assert layer.weight.std().item() == pytest.approx(layer.in_channels**-0.5, rel=0.1)
        elif isinstance(layer, nn.Conv2d) and layer.weight.numel() > 1000:
            assert layer.weight.std().item() == pytest.approx(
                (2 / (9 * layer.in_channels)) ** 0.5, rel=0.1
            )
        if getattr(layer, "bias", None) is not None:
            assert not layer.bias.any()
    with seeded(seed):
        start_weights(network)
    again = network.scores.weight.clone()
    with seeded(seed):
        start_weights(network)
    assert torch.equal(again, network.scores.weight)


@given(height=st.integers(4, 20), width=st.integers(4, 20), data=st.data())
@settings(max_examples=30, deadline=None)
def test_crop_is_the_middle(height, width, data):
    shape = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    for where, have, want in (
        (crop(rows, shape)[:, 0], height, shape[0]),
        (crop(columns, shape)[0], width, shape[1]),
    ):
        first, after = int(where[0]), have - 1 - int(where[-1])
        assert len(where) == want and after - first in (0, 1)


def library_up(below, left, channels):
    "A step up with the library's enlarging."
    step = PaddedUp(channels)
    step.up = nn.Upsample(scale_factor=2)
    step.convs = PaddedDoubleConv(below + left, channels)
    return step


@pytest.mark.parametrize(
    "seed, size", [(0, (32, 48)), (1, (35, 57)), (2, (24, 41)), (3, (9, 8)), (4, (63, 17))]
)
def test_equal_to_smp_decoder(seed, size):
    with seeded(seed):
        library = UnetDecoder(
            encoder_channels=(3, 8, 12, 16), decoder_channels=(16, 12, 8), n_blocks=3
        )
        for p in library.parameters():
            nn.init.normal_(p)
        ours = nn.ModuleList(
            library_up(*channels) for channels in ((16, 12, 16), (16, 8, 12), (12, 0, 8))
        )
        features = [
            torch.randn(2, n, *(-(-side // 2**level) for side in size))
            for level, n in enumerate((3, 8, 12, 16))
        ]
    ours.load_state_dict(dict(zip(ours.state_dict(), library.state_dict().values(), strict=True)))
    for mode in (True, False):
        deep = features[-1]
        for block, skip in zip(ours.train(mode), [features[2], features[1], features[0][:, :0]]):
            deep = block(deep, skip)
        torch.testing.assert_close(deep, library.train(mode)(features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_cell_scene(seed):
    scene, again = cell_scene(seed), cell_scene(seed)
    assert all(np.array_equal(a, b) for a, b in zip(scene, again))
    assert (
        scene.picture.dtype == np.uint8
        and scene.mask.dtype == bool
        and scene.picture.shape == scene.mask.shape == scene.cells.shape == (64, 64)
    )
    kinds = [set(scene.mask[scene.cells == n].tolist()) for n in range(1, scene.cells.max() + 1)]
    assert kinds[0] == {True} and kinds[1] == {False} and all(len(kind) == 1 for kind in kinds)
    assert not scene.mask[scene.cells == 0].any()
    for n in range(1, scene.cells.max() + 1):
        assert not ((scene.cells > 0) & (scene.cells != n))[dilate(scene.cells == n, 3)].any()


def test_cell_scores_by_hand():
    scene = cell_scene(5)
    assert _cell_scores(scene.mask, scene) == {"dice": 1, "right": 1, "distance": 0}
    everything = _cell_scores(scene.cells > 0, scene)
    number = scene.cells.max()
    wanted = len(set(scene.cells[scene.mask]))
    assert everything["right"] == pytest.approx(wanted / number) and everything["distance"] == 0
    nothing = _cell_scores(np.zeros_like(scene.mask), scene)
    assert (
        nothing["dice"] == 0
        and nothing["right"] == pytest.approx(1 - wanted / number)
        and np.isnan(nothing["distance"])
    )
    grown = _cell_scores(dilate(scene.mask, 2), scene)
    assert 1 < grown["distance"] < 3 and grown["right"] == 1


def test_train_plain_learns_and_repeats():
    pictures, targets = cell_batch([cell_scene(seed, side=48) for seed in (0, 1)])
    runs = []
    for _ in range(2):
        network = make(0, PaddedUNet, 1, 1, base=4, depth=2)
        runs.append(train_plain(network, pictures, targets, steps=40, batch=2, rate=0.01))
    assert runs[0] == runs[1] and len(runs[0]) == 40 and not network.training
    with torch.inference_mode():
        masks = (network(pictures) > 0).numpy()
    assert dice(masks, targets.numpy() > 0).mean() > 0.8


def test_skip_experiment():
    state = torch.get_rng_state()
    setting = dict(seeds=(0, 1), arms=("all", "none"), train=8, test=3, steps=2, base=1)
    table = skip_experiment(**setting)
    assert torch.equal(state, torch.get_rng_state())
    assert (
        list(table) == ["seed", "arm", "class", "picture", "dice", "right", "distance", "mask"]
        and len(table) == 2 * 2 * 3
    )
    assert not table.duplicated(["seed", "arm", "picture"]).any()
    assert table.equals(skip_experiment(**setting))
    assert (
        table[table.seed == 1]
        .reset_index(drop=True)
        .equals(skip_experiment(**{**setting, "seeds": (1,)}))
    )
    with pytest.raises(ValueError, match="unknown arm 'only 9'"):
        skip_experiment(arms=("only 9",))


def test_show_unet():
    ax = show_unet(unet_plan(188), title="small")
    boxes = 1 + 27 + 4  # the picture, a box per layer, what the skips bring
    assert ax.get_title() == "small" and len(ax.patches) == boxes + 4  # and the dotted crops
    said = [text.get_text() for text in ax.texts]
    assert "512 + 512" in said and said.count("188") == 1
    assert show_unet(unet_plan(204, depth=3, base=4), ax=ax) is ax
    matplotlib.pyplot.close("all")


def test_the_network_is_short():
    "The lesson says `some forty statements`."
    trees = [ast.parse(inspect.getsource(part)) for part in (DoubleConv, crop, Up, UNet)]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    written = [n for n in nodes if not isinstance(getattr(n, "value", None), ast.Constant)]
    assert 35 <= len(written) <= 45


@pytest.mark.parametrize("seed", range(10))
def test_touching_cells_stay_apart_in_the_label(seed):
    scene, again = touching_scene(seed), touching_scene(seed)
    assert all(np.array_equal(a, b) for a, b in zip(scene, again))
    parts = part_cells(scene.cells)
    assert np.array_equal(parts > 0, scene.mask)
    kept = scene.cells[scene.mask]
    assert np.array_equal(parts[scene.mask], kept)
    for piece in mask_things(scene.mask):  # no two cells are neighbours, not even at a corner
        assert len(set(parts[piece].tolist())) == 1
    gaps = (scene.cells > 0) & ~scene.mask
    assert 0.02 < gaps.mean() < 0.25  # cells do touch


def test_part_cells_by_hand():
    cells = np.array([[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 0, 2], [3, 3, 0, 0]])
    wanted = [[1, 1, 0, 2], [1, 1, 0, 2], [0, 0, 0, 2], [3, 3, 0, 0]]
    assert part_cells(cells).tolist() == wanted
    assert part_cells(np.zeros((3, 3), int)).tolist() == np.zeros((3, 3)).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_border_weights_by_brute_force(seed):
    parts = part_cells(touching_scene(seed, side=48).cells)
    weights = border_weights(parts, extra=7, sigma=3)
    rng = np.random.default_rng(seed)
    where = np.argwhere(parts == 0)
    for row, column in rng.permutation(where)[:40]:
        ways = []
        for number in np.unique(parts[parts > 0]):
            rows, columns = np.nonzero(parts == number)
            ways.append(np.hypot(rows - row, columns - column).min())
        first, second = sorted(ways)[:2]
        want = 1 + 7 * np.exp(-((first + second) ** 2) / 18)
        assert weights[row, column] == pytest.approx(want, abs=0.12)  # OpenCV's 5x5 distances
    assert (weights[parts > 0] == 1).all() and weights.dtype == np.float32
    assert (border_weights((parts == 1).astype(int)) == 1).all()


def test_elastic_flow_and_bend():
    still = np.zeros((2, 20, 30), np.float32)
    image = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)
    assert np.array_equal(bend(image, still), image)
    right = still.copy()
    right[1] = 3  # every pixel is fetched from three columns further right
    assert np.array_equal(bend(image, right)[:, :-3], image[:, 3:])
    down = still.copy()
    down[0] = 2
    assert np.array_equal(bend(image, down, nearest=True)[:-2], image[2:])
    flow = elastic_flow(np.random.default_rng(1), (40, 60), strength=3)
    assert flow.shape == (2, 40, 60) and flow.dtype == np.float32
    assert np.abs(np.diff(flow, axis=2)).max() < 1  # smooth
    spread = [
        elastic_flow(np.random.default_rng(n), (9, 9), strength=3)[:, 0, 0] for n in range(200)
    ]
    assert np.std(spread) == pytest.approx(3, rel=0.15)  # a corner is one of the nine arrows


def test_bent_scenes_keep_their_gaps():
    scenes = [touching_scene(seed) for seed in range(3)]
    for scene in _bent_batch(scenes, np.random.default_rng(0)):
        assert np.array_equal(scene.mask, part_cells(scene.cells) > 0)
        assert scene.picture.dtype == np.uint8 and scene.mask.mean() > 0.4


def test_things_f1_by_hand():
    parts = np.zeros((12, 30), int)
    parts[1:9, 1:9], parts[1:9, 10:18], parts[1:9, 20:28] = 1, 2, 3
    assert things_f1(parts > 0, parts) == 1
    merged = parts > 0
    merged[4, 9] = True  # one pixel makes two cells one: 1 hit, 2 pieces, 3 cells
    assert things_f1(merged, parts) == pytest.approx(2 / 5)
    assert dice(merged, parts > 0) > 0.99
    specks = parts > 0
    specks[11, ::3] = True  # too small to count
    assert things_f1(specks, parts) == 1
    extra = parts == 1
    extra[10:, 10:20] = True  # a piece where no cell is
    assert things_f1(extra, parts) == pytest.approx(2 / 5)
    assert things_f1(np.zeros_like(merged), parts) == 0


def test_border_experiment():
    setting = dict(seeds=(0,), arms=("turns", "both"), train=4, valid=1, test=1, steps=2, base=1)
    table = border_experiment(**setting)
    assert set(setting["arms"]) < set(BORDER_ARMS) and table.arm.tolist() == ["turns", "both"]
    assert table.cut.isin(CUTS).all() and not table.isna().any().any()
    assert table.equals(border_experiment(**setting))
    row = table.iloc[0]
    mask, parts = rle_decode(row["mask"], (64, 64)), part_cells(touching_scene(500).cells)
    assert row["f1"] == pytest.approx(things_f1(mask, parts), abs=1e-4)
    assert row["dice"] == pytest.approx(float(dice(mask, parts > 0)), abs=1e-4)
    with pytest.raises(ValueError, match="unknown arm 'tears'"):
        border_experiment(arms=("tears",))
