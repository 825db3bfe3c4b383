"""FCN, atrous convolution, ASPP, DeepLabV3 and V3+ against references, and the experiments."""

from copy import deepcopy
from itertools import product
from math import gcd

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP as SmpASPP
from torch import nn
from torchvision.models import ResNet, resnet18
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.segmentation import DeepLabV3 as LibraryDeepLabV3
from torchvision.models.segmentation.deeplabv3 import ASPP as LibraryASPP
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from cloudlearn.deeplab import (
    ASPP,
    FCN,
    TARGET_ARMS,
    TARGETS,
    Backbone,
    DeepLabV3,
    DeepLabV3Plus,
    _channels,
    _far_from_nucleus,
    at_stride_8,
    atrous,
    enlarge,
    fit_rates,
    from_torchvision,
    large_cells,
    multi_grid,
    paths,
    reach_experiment,
    shift_experiment,
    shifted,
    short_sighted,
    small_resnet,
    start_biases,
    target_batch,
    targets_experiment,
)
from cloudlearn.learning import seeded
from cloudlearn.scores import dice, fit_thresholds
from cloudlearn.unet import cell_scene, input_gradient, train_plain
from cloudlearn.windows import total_multiplications


def make(seed, build, *args, **kwargs):
    with seeded(seed):
        return build(*args, **kwargs)


def narrow(replaced=(False, False, False), layers=(1, 2, 2, 1)):
    "A slim relative of ResNet-50: quick, and torchvision can make it atrous."
    return ResNet(
        Bottleneck, list(layers), width_per_group=4, replace_stride_with_dilation=list(replaced)
    )


def noise(seed, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scatter(seed, module):
    "Weights, biases and batch statistics that are all different, so that no mix-up stays hidden."
    rng = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.data = 0.2 * torch.randn(p.shape, generator=rng)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean = torch.randn(m.running_mean.shape, generator=rng)
            m.running_var = torch.rand(m.running_var.shape, generator=rng) + 0.5
    return module


def copied(ours, library, without=0):
    weights = list(library.state_dict().values())
    ours.load_state_dict(
        dict(zip(ours.state_dict(), weights[: len(weights) - without], strict=True))
    )
    return ours


def same(ours, library, x, seed, key=lambda out: out):
    for mode in (True, False):
        with seeded(seed), torch.no_grad():
            one = ours.train(mode)(x)
        with seeded(seed), torch.no_grad():
            other = key(library.train(mode)(x))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    for a, b in zip(ours.state_dict().values(), library.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# ---- targets and cuts


@pytest.mark.parametrize("seed", range(6))
def test_target_batch(seed):
    scene = cell_scene(seed, side=48)
    pictures, targets = target_batch([scene, cell_scene(seed + 100, side=48)])
    assert (
        pictures.shape == (2, 1, 96, 96)
        and targets.shape == (2, 4, 96, 96)
        and pictures.dtype == targets.dtype == torch.float32
    )
    assert -1 <= pictures.min() < -0.3 and 0.1 < pictures.max() <= 1
    masks = targets[0].numpy() > 0
    assert dice(masks[3], np.kron(scene.mask, np.ones((2, 2), bool))) > 0.97
    outside = np.argwhere(~masks[3])
    for place in np.argwhere(masks[3])[::7]:
        depth = np.hypot(*(outside - place).T).min()
        assert [masks[(n, *place)] for n in range(3)] == [depth <= width for width in (2, 4, 8)]


# ---- enlarging


@given(
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_enlarge_by_hand(h, w, height, width, seed):
    x = noise(seed, 2, 3, h, w, dtype=torch.float64).numpy()

    def between(old, new):
        centres = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
        return np.maximum(1 - abs(centres[:, None] - np.arange(old)), 0)

    want = between(h, height) @ x @ between(w, width).T
    np.testing.assert_allclose(enlarge(torch.tensor(x), (height, width)).numpy(), want, atol=1e-9)


# ---- backbones


@pytest.mark.parametrize(
    "seed, shape", [(0, (64, 32)), (1, (33, 50)), (2, (47, 40)), (3, (96, 96)), (4, (1, 7))]
)
def test_small_resnet_step_by_step(seed, shape):
    "Against plain torch functions, at a width that torchvision does not have."
    network, x = scatter(seed, small_resnet(1, base=3)).eval(), noise(seed, 2, 1, *shape)

    def unit(x, conv, norm, stride=1):
        return F.batch_norm(
            F.conv2d(x, conv.weight, stride=stride, padding=conv.weight.shape[-1] // 2),
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
        )

    with torch.no_grad():
        maps, deep = (
            network(x),
            F.max_pool2d(unit(x, network.stem[0], network.stem[1], 2).relu(), 3, 2, 1),
        )
        for level, stage in enumerate(network.stages):
            for n, block in enumerate(stage):
                stride = 2 if level and n == 0 else 1
                short = unit(deep, *block.short, stride) if level and n == 0 else deep
                deep = (
                    unit(
                        unit(deep, block.convs[0], block.convs[1], stride).relu(),
                        block.convs[3],
                        block.convs[4],
                    )
                    + short
                ).relu()
            torch.testing.assert_close(maps[level], deep)


def test_small_resnet_is_resnet18():
    library, x = scatter(0, resnet18()), noise(0, 2, 3, 33, 50)
    ours = copied(small_resnet(), library, without=2)
    for mode in (True, False):
        with torch.no_grad():
            maps, want = ours.train(mode)(x), from_torchvision(library.train(mode))(x)
        assert [m.shape[1] for m in maps] == [64, 128, 256, 512]
        for one, other in zip(maps, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        scores = F.conv2d(ours(x)[-1], library.fc.weight[:, :, None, None], library.fc.bias).mean(
            (2, 3)
        )
    torch.testing.assert_close(scores, library(x).detach(), rtol=1e-3, atol=1e-3)


def test_from_torchvision_shares_weights():
    library = ResNet(BasicBlock, [1, 1, 2, 1]).eval()
    ours = from_torchvision(library)
    library.layer3[1].conv2.weight.data.zero_()
    assert isinstance(ours, Backbone) and not ours.stages[2][1].conv2.weight.any()
    x = noise(0, 1, 3, 40, 52)
    with torch.no_grad():
        want = library.layer4(
            library.layer3(
                library.layer2(
                    library.layer1(library.maxpool(library.relu(library.bn1(library.conv1(x)))))
                )
            )
        )
        assert torch.equal(ours(x)[-1], want)


@pytest.mark.parametrize("training", [True, False])
def test_channels_changes_nothing(training):
    network = scatter(0, small_resnet(1, base=3)).train(training)
    network.stages[1].eval()
    modes, state = [m.training for m in network.modules()], deepcopy(network.state_dict())
    assert _channels(network, 1) == [3, 6, 12, 24]
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(state.values(), network.state_dict().values()))


# ---- FCN


@pytest.mark.parametrize("seed, variant", list(product(range(3), (32, 16, 8))))
def test_fcn_step_by_step(seed, variant):
    network, x = scatter(seed, FCN(1, 3, base=3, variant=variant)).eval(), noise(seed, 2, 1, 75, 50)
    with torch.no_grad():
        maps = network.backbone(x)
        sides = {8: maps[1], 16: maps[2], 32: maps[3]}
        want, score = network.scores[-1](sides[32]), list(network.scores[:-1])
        for stride in (16, 8):
            if stride >= variant:
                want = score.pop()(sides[stride]) + F.interpolate(
                    want, sides[stride].shape[2:], mode="bilinear"
                )
        torch.testing.assert_close(network(x), F.interpolate(want, (75, 50), mode="bilinear"))
    assert not score


@pytest.mark.parametrize("variant", [32, 16, 8])
def test_fcn_gradient_reaches_every_weight(variant):
    network = make(0, FCN, 3, 2, base=4, variant=variant)
    network(noise(0, 2, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_start_biases():
    targets = (
        torch.rand(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        < torch.tensor([0.02, 0.2, 0.5, 0])[:, None, None]
    ).float()
    for arm in TARGET_ARMS:
        network = make(0, TARGET_ARMS[arm]).eval()
        before = deepcopy(network.state_dict())
        start_biases(network, targets)
        changed = [
            name
            for name, value in network.state_dict().items()
            if not torch.equal(value, before[name])
        ]
        assert len(changed) == 1 and changed[0].endswith("bias")
        np.testing.assert_allclose(
            network.state_dict()[changed[0]].sigmoid(), targets.mean((0, 2, 3)), atol=2e-6
        )


# ---- atrous

BUILDS = {
    "tiny": lambda: small_resnet(3, base=2),
    "small": lambda: small_resnet(3, base=6),
    "basic blocks": lambda: from_torchvision(ResNet(BasicBlock, [1, 1, 2, 1])),
    "bottlenecks": lambda: from_torchvision(narrow()),
}


@pytest.mark.parametrize("seed, name", list(enumerate(BUILDS)))
@pytest.mark.parametrize("shape", [(32, 32), (41, 50)])
def test_the_old_numbers_stay(seed, name, shape):
    "Each map holds the strided network's numbers at every second, or fourth, place."
    network, x = (
        make(seed, BUILDS[name]).double().eval(),
        noise(seed, 1, 3, *shape, dtype=torch.float64),
    )
    with torch.no_grad():
        old = network(x)
        finer = {stride: atrous(deepcopy(network), stride) for stride in (32, 16, 8)}
        for stride, steps in {32: (1, 1, 1, 1), 16: (1, 1, 1, 2), 8: (1, 1, 2, 4)}.items():
            maps = finer[stride](x)
            assert tuple(maps[-1].shape[2:]) == tuple(-(-side // stride) for side in shape)
            for one, other, step in zip(maps, old, steps):
                torch.testing.assert_close(one[..., ::step, ::step], other, rtol=1e-9, atol=1e-9)
        twice = atrous(atrous(deepcopy(network), 16), 8)
        assert torch.equal(twice(x)[-1], finer[8](x)[-1]) and torch.equal(
            atrous(twice, 8)(x)[-1], finer[8](x)[-1]
        )
    assert all(
        torch.equal(a, b)
        for a, b in zip(network.state_dict().values(), twice.state_dict().values())
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("replaced, stride", [((False, False, True), 16), ((False, True, True), 8)])
def test_atrous_is_torchvisions(seed, replaced, stride):
    layers = [(1, 2, 2, 1), (2, 1, 1, 2), (1, 1, 3, 2)][seed]
    library, x = (
        scatter(seed, narrow(replaced, layers)).double().eval(),
        noise(seed, 1, 3, 70, 49, dtype=torch.float64),
    )
    ours = atrous(from_torchvision(copied(narrow(layers=layers).double(), library).eval()), stride)
    with torch.no_grad():
        for one, other in zip(ours(x), from_torchvision(library)(x), strict=True):
            torch.testing.assert_close(one, other)


def test_atrous_refuses():
    for stride in (4, 12, 64):
        with pytest.raises(ValueError, match="8, 16 or 32"):
            atrous(small_resnet(base=2), stride)
    with pytest.raises(ValueError, match="output stride of 8 already"):
        atrous(atrous(small_resnet(base=2), 8), 32)


def extent(network, stride, side=512):
    "Rows that the middle of the last map listens to: positive weights, averages for maxima."
    network = nn.Sequential(deepcopy(network).stem, *deepcopy(network).stages)
    network[0][3] = nn.AvgPool2d(3, 2, padding=1)
    for p in network.parameters():
        p.data.abs_()
    return (
        np.ptp(
            np.flatnonzero(
                input_gradient(network, (1, side, side), [side // stride // 2] * 2, draws=1).any(1)
            )
        )
        + 1
    )


def test_the_field_stays():
    network = make(0, small_resnet, 1, base=1)
    assert (
        extent(network, 32)
        == extent(atrous(deepcopy(network), 16), 16)
        == extent(atrous(deepcopy(network), 8), 8)
        == 435
    )


# ---- paths


@given(rates=st.lists(st.integers(1, 6), max_size=4))
@settings(max_examples=40, deadline=None)
def test_paths_by_force(rates):
    reach, want = sum(rates), np.zeros(2 * sum(rates) + 1, int)
    for steps in product((-1, 0, 1), repeat=len(rates)):
        want[reach + np.dot(steps, rates).astype(int)] += 1
    assert np.array_equal(paths(rates), want)
    if rates and (factor := gcd(*rates)) > 1:
        assert (np.flatnonzero(paths(rates)) % factor == reach % factor).all()


@pytest.mark.parametrize("rates", [(1,), (2, 2), (1, 2, 3), (2, 4, 3), (1, 3, 9)])
def test_paths_by_gradient(rates):
    layers = [nn.Conv2d(1, 1, 3, padding=rate, dilation=rate) for rate in rates]
    for layer in layers:
        nn.init.ones_(layer.weight)
    side = 2 * sum(rates) + 1
    assert np.array_equal(
        input_gradient(nn.Sequential(*layers), (1, side, side), (side // 2,) * 2, draws=1),
        np.outer(paths(rates), paths(rates)),
    )


# ---- ASPP and DeepLabV3


@pytest.mark.parametrize("seed", range(6))
def test_aspp_is_the_libraries(seed):
    rng = np.random.default_rng(seed)
    rates, shape, dropout = (
        tuple(rng.integers(1, 9, 3).tolist()),
        rng.integers(3, 12, 2).tolist(),
        [0.0, 0.5, 0.3][seed % 3],
    )
    x = noise(seed, 3, 5, *shape)
    library = scatter(seed, SmpASPP(5, 7, rates, separable=False, dropout=dropout))
    same(copied(ASPP(5, rates, 7, dropout), library), library, x, seed)
    library = scatter(seed, LibraryASPP(5, rates[: 2 + seed % 2], 7))
    same(copied(ASPP(5, rates[: 2 + seed % 2], 7), library), library, x, seed)


@pytest.mark.parametrize("seed", range(3))
def test_head_is_torchvisions(seed):
    library, x = scatter(seed, DeepLabHead(8, 3, (1, 2, 3 + seed))), noise(seed, 2, 8, 6, 7)
    ours = DeepLabV3(8, 3, base=64, rates=(1, 2, 3 + seed), backbone=nn.Conv2d(8, 8, 1))
    same(copied(ours.head, library), library, x, seed)


class Out(nn.Module):
    "What torchvision's DeepLabV3 wants of a backbone: its last map, under a name."

    def __init__(self, network):
        super().__init__()
        self.network = from_torchvision(network)

    def forward(self, x):
        return {"out": self.network(x)[-1]}


def test_whole_network_is_torchvisions():
    library = make(
        0, lambda: LibraryDeepLabV3(Out(narrow((False, True, True))), DeepLabHead(2048, 5))
    )
    ours = copied(
        DeepLabV3(3, 5, output_stride=8, backbone=from_torchvision(narrow())), library
    ).eval()
    x = noise(0, 1, 3, 65, 40)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), library.eval()(x)["out"], rtol=1e-3, atol=1e-4)


def test_parameters_of_aspp():
    for c, k, rates in ((512, 256, (6, 12, 18)), (7, 3, (1, 2)), (5, 4, ())):
        n = len(rates) + 2
        assert sum(p.numel() for p in ASPP(c, rates, k).parameters()) == c * k * (
            2 + 9 * len(rates)
        ) + n * k * k + 2 * k * (n + 1)


@given(height=st.integers(1, 70), width=st.integers(1, 70), stride=st.sampled_from([8, 16]))
@settings(max_examples=6, deadline=None)
def test_any_size(height, width, stride):
    x = torch.zeros(2, 3, height, width)
    assert (
        DeepLabV3(3, 4, base=1, output_stride=stride)(x).shape
        == FCN(3, 4, base=1).eval()(x).shape
        == (2, 4, height, width)
    )


def test_backbone_given():
    encoder = smp.encoders.get_encoder(
        "resnet18", weights=None, output_stride=16
    )  # gives a list, the picture first
    network = DeepLabV3(3, 2, base=4, backbone=encoder, rates=(1, 2, 3)).eval()
    x = noise(0, 1, 3, 64, 96)
    with torch.no_grad():
        want = F.interpolate(network.head(encoder(x)[-1]), (64, 96), mode="bilinear")
        assert torch.equal(network(x), want)
        single = DeepLabV3(3, 2, base=4, backbone=nn.Conv2d(3, 6, 4, stride=4), rates=(1,)).eval()
        assert single(x).shape == (1, 2, 64, 96) and single.head[0].branches[0][0].in_channels == 6
    assert FCN(3, 2, variant=8, backbone=encoder).eval()(x).shape == (1, 2, 64, 96)
    assert encoder is network.backbone and DeepLabV3(
        3, 2, output_stride=8, backbone=small_resnet(3, 2)
    )(x.repeat(2, 1, 1, 1)).shape == (2, 2, 64, 96)


def test_output_stride_and_rates():
    for stride, rates in ((16, (6, 12, 18)), (8, (12, 24, 36))):
        network = DeepLabV3(3, 2, base=2, output_stride=stride)
        assert tuple(network.backbone(torch.zeros(2, 3, 128, 96))[-1].shape[2:]) == (
            128 // stride,
            96 // stride,
        )
        assert (
            tuple(branch[0].dilation[0] for branch in network.head[0].branches[1:4])
            == rates
            == fit_rates(513, stride)
        )
    assert (
        fit_rates(96) == (1, 2, 3)
        and fit_rates(10) == (1, 1, 1)
        and fit_rates(1026, 8) == (24, 48, 72)
    )


def test_bad_input_in_words():
    network = DeepLabV3(1, 2, base=1, rates=(1, 2, 3))
    with pytest.raises(ValueError, match="a batch of one picture in training"):
        network(torch.zeros(1, 1, 64, 64))
    assert network.eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 2, 64, 64)
    for net in (network, FCN(1, 2, base=1)):
        with pytest.raises(ValueError, match=r"float pictures \(B, 1, H, W\), got torch.uint8"):
            net(torch.zeros(2, 1, 64, 64, dtype=torch.uint8))
        with pytest.raises(ValueError, match=r"got torch.float32 \(2, 3, 64, 64\)"):
            net(torch.zeros(2, 3, 64, 64))
        with pytest.raises(ValueError, match="got torch.float32"):
            net(torch.zeros(1, 64, 64))
    with pytest.raises(ValueError, match="16 or 8, got 32"):
        DeepLabV3(output_stride=32, base=1)
    with pytest.raises(ValueError, match="32, 16 or 8, got 4"):
        FCN(variant=4, base=1)


def test_gradient_reaches_every_weight():
    network = make(0, DeepLabV3, 1, 2, base=4, output_stride=8, rates=(1, 2, 3))
    network(noise(0, 3, 1, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_given_backbone_keeps_its_weights():
    backbone = make(0, small_resnet, 3, 2)
    before = deepcopy(backbone.state_dict())
    for network in (FCN(3, 2, backbone=backbone), DeepLabV3(3, 2, backbone=backbone)):
        assert all(
            torch.equal(a, b)
            for a, b in zip(before.values(), network.backbone.state_dict().values())
        )


# ---- work and experiment


def test_multiplications():
    for rate in (1, 2, 5):
        assert (
            total_multiplications(nn.Conv2d(3, 5, 3, padding=rate, dilation=rate), (3, 10, 20))
            == 9 * 3 * 5 * 200
        )
    aspp = ASPP(6, (2, 3), 4)
    assert total_multiplications(aspp, (6, 7, 9)) == 63 * (6 * 4 * (1 + 9 + 9) + 4 * 4 * 4) + 6 * 4
    assert aspp.training and next(aspp.parameters()).device.type == "cpu"


def test_targets_experiment():
    state = torch.get_rng_state()
    setting = dict(seeds=(1,), arms=("FCN-8s", "DeepLabV3, stride 16"), pictures=(4, 1, 3), steps=2)
    table = targets_experiment(**setting)
    assert torch.equal(state, torch.get_rng_state())
    assert (
        list(table) == ["seed", "arm", "class", "picture", "cut", "dice", "million"]
        and len(table) == 2 * 4 * 3
    )
    assert table.groupby("arm").million.unique().map(list).to_dict() == {
        "FCN-8s": [21.3028],
        "DeepLabV3, stride 16": [45.7656],
    }
    assert (
        list(table["class"].unique()) == list(TARGETS)
        and not table.duplicated(["seed", "arm", "class", "picture"]).any()
    )
    x, y = target_batch(
        [cell_scene(500 + n, side=48) for n in range(8)]
    )  # seed 1 again, step by step
    with seeded(1):
        network = TARGET_ARMS["DeepLabV3, stride 16"]()
        start_biases(network, y[:4])
        train_plain(network, x[:4], y[:4], steps=2, rate=1e-2, seed=1)
    with torch.no_grad():
        probs = network(x[4:]).sigmoid().numpy()
    cuts = fit_thresholds(probs[:1], y[4:5].numpy() > 0)
    rows = table[(table.seed == 1) & (table.arm == "DeepLabV3, stride 16")].pivot(
        index="picture", columns="class", values="dice"
    )[list(TARGETS)]
    np.testing.assert_allclose(
        rows, dice(probs[1:] > cuts[:, None, None], y[5:].numpy() > 0), atol=1e-4
    )
    with pytest.raises(ValueError, match="unknown arm 'FCN-4s'"):
        targets_experiment(arms=("FCN-4s",))


# ---- multi-grid, the half-grid shift, V3+ and the experiments on shift and reach


def rates_of(part):
    return [
        layer.dilation[0]
        for layer in part.modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3)
    ]


def test_multi_grid():
    network = atrous(make(0, small_resnet, 3, base=2), 16)
    assert rates_of(network.stages[-1]) == [1, 2, 2, 2]
    assert multi_grid(network, (1, 3)) is network
    assert rates_of(network.stages[-1]) == [1, 2, 6, 6] and set(rates_of(network.stages[2])) == {1}
    assert network(torch.zeros(2, 3, 80, 64))[-1].shape == (2, 16, 5, 4)
    bottlenecks = narrow(layers=(1, 1, 1, 3))
    assert rates_of(multi_grid(bottlenecks, (1, 2, 4)).layer4) == [1, 2, 4]
    with pytest.raises(ValueError, match="has 2 blocks, so the grid needs 2 factors; got 3"):
        multi_grid(small_resnet(3, base=2), (1, 2, 4))


@pytest.mark.parametrize("seed", range(3))
def test_at_stride_8_keeps_the_old_numbers(seed):
    network = make(seed, DeepLabV3, 1, 2, base=2, rates=(1, 2, 3)).eval()
    before = deepcopy(network.state_dict())
    finer, x = at_stride_8(network), noise(seed, 2, 1, 80, 64)
    with torch.no_grad():
        coarse, fine = (net.backbone(x)[-1] for net in (network, finer))
        assert coarse.shape[2:] == (5, 4) and fine.shape[2:] == (10, 8)
        branches = zip(network.head[0].branches, finer.head[0].branches)
        for old, new in list(branches)[:4]:  # the fifth averages over more places
            torch.testing.assert_close(new(fine)[..., ::2, ::2], old(coarse), rtol=1e-3, atol=1e-4)
        after, finer_after = network.head[1:], finer.head[1:]
        x = noise(seed, 2, 8, 10, 8)
        torch.testing.assert_close(finer_after(x)[..., ::2, ::2], after(x[..., ::2, ::2]))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), finer.state_dict().values()))
    assert rates_of(network.head) == [1, 2, 3, 1] and rates_of(finer.head) == [2, 4, 6, 2]


@pytest.mark.parametrize("stride", [4, 8, 16])
@pytest.mark.parametrize("corners", [False, True])
def test_where_a_pixel_is_drawn(stride, corners):
    "Between centres half a grid step beside s * i; from corner to corner at s * i itself."
    places = 9
    side = stride * (places - 1) + 1 if corners else stride * places
    dot = torch.zeros(1, 1, 1, places, dtype=torch.float64)
    dot[..., 4] = 1
    weight = enlarge(dot, (1, side), corners)[0, 0, 0]
    drawn_at = (weight * torch.arange(side)).sum() / weight.sum()
    assert float(drawn_at) == pytest.approx(4 * stride + (0 if corners else (stride - 1) / 2))


@given(by=st.integers(-7, 7))
def test_shifted(by):
    maps = np.random.default_rng(0).normal(size=(2, 3, 6, 5))
    moved = shifted(maps, by)
    for r, c in np.ndindex(6, 5):
        row, column = min(max(r - by, 0), 5), min(max(c - by, 0), 4)
        assert np.array_equal(moved[..., r, c], maps[..., row, column])


@pytest.mark.parametrize("seed, stride", list(enumerate((16, 8, 16))))
def test_plus_is_smps(seed, stride):
    library = scatter(
        seed,
        smp.DeepLabV3Plus(
            "resnet18",
            encoder_weights=None,
            classes=3,
            encoder_output_stride=stride,
            decoder_channels=16,
            decoder_atrous_rates=(1, 2, 3 + seed),
        ),
    )
    ours = DeepLabV3Plus(
        3, 3, base=4, rates=(1, 2, 3 + seed), backbone=library.encoder, early=2, corners=True
    )
    decoder = nn.ModuleList([library.decoder, library.segmentation_head])
    copied(nn.ModuleList([ours.deep, ours.lift, ours.join, ours.scores]), decoder)
    x = noise(seed, 2, 3, 32, 48)
    with torch.no_grad():
        want = library.eval()(x)
        torch.testing.assert_close(ours.eval()(x), want, rtol=1e-3, atol=1e-4 * float(want.std()))


def test_plus_takes_any_size_and_refuses():
    network = make(0, DeepLabV3Plus, 1, 2, base=1, rates=(1, 2, 3)).eval()
    for shape in ((33, 70), (64, 64), (1, 1)):
        assert network(torch.zeros(1, 1, *shape)).shape == (1, 2, *shape)
    with pytest.raises(ValueError, match="16 or 8, got 32"):
        DeepLabV3Plus(output_stride=32, base=1)
    with pytest.raises(ValueError, match=r"float pictures \(B, 1, H, W\)"):
        network(torch.zeros(1, 3, 64, 64))


def test_the_early_map_matters():
    network = make(0, DeepLabV3Plus, 1, 2, base=2, rates=(1, 2, 3)).eval()
    x = noise(0, 1, 1, 64, 64)
    with torch.no_grad():
        before = network(x)
        network.lift[0].weight.zero_()
        assert not torch.allclose(before, network(x))


def test_short_sighted_sees_51_pixels():
    network = make(0, short_sighted, 1, 2)
    network[3] = nn.AvgPool2d(3, 2, padding=1)
    for p in network.parameters():
        p.data.abs_()
    heard = input_gradient(network, (1, 128, 128), (8, 8), draws=1)
    assert np.ptp(np.flatnonzero(heard.any(axis=1))) + 1 == 51


def test_far_from_nucleus():
    scene = cell_scene(3, side=48)
    far = _far_from_nucleus(scene, 6)
    picture, target = large_cells([scene])
    assert picture.shape == target.shape == (1, 1, 288, 288)
    known = ~np.isnan(far)
    assert dice(known, target[0, 0].numpy() > 0) > 0.95
    darkest = picture[0, 0].numpy()[known & (far < 9)].mean()
    assert darkest < picture[0, 0].numpy()[known & (far > 24)].mean() - 0.3


def test_shift_and_reach_experiments():
    table = shift_experiment(seeds=(1,), shifts=(0, 4), pictures=(4, 1, 2), steps=1)
    assert list(table) == ["seed", "arm", "stride", "shift", "class", "dice"]
    assert len(table) == 2 * 2 * 2 * 4 and not table.duplicated(list(table)[:-1]).any()
    table = reach_experiment(seeds=(1,), arms=("no atrous branch",), pictures=(2, 1, 1), steps=1)
    assert list(table) == ["seed", "arm", "picture", "cut", "dice", "near", "far", "mask"]
    assert len(table) == 1 and 0 <= table.far[0] <= 1
    with pytest.raises(ValueError, match="unknown arm 'rates 9'"):
        reach_experiment(arms=("rates 9",))
