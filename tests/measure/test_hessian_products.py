from __future__ import annotations

import curvlinops
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoarium.measure.curvature.chain_products import ChainProducts
from zoarium.measure.curvature.output_loss import OutputLoss, loss_of
from zoarium.measure.curvature.products import AutogradProducts, products_of
from zoarium.zoo.cohort import Cohort

DOUBLE = torch.float64

NETS = {
    "softmax": lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 3)),
    "relu": lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)),
    "no bias, three kinds of bend": lambda: nn.Sequential(
        nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 6, bias=False), nn.LeakyReLU(), nn.SiLU(), nn.Linear(6, 3)
    ),
    "bent outputs": lambda: nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3), nn.Tanh()),
    "linear layers only": lambda: nn.Sequential(nn.Linear(5, 2), nn.Identity(), nn.Linear(2, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)),
}
TASKS = ("classification", "regression")


def cohort_of(make, n=3, seed=0):
    torch.manual_seed(seed)
    cohort = Cohort.from_modules([make() for _ in range(n)]).to(DOUBLE)
    for name, buffer in cohort.buffers.items():
        if "running" in name:
            buffer += torch.rand_like(buffer)
    return cohort


def samples(task, count=11, seed=1):
    torch.manual_seed(seed)
    x = torch.randn(count, 5, dtype=DOUBLE)
    return x, torch.randint(0, 3, (count,)) if task == "classification" else torch.randn(count, 3, dtype=DOUBLE)


def flat_product(products, v):
    return products.to_flat(products(products.from_flat(v)))


def dense_oracle(cohort, row, x, y, task, curvature):
    """The matrix by `torch.func`, one model at a time, straight from the definition."""
    buffers = {k: v[row : row + 1] for k, v in cohort.buffers.items()}

    def outputs(w):
        return cohort.net(cohort.layout.views(w[None]), x, buffers)[0]

    def loss(f):
        return loss_of(f.unsqueeze(0), y, task).mean()

    w = cohort.flat[row]
    if curvature == "hessian":
        return torch.autograd.functional.hessian(lambda w: loss(outputs(w)), w)
    jacobian = torch.autograd.functional.jacobian(outputs, w).flatten(0, 1)  # (b c, p)
    inner = torch.autograd.functional.hessian(loss, outputs(w)).reshape(len(jacobian), -1)
    return jacobian.T @ inner @ jacobian


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_products_are_those_of_the_dense_matrix(make, task, curvature):
    cohort = cohort_of(make)
    x, y = samples(task)
    v = torch.randn(3, cohort.layout.size, dtype=DOUBLE)
    wanted = torch.stack([dense_oracle(cohort, i, x, y, task, curvature) @ v[i] for i in range(3)])
    got = flat_product(products_of(cohort, x, y, task, curvature=curvature), v)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    general = AutogradProducts(cohort, x, y, task, curvature)
    torch.testing.assert_close(general(v), wanted, rtol=1e-10, atol=1e-12)


def test_perceptrons_take_the_hand_written_route_and_others_do_not():
    x, y = samples("classification")
    routes = {name: type(products_of(cohort_of(make), x, y, "classification")) for name, make in NETS.items()}
    assert routes.pop("batch norm") is AutogradProducts
    assert set(routes.values()) == {ChainProducts}


@pytest.mark.parametrize("linear_operator", ["HessianLinearOperator", "GGNLinearOperator"])
def test_products_agree_with_curvlinops(linear_operator):
    x, y = samples("classification")

    def make():
        return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 6, bias=False), nn.LeakyReLU(), nn.Linear(6, 3))

    cohort = cohort_of(make, n=2)
    curvature = "hessian" if linear_operator.startswith("H") else "ggn"
    products = products_of(cohort, x, y, "classification", curvature=curvature)
    v = torch.randn(2, products.size, dtype=DOUBLE)
    for row in range(2):
        module = make().to(DOUBLE)
        module.load_state_dict(cohort.state(row))
        params = list(module.parameters())
        operator = getattr(curvlinops, linear_operator)(module, nn.CrossEntropyLoss(), params, [(x, y)])
        torch.testing.assert_close(flat_product(products, v)[row], operator @ v[row])


@pytest.mark.parametrize("make", [NETS["no bias, three kinds of bend"], NETS["batch norm"]], ids=["chain", "general"])
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("batch", [1, 4, 10])
def test_products_do_not_depend_on_how_the_data_are_cut(make, curvature, batch):
    cohort = cohort_of(make)
    x, y = samples("classification")
    v = torch.randn(3, cohort.layout.size, dtype=DOUBLE)
    whole = products_of(cohort, x, y, "classification", curvature=curvature)
    cut = products_of(cohort, x, y, "classification", curvature=curvature, batch=batch)
    torch.testing.assert_close(cut(v), whole(v))


def test_products_are_the_same_when_nothing_is_kept_between_them(monkeypatch):
    cohort = cohort_of(NETS["relu"])
    x, y = samples("classification")
    kept = products_of(cohort, x, y, "classification")
    monkeypatch.setattr("zoarium.measure.curvature.chain_products.KEEP", 0)
    fresh = products_of(cohort, x, y, "classification")
    v = torch.randn(3, cohort.layout.size, dtype=DOUBLE)
    assert kept._kept is not None and fresh._kept is None
    assert torch.equal(kept(v), fresh(v))
    assert torch.equal(kept.select([1])(v[[1]]), fresh.select([1])(v[[1]]))


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_selected_models_keep_their_products(make):
    x, y = samples("regression")
    products = products_of(cohort_of(make), x, y, "regression")
    v = torch.randn(3, products.size, dtype=DOUBLE)
    torch.testing.assert_close(products.select([2, 0])(v[[2, 0]]), products(v)[[2, 0]])


def test_least_squares_has_the_gram_matrix_as_its_hessian():
    cohort = cohort_of(lambda: nn.Linear(5, 1, bias=False), n=1)
    x, _ = samples("regression")
    products = products_of(cohort, x, torch.zeros(len(x), 1, dtype=DOUBLE), "regression")
    v = torch.randn(1, 5, dtype=DOUBLE)
    torch.testing.assert_close(products(v), v @ (2 / len(x) * x.T @ x))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.sampled_from(TASKS), st.sampled_from(["hessian", "ggn"]))
def test_matrices_are_symmetric_and_the_gauss_newton_matrix_is_positive(seed, task, curvature):
    cohort = cohort_of(NETS["no bias, three kinds of bend"], seed=seed)
    products = products_of(cohort, *samples(task, seed=seed), task, curvature=curvature)
    u, v = torch.randn(2, 3, products.size, dtype=DOUBLE)
    torch.testing.assert_close((u * products(v)).sum(1), (v * products(u)).sum(1))
    if curvature == "ggn":
        assert ((v * products(v)).sum(1) >= 0).all()


def test_a_product_leaves_its_vector_and_its_models_alone():
    cohort = cohort_of(NETS["relu"])
    before, v = cohort.flat, torch.randn(3, cohort.layout.size, dtype=DOUBLE)
    copy = v.clone()
    products_of(cohort, *samples("classification"), "classification")(v)
    assert torch.equal(v, copy) and torch.equal(cohort.flat, before)


def test_curvature_of_a_confident_model_survives_single_precision():
    """1 - p is 4e-9 here, below the rounding of float32 at 1."""
    outputs = torch.tensor([20.0, 0.0, 0.0]).view(1, 3, 1)
    v = torch.tensor([1.0, 2.0, -1.0]).view(1, 3, 1)
    y = torch.tensor([0])
    single = OutputLoss(outputs, y, "classification", 1.0)
    double = OutputLoss(outputs.double(), y, "classification", 1.0)
    torch.testing.assert_close(
        single.hessian_product(v).double(), double.hessian_product(v.double()), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(single.gradient.double(), double.gradient, rtol=1e-5, atol=0)
