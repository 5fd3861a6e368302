"""The written-out backward pass of convolutional stacks against autograd, and the cost model that cuts them."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoarium._core.errors import NetError
from zoarium.data.dataset import Dataset, Split
from zoarium.nets import build, stack
from zoarium.train.architecture import describe_module
from zoarium.train.autograd import AutogradStack
from zoarium.train.conv import ConvStack
from zoarium.train.convcost import Portion, Work, evaluation_portion, seconds_of, training_portion

N = 3


def images(shape=(2, 8, 8), count=12, task="classification"):
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(count, *shape, generator=draw, dtype=torch.float64)
    y = torch.arange(count) % 3 if task == "classification" else torch.randn(count, 3, generator=draw).double()
    return Dataset("images", Split(x[:8], y[:8]), Split(x[8:], y[8:]), task, 3)


class Mixed(nn.Module):
    """Average pools, a strided and a grouped convolution, a value used three times, sums of aliases."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.hidden, self.out = nn.Linear(16, 5), nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = F.avg_pool2d(h, 2, 2) + F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 0, 0)) + F.max_pool2d(h, 2)
        a = self.norm(self.depthwise(h)) + h
        h = F.adaptive_avg_pool2d(F.gelu(a + F.relu(a)), 2)
        return self.out(F.relu(self.hidden(torch.flatten(h, 1))))


def from_raw_images() -> nn.Module:
    """Pools and sums before any parameter: no gradient is wanted there."""
    return nn.Sequential(
        nn.AvgPool2d(2), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(3, 3)
    )


def net(name: str) -> nn.Module:
    own = {"mixed": Mixed, "pool first": from_raw_images}
    if name in own:
        return own[name]()
    kind, _, more = name.partition(" ")
    settings = {"cnn": {"width": 3}, "resnet18": {"width": 2, "stem": "cifar"}}.get(kind, {"width": 2})
    if more == "norm":
        settings["batch_norm"] = True
    elif more:
        settings["activation"] = more
    return build(kind, settings, in_shape=(2, 8, 8), n_outputs=3)


NETS = ["cnn", "cnn norm", "cnn gelu", "cnn sigmoid", "cnn identity", "resnet8", "resnet14", "resnet18", "resnet50",
        "mixed", "pool first"]  # fmt: skip


def pair(name: str, task="classification") -> tuple[ConvStack, AutogradStack]:
    """The same models in both stacks."""
    torch.manual_seed(1)
    module = net(name)
    data = images(task=task)
    one = describe_module(module.double(), data)
    assert one.route == "conv", one.reason
    smoothing = [0.0, 0.1, 0.3]
    ours = one.stack(N, task, smoothing, torch.float64, "cpu")
    theirs = AutogradStack(stack(module), N, task, smoothing, torch.float64, "cpu")
    assert isinstance(ours, ConvStack)
    draw = torch.Generator().manual_seed(2)
    for row in range(N):
        state = {k: v + 0.2 * torch.rand(v.shape, generator=draw) for k, v in module.state_dict().items()}
        state = {k: v.to(module.state_dict()[k].dtype) for k, v in state.items()}
        ours.load(row, state)
        theirs.load(row, state)
    return ours, theirs


def micro_batch(ours: AutogradStack, data: Dataset) -> tuple[Tensor, ...]:
    index = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(s))[:5] for s in range(N)])
    return ours.gather(data.train.x, data.train.y, index.unsqueeze(0))[0]


def agree(mine: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(mine, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("size", [3, 2, 1])
@pytest.mark.parametrize("name", NETS)
def test_gradients_and_running_statistics_are_those_of_autograd_however_the_models_are_cut(name, size):
    ours, theirs = pair(name)
    batch = micro_batch(ours, images())
    ours._portions[5] = Portion(size, 2 if ours.splits else 5, 0.0)
    for _ in range(2):  # the second adds up
        ours.accumulate(batch)
        theirs.accumulate(batch)
    with torch.no_grad():
        agree(ours.grads, theirs.grads)
        agree(list(ours.buffers.values()), list(theirs.buffers.values()))


def test_a_stack_that_does_not_add_up_forgets_the_micro_batch_before():
    ours, theirs = pair("cnn")
    ours.adds_up = theirs.adds_up = False
    ours._portions[5] = Portion(2, 2, 0.0)
    batch = micro_batch(ours, images())
    for _ in range(2):
        ours.accumulate(batch)
    theirs.accumulate(batch)
    agree(ours.grads, theirs.grads)


def test_gradients_of_a_regression_are_those_of_autograd():
    ours, theirs = pair("resnet8", "regression")
    batch = micro_batch(ours, images(task="regression"))
    ours.accumulate(batch)
    theirs.accumulate(batch)
    agree(ours.grads, theirs.grads)


@pytest.mark.parametrize("name", NETS)
def test_evaluation_with_batch_norm_folded_in_agrees_with_the_module(name):
    ours, theirs = pair(name)
    with torch.no_grad():
        for buffer in ours.buffers.values():
            if buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(3)))
        for key, buffer in ours.buffers.items():
            theirs.buffers[key].copy_(buffer)
        for rows in (slice(0, N), slice(1, 2)):
            agree(list(ours.evaluate(images().train, rows)), list(theirs.evaluate(images().train, rows)))


def test_equal_pixels_send_their_gradient_where_torch_sends_it():
    module = nn.Sequential(
        OrderedDict(conv=nn.Conv2d(2, 4, 3, padding=1), act=nn.ReLU(), pool=nn.MaxPool2d(2), flat=nn.Flatten(),
                    out=nn.Linear(64, 3))
    )  # fmt: skip
    data = images()
    flat = Dataset("flat", Split(torch.ones_like(data.train.x), data.train.y), data.test, data.task, 3)
    one = describe_module(module.double(), flat)
    ours = one.stack(1, "classification", [0.0], torch.float64, "cpu")
    theirs = AutogradStack(stack(module), 1, "classification", [0.0], torch.float64, "cpu")
    for each in (ours, theirs):
        each.load(0, {k: v.abs() for k, v in module.state_dict().items()})
        each.accumulate((flat.train.x.unsqueeze(0), flat.train.y.unsqueeze(0)))
    agree(ours.grads, theirs.grads)
    assert ours.grads[0].abs().max() > 0


def test_two_runs_give_the_same_bits():
    grads = []
    for _ in range(2):
        ours, _ = pair("resnet8")
        ours.accumulate(micro_batch(ours, images()))
        grads.append(torch.cat([g.flatten() for g in ours.grads]))
    assert torch.equal(grads[0], grads[1])


def test_a_batch_of_one_image_of_one_pixel_is_an_error_that_names_the_way_out():
    ours, _ = pair("resnet18")
    module = nn.Sequential(nn.Conv2d(2, 2, 8), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3)).double()
    ours = describe_module(module, images()).stack(1, "classification", [0.0], torch.float64, "cpu")
    x, y = images().train.x[:1].unsqueeze(0), images().train.y[:1].unsqueeze(0)
    with pytest.raises(NetError, match=r"one image of 8 x 8 pixels.*drop_last=True"):
        ours.accumulate((x, y))


class Broadcast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        return self.out((h + F.adaptive_avg_pool2d(h, 1)).mean((2, 3)))


@pytest.mark.parametrize(
    "module", [Broadcast(), nn.Sequential(nn.Conv2d(2, 3, 8), nn.Dropout(), nn.Flatten(), nn.Linear(3, 3))]
)
def test_a_graph_without_a_backward_pass_here_is_left_to_autograd(module):
    one = describe_module(module, images())
    assert one.route == "vmap"
    assert one.net.kind == "grouped"
    assert "autograd" in one.reason


def blank(width: int, side: int, **options: object) -> ConvStack:
    module = build("cnn", {"width": width, **options}, in_shape=(1, side, side), n_outputs=10)
    split = Split(torch.zeros(9, 1, side, side), torch.arange(9))
    one = describe_module(module, Dataset("blank", split, split, "classification", 10))
    ours = one.stack(1, "classification", [0.0], torch.float32, "cpu")
    assert isinstance(ours, ConvStack)
    return ours


def parts(width: int, side: int, n: int, rows: int, **options: object) -> Portion:
    ours = blank(width, side, **options)
    return training_portion(ours.steps, ours.shapes, n, rows, 4, ours.splits)


def test_small_nets_run_all_models_at_once_and_wide_ones_a_few_at_a_time():
    assert parts(8, 8, 12, 16).size == 12
    assert parts(32, 28, 12, 16).size <= 4
    assert parts(64, 28, 12, 64).size == 1


def test_a_batch_is_cut_only_where_no_batch_norm_sees_it():
    assert parts(64, 28, 4, 256).rows < 256
    assert parts(64, 28, 4, 256, batch_norm=True).rows == 256


def test_every_model_and_sample_lands_in_one_portion():
    for n, size in [(1, 1), (7, 3), (12, 5), (6, 6), (5, 1)]:
        edges = Portion(size, 4, 0.0).models(n)
        assert [row for a, b in edges for row in range(a, b)] == list(range(n))
        assert max(b - a for a, b in edges) <= size


def test_more_work_never_costs_less():
    small, large = Work(1e4, 500, 100, True), Work(2e4, 1000, 200, True)
    for size, rows in [(1, 4), (4, 4), (4, 64)]:
        a, b = (seconds_of([w], 4, 64, size, rows, 4, training=True) for w in (small, large))
        assert a < b
        assert seconds_of([small], 8, 64, size, rows, 4, training=True) > a
        assert seconds_of([small], 4, 64, size, rows, 4, training=False) < a


def test_an_evaluation_takes_no_more_samples_than_there_are():
    ours = blank(4, 8)
    assert evaluation_portion(ours.steps, ours.shapes, 3, 9, 4).rows <= 9
