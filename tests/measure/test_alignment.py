from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoarium._core.errors import MeasureError, NetError
from zoarium.measure.alignment import (
    PermutationSpec,
    activation_matching,
    align_to,
    apply_permutations,
    match,
    permutation_spec,
    weight_matching,
)
from zoarium.nets import build
from zoarium.zoo.cohort import Cohort


def mlp(depth: int, width: int = 7, seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    size = 5
    for _ in range(depth):
        layers += [nn.Linear(size, width), activation()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, 3))


def cnn(batchnorm: bool, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    norms = [[nn.BatchNorm2d(k)] if batchnorm else [] for k in (5, 6)]
    net = nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1), *norms[0], nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3, padding=1), *norms[1], nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 9), nn.ReLU(),
        nn.Linear(9, 4),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 2.0)
            module.bias.data.normal_()
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return net.eval()


def shuffled(cohort: Cohort, seed: int = 0) -> tuple[Cohort, dict[str, torch.Tensor]]:
    """Every model with its units in a random order, and those orders."""
    torch.manual_seed(seed)
    spec = permutation_spec(cohort.module)
    sizes = spec.sizes({**cohort.params, **cohort.buffers})
    planted = {k: torch.stack([torch.randperm(u) for _ in cohort.ids]) for k, u in sizes.items()}
    return apply_permutations(cohort, planted), planted


def joined(a: Cohort, b: Cohort) -> Cohort:
    return Cohort(
        (*a.ids, *(f"{i}'" for i in b.ids)), {k: torch.cat([v, b.params[k]]) for k, v in a.params.items()}, a.module,
        {k: torch.cat([v, b.buffers[k]]) for k, v in a.buffers.items()},
    )  # fmt: skip


CASES = {
    **{f"mlp of depth {d}": (lambda s, d=d: mlp(d, seed=s), (5,)) for d in (1, 2, 3)},
    "tanh mlp": (lambda s: mlp(2, seed=s, activation=nn.Tanh), (5,)),
    "cnn": (lambda s: cnn(False, s), (1, 8, 8)),
    "cnn with batch norm": (lambda s: cnn(True, s), (1, 8, 8)),
}


@pytest.mark.parametrize(("build", "shape"), CASES.values(), ids=CASES.keys())
def test_planted_permutations_are_recovered_from_the_weights(build, shape):
    cohort = Cohort.from_modules([build(s) for s in range(3)])
    copies, planted = shuffled(cohort)
    both = joined(cohort, copies)
    pairs = [(i, i + 3) for i in range(3)]
    found = weight_matching(both, pairs)
    for name, orders in planted.items():
        assert torch.equal(orders.gather(1, found[name]), torch.arange(orders.shape[1]).repeat(3, 1))
    aligned = match(both, pairs, x=torch.randn(8, *shape))
    for name, tensor in {**cohort.params, **cohort.buffers}.items():
        assert torch.equal({**aligned.params, **aligned.buffers}[name], tensor)


@pytest.mark.parametrize(("build", "shape"), CASES.values(), ids=CASES.keys())
def test_planted_permutations_of_living_units_are_recovered_from_the_activations(build, shape):
    cohort = Cohort.from_modules([build(s) for s in range(3)])
    copies, planted = shuffled(cohort)
    x = torch.randn(64, *shape)
    found = activation_matching(joined(cohort, copies), [(i, i + 3) for i in range(3)], x)
    spec = permutation_spec(cohort.module)
    for name, orders in planted.items():
        activations = cohort.features(x, [spec.taps[name]])[spec.taps[name]].movedim(2, 1).flatten(2)
        alive = activations.std(2) > 0  # a unit that is silent on all of x can be any of its like
        assert alive.float().mean() > 0.5
        back = orders.gather(1, found[name])
        assert torch.equal(back[alive], torch.arange(orders.shape[1]).repeat(3, 1)[alive])


@pytest.mark.parametrize(("build", "shape"), CASES.values(), ids=CASES.keys())
def test_permuting_units_leaves_the_function_as_it_was(build, shape):
    cohort = Cohort.from_modules([build(s) for s in range(2)])
    copies, _ = shuffled(cohort)
    x = torch.randn(10, *shape)
    assert not torch.equal(copies.flat, cohort.flat)
    torch.testing.assert_close(copies(x), cohort(x))


@settings(max_examples=25, deadline=None)
@given(depth=st.integers(1, 3), width=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_matching_never_moves_models_further_apart(depth, width, seed):
    cohort = Cohort.from_modules([mlp(depth, width, seed), mlp(depth, width, seed + 1)])
    aligned = match(cohort, [(0, 1)])
    before = (cohort.flat[0] - cohort.flat[1]).norm()
    assert (cohort.flat[0] - aligned.flat[0]).norm() <= before + 1e-5


def test_one_hidden_layer_is_matched_to_the_best_of_all_permutations():
    from itertools import permutations

    cohort = Cohort.from_modules([mlp(1, 4, 0), mlp(1, 4, 1)])
    spec = permutation_spec(cohort.module)
    every = torch.tensor(list(permutations(range(4))))
    (name,) = spec.groups
    all_orders = apply_permutations(cohort.select([1] * len(every)), {name: every})
    best = (all_orders.flat - cohort.flat[0]).norm(dim=1).min()
    assert (match(cohort, [(0, 1)]).flat[0] - cohort.flat[0]).norm().item() == pytest.approx(best.item(), rel=1e-6)


def test_dead_units_keep_their_order():
    net = mlp(1, 8)
    with torch.no_grad():
        net[1].weight[[1, 4, 6]] = 0.0
        net[1].bias[[1, 4, 6]] = 0.0
        net[3].weight[:, [1, 4, 6]] = 0.0
    found = weight_matching(Cohort.from_modules([net, net]), [(0, 1)])
    assert found["1"].tolist() == [list(range(8))]
    all_dead = Cohort.from_modules([net, net]).with_params({k: torch.zeros_like(v) for k, v in Cohort.from_modules(
        [net, net]).params.items()})  # fmt: skip
    assert weight_matching(all_dead, [(0, 1)])["1"].tolist() == [list(range(8))]


def test_a_pair_is_matched_the_same_way_whatever_else_is_in_the_cohort():
    cohort = Cohort.from_modules([mlp(3, seed=s) for s in range(6)])
    together = weight_matching(cohort, [(0, 1), (2, 3), (4, 5)], seed=3)
    alone = weight_matching(cohort.select([2, 3]), [(0, 1)], seed=3)
    assert all(torch.equal(together[k][1], alone[k][0]) for k in alone)


def test_a_model_that_is_not_finite_is_left_alone_and_disturbs_nobody():
    cohort = Cohort.from_modules([mlp(2, seed=s) for s in range(4)])
    broken = cohort.with_params({k: v.clone() for k, v in cohort.params.items()})
    broken.params["1.weight"][1, 0, 0] = torch.nan
    pairs = [(0, 1), (2, 3)]
    found, clean = weight_matching(broken, pairs), weight_matching(cohort, pairs)
    assert found["1"][0].tolist() == list(range(7))
    assert all(torch.equal(found[k][1], clean[k][1]) for k in found)


def test_align_to_moves_every_member_to_the_first_of_its_group_and_nothing_else():
    base = Cohort.from_modules([mlp(2, seed=s) for s in range(2)])
    copies, _ = shuffled(base)
    cohort = joined(base, copies)  # rows 0, 1 and their shuffled copies 2, 3
    aligned = align_to(cohort, [[0, 2], [3]])
    assert aligned.ids == cohort.ids
    torch.testing.assert_close(aligned.flat[2], cohort.flat[0])
    assert torch.equal(aligned.flat[[0, 1, 3]], cohort.flat[[0, 1, 3]])
    with pytest.raises(MeasureError, match="overlap"):
        align_to(cohort, [[0, 1], [1, 2]])


class TwoRoads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


def test_a_spec_by_hand_aligns_a_module_of_ones_own():
    torch.manual_seed(0)
    cohort = Cohort.from_modules([TwoRoads()])
    spec = PermutationSpec({"h": [("up.weight", 0), ("up.bias", 0), ("down.weight", 1)]})
    x = torch.randn(8, 5)
    copy = apply_permutations(cohort, {"h": torch.randperm(6)[None]}, spec=spec, x=x)
    aligned = match(joined(cohort, copy), [(0, 1)], spec=spec, x=x)
    torch.testing.assert_close(aligned.flat, cohort.flat)
    with pytest.raises(MeasureError, match="pass x="):
        match(cohort, [(0, 0)], spec=spec)


def test_a_spec_that_is_no_symmetry_is_refused_before_use():
    torch.manual_seed(0)
    cohort = Cohort.from_modules([TwoRoads()], ["mine"])
    spec = PermutationSpec({"h": [("up.weight", 0), ("up.bias", 0)]})  # forgets the layer after
    with pytest.raises(MeasureError, match=r"'mine' changed its outputs.*not a symmetry"):
        apply_permutations(cohort, {"h": torch.tensor([[1, 0, 2, 3, 4, 5]])}, spec=spec, x=torch.randn(8, 5))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (TwoRoads(), "TwoRoads is not a plain chain"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2)), "'1'.*may mix units"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 2, 3)), "grouped convolution")
    ],
)  # fmt: skip
def test_symmetries_that_cannot_be_derived_are_an_error_with_a_way_out(module, words):
    with pytest.raises(NetError, match=f"{words}.*PermutationSpec"):
        permutation_spec(module)


def test_a_layer_used_twice_has_no_derived_symmetry():
    layer = nn.Linear(4, 4)
    with pytest.raises(NetError, match="each used once"):
        permutation_spec(nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 2)))


def test_a_spec_of_absent_tensors_or_unequal_axes_names_them():
    tensors = {"a": torch.zeros(1, 4, 3), "b": torch.zeros(1, 5)}
    with pytest.raises(NetError, match=r"axis 2 of 'a'"):
        PermutationSpec({"h": [("a", 2)]}).sizes(tensors)
    with pytest.raises(NetError, match=r"'h' has 4 units.*'b' has 5"):
        PermutationSpec({"h": [("a", 0), ("b", 0)]}).sizes(tensors)


def test_the_outputs_of_the_last_layer_are_never_permuted():
    spec = permutation_spec(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.LogSoftmax(1)))
    assert list(spec.groups) == ["0"]
    assert permutation_spec(nn.Sequential(nn.Linear(4, 3))).groups == {}


def test_an_activation_used_twice_is_no_obstacle():
    act = nn.ReLU()
    torch.manual_seed(0)
    cohort = Cohort.from_modules([nn.Sequential(nn.Linear(5, 4), act, nn.Linear(4, 4), act, nn.Linear(4, 2))])
    copies, _ = shuffled(cohort)
    torch.testing.assert_close(match(joined(cohort, copies), [(0, 1)]).flat, cohort.flat)
    x = torch.randn(32, 5)
    torch.testing.assert_close(cohort(x)[0], cohort.module(x))
    assert activation_matching(cohort, [(0, 0)], x)["2"].tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("params", [{"net": "mlp", "width": 6, "depth": 2}, {"net": "cnn", "width": 3},
                                    {"net": "cnn", "width": 3, "batch_norm": True}])  # fmt: skip
def test_our_own_nets_have_derived_symmetries(params):
    params = dict(params)
    name = params.pop("net")
    modules = [build(name, params, in_shape=(1, 8, 8), n_outputs=4, seed=s).eval() for s in range(2)]
    cohort = Cohort.from_modules(modules)
    copies, _ = shuffled(cohort)
    x = torch.randn(8, 1, 8, 8)
    torch.testing.assert_close(copies(x), cohort(x))
    aligned = match(joined(cohort, copies), [(0, 2), (1, 3)], x=x)
    torch.testing.assert_close(aligned.flat, cohort.flat)
