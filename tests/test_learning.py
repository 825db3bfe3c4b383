"""The plain loop: repeatable from a seed, without a trace on the caller's random numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cloudlearn.learning import seeded, start_weights, t_interval, train_steps


def fresh(seed=0):
    with seeded(seed):
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))


def problem():
    "Pictures whose label is where they are bright, and the loss as `train_steps` wants it."
    pictures = torch.from_numpy(np.random.default_rng(0).random((10, 3, 8, 8), np.float32))
    labels = (pictures.mean(dim=1, keepdim=True) > 0.5).float()

    def loss_of(network, seen=None):
        def loss(chosen):
            if seen is not None:
                seen.append(chosen.tolist())
            return F.binary_cross_entropy_with_logits(network(pictures[chosen]), labels[chosen])

        return loss

    return loss_of


def test_the_same_seed_gives_the_same_losses_and_weights():
    loss_of = problem()
    runs = []
    for _ in range(2):
        network = fresh()
        runs.append((train_steps(network, loss_of(network), 10, 12, seed=3), network[0].weight))
    assert runs[0][0] == runs[1][0] and torch.equal(runs[0][1], runs[1][1])
    other = fresh()
    assert train_steps(other, loss_of(other), 10, 12, seed=4) != runs[0][0]


def test_batches_have_the_size_and_come_from_all_pictures():
    loss_of, seen, network = problem(), [], fresh()
    losses = train_steps(network, loss_of(network, seen), 10, 30, batch=5)
    assert len(losses) == len(seen) == 30 and all(len(batch) == 5 for batch in seen)
    assert {number for batch in seen for number in batch} == set(range(10))
    assert not network.training


def test_it_learns():
    loss_of, network = problem(), fresh()
    losses = train_steps(network, loss_of(network), 10, 150, rate=3e-2)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been_drawn():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    with seeded(1):
        torch.rand(100)
    with pytest.raises(ZeroDivisionError), seeded(2):
        1 / 0
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize("size, gain", [(3, 2), (1, 1)])
def test_start_weights_have_the_size_of_he(size, gain):
    layer = nn.Conv2d(64, 64, size)
    with seeded(0):
        start_weights(layer)
    wanted = (gain / layer.weight[0].numel()) ** 0.5
    assert layer.weight.std().item() == pytest.approx(wanted, rel=0.05) and not layer.bias.any()


def test_t_interval_is_student_s():
    low, high = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (low + high) / 2 == pytest.approx(3)
    assert high - low == pytest.approx(2 * 2.7764 * (2.5 / 5) ** 0.5, rel=1e-4)
    assert t_interval(np.array([0.2, 0.2, 0.2])) == pytest.approx((0.2, 0.2))
    wide, narrow = t_interval([0, 1]), t_interval([0, 1], level=0.5)
    assert narrow == pytest.approx((0, 1)) and wide[1] == pytest.approx(0.5 + 12.7062 / 2, rel=1e-4)
    with pytest.raises(ValueError, match="two numbers or more, got 1"):
        t_interval([3.0])
    with pytest.raises(ValueError, match="share in"):
        t_interval([1.0, 2.0], level=95)


def test_t_interval_holds_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2000, 5))
    held = [low < 0 < high for low, high in map(t_interval, draws)]
    assert 0.935 < np.mean(held) < 0.965
