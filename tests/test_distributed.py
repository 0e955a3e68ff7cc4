"""Several processes, here threads in lockstep, compute what one does."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tests.training.test_step import CONFIG, SGD_PLAIN, Double, double, five_images, frozen_norms, initial
from tests.worlds import ThreadWorld, in_threads
from tinydet.data.images import Example
from tinydet.data.loader import Batch, train_batches, val_batches
from tinydet.distributed import ALONE, World, launched_world
from tinydet.errors import InputError, SharedError
from tinydet.evaluation import validate
from tinydet.labels import BACKGROUND
from tinydet.model.efficientdet import EfficientDet
from tinydet.model.functional import params_and_buffers
from tinydet.model.layers import BatchNorm
from tinydet.training.replay import whole_batch
from tinydet.training.state import State
from tinydet.training.step import train_step


@pytest.mark.parametrize(("count", "size"), [(10, 4), (3, 4), (0, 2), (8, 1), (9, 3)])
def test_shares_are_those_of_tensor_split(count: int, size: int) -> None:
    shares = [[*World(rank, size).share(range(5, 5 + count))] for rank in range(size)]
    assert shares == [part.tolist() for part in torch.arange(5, 5 + count).tensor_split(size)]


def test_one_process_alone_gets_back_what_it_gives() -> None:
    x = torch.rand(3)
    assert ALONE.all_reduce(x) is x
    assert ALONE.gather(x)[0] is x
    assert ALONE.sum(tensors := {"x": x}) is tensors
    assert ALONE.exchange({"a": (1,)}) == [{"a": (1,)}]
    ALONE.agree(lambda: pytest.fail("nobody to agree with"))
    with pytest.raises(ValueError, match="own"), ALONE.together():
        raise InputError("own")


def test_a_sum_is_one_flat_all_reduce() -> None:
    calls = []

    class Counting(ThreadWorld):
        def all_reduce(self, x: Tensor) -> Tensor:
            calls.append(x.shape)
            return x * 2

    tensors = {"a": torch.rand(2, 3), "b": torch.tensor(4.0), "c": torch.zeros(0)}
    summed = Counting(0, 2).sum(tensors)
    torch.testing.assert_close(summed, {name: 2 * x for name, x in tensors.items()}, rtol=0, atol=0)
    assert calls == [(7,)]


# Agreement


def test_processes_must_agree() -> None:
    def work(world: ThreadWorld) -> str:
        world.agree(lambda: {"data": "the same", "batch_size": 4})
        try:
            world.agree(lambda: {"data": "the same", "batch_size": 4 + world.rank // 2})
        except SharedError as error:
            return str(error)
        return ""

    found = in_threads(3, work)
    assert len({*found}) == 1
    assert re.fullmatch("rank 2 on .* has batch_size 5, but rank 0 on .* has 4", found[0])


@pytest.mark.parametrize("late", [False, True])
def test_an_error_of_one_process_is_one_of_all(late: bool) -> None:
    """Also where the others wait for another value at that time."""

    def work(world: ThreadWorld) -> str:
        try:
            with world.together():
                if world.rank == 1:
                    raise InputError("no such folder")
                if late:
                    world.exchange(world.rank)
        except SharedError as error:
            return str(error)
        return ""

    for text in in_threads(3, work):
        assert re.fullmatch("rank 1 on .*: no such folder", text)


def test_an_error_that_all_have_is_said_once() -> None:
    def work(world: ThreadWorld) -> str:
        try:
            with world.together():
                raise InputError("no such folder")
        except SharedError as error:
            return str(error)

    assert in_threads(2, work) == ["no such folder"] * 2


def test_values_of_the_first_process_are_those_of_all() -> None:
    assert in_threads(3, lambda world: world.first({"rank": world.rank, "x": 0.1})) == [{"rank": 0, "x": 0.1}] * 3


# The step


def double_step(world: World, state: State, batch: Batch, *, synced: bool) -> Any:
    """Make a step in float64, of a model of its own, as threads need."""
    frozen = frozenset[str]() if synced else frozen_norms()
    how: Any = {"lr": 1e-2, "optimizer": SGD_PLAIN, "clip": 1e9}
    how |= {"frozen": frozen, "evaluated": frozen}
    all_reduce = world.all_reduce if synced and world.size > 1 else None
    return train_step(state, batch, model=Double(CONFIG).to("meta"), reduce=world.sum, all_reduce=all_reduce, **how)


@pytest.mark.parametrize("size", [2, 6])  # of five images, so that one process may have none
@pytest.mark.parametrize("synced", [True, False])
def test_a_step_of_processes_is_the_step_of_the_whole_batch(size: int, synced: bool) -> None:
    """With batch norms that see all of the batch, and with frozen ones; stochastic depth included."""

    def work(world: World) -> Any:
        rows = world.share(range(5))
        part = Batch(*(field[rows.start : rows.stop] for field in five_images()))  # type: ignore[arg-type]
        return double_step(world, begin, part, synced=synced)

    begin = double(initial(step=30, frozen=frozenset() if synced else frozen_norms()))
    whole, expected = double_step(ALONE, begin, five_images(), synced=synced)
    results = in_threads(size, work)
    for state, found in results:
        torch.testing.assert_close(tuple(found.losses), tuple(expected.losses), rtol=1e-9, atol=0)
        torch.testing.assert_close(found.grad_norm, expected.grad_norm, rtol=1e-6, atol=0)
        assert torch.equal(found.positives, expected.positives)
        torch.testing.assert_close(state.params, whole.params, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(state.buffers, whole.buffers, rtol=1e-9, atol=1e-12)
    for state, _ in results[1:]:
        assert all(torch.equal(state.params[name], x) for name, x in results[0][0].params.items())
        assert all(torch.equal(state.buffers[name], x) for name, x in results[0][0].buffers.items())


def test_batch_norms_of_their_own_average_the_statistics() -> None:
    """The statistics after the step are the same in all processes: the mean by the images of each."""
    rows = [slice(0, 2), slice(2, 5)]
    parts = [Batch(*(field[some] for field in five_images())) for some in rows]  # type: ignore[arg-type]

    def step(world: World, part: Batch) -> dict[str, Tensor]:
        model = Double(CONFIG).to("meta")
        how: Any = {"lr": 0.0, "optimizer": SGD_PLAIN, "reduce": world.sum}
        return train_step(begin, part, model=model, **how)[0].buffers

    begin = double(initial(step=30))

    found = in_threads(2, lambda world: step(world, parts[world.rank]))
    alone = [step(ALONE, part) for part in parts]
    expected = {name: (2 * alone[0][name] + 3 * alone[1][name]) / 5 for name in alone[0]}
    for buffers in found:
        torch.testing.assert_close(buffers, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(2, 2), (3, 1, 0)])
def test_a_synchronised_batch_norm_is_torchs_of_all_images(rows: tuple[int, ...], dtype: torch.dtype) -> None:
    """Also where the mean is large, and one process has no image: outputs, gradients and running statistics."""
    generator = torch.Generator().manual_seed(0)
    x = (100 + torch.randn(4, 5, 3, 2, generator=generator, dtype=torch.float64)).to(dtype)
    grad = torch.randn(4, 5, 3, 2, generator=generator, dtype=torch.float64).to(dtype)

    def norm() -> BatchNorm:
        made = BatchNorm(5, momentum=0.3)
        made.weight.data, made.bias.data = torch.linspace(0.5, 2, 5), torch.linspace(-1, 1, 5)
        return made.to(torch.promote_types(dtype, torch.float32))

    def work(world: World) -> tuple[Tensor, ...]:
        one, part = norm(), slice(None)
        if world.size > 1:
            one.all_reduce, part = world.all_reduce, slice(sum(rows[: world.rank]), sum(rows[: world.rank + 1]))
        given = x[part].clone().requires_grad_()
        out = one(given)
        grads = torch.autograd.grad(out, [given, one.weight, one.bias], grad[part])
        return out.detach(), *grads, one.running_mean, one.running_var

    rtol, atol = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-4, 1e-4), torch.bfloat16: (0.02, 0.1)}[dtype]
    out, of_x, of_weight, of_bias, mean, var = work(ALONE)
    found: Any = in_threads(len(rows), work)
    torch.testing.assert_close(torch.cat([one[0] for one in found]), out, rtol=rtol, atol=atol)
    torch.testing.assert_close(torch.cat([one[1] for one in found]), of_x, rtol=rtol, atol=atol)
    torch.testing.assert_close(sum(one[2] for one in found), of_weight, rtol=rtol, atol=atol)
    torch.testing.assert_close(sum(one[3] for one in found), of_bias, rtol=rtol, atol=atol)
    for one in found:
        torch.testing.assert_close(one[4], mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one[5], var, rtol=1e-4, atol=1e-4)


# The data


class Images(Dataset[Example]):
    """Images of noise, each with a box."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Example:
        image = torch.randint(256, (40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i)).numpy()
        return Example(image, torch.tensor([[5.0, 5, 30, 30]]).numpy(), torch.tensor([i % 2]).numpy(), str(i), (40, 60))


@pytest.mark.parametrize(("count", "size", "workers"), [(11, 2, 0), (7, 4, 1), (5, 6, 0)])
def test_processes_share_each_batch_of_one_process(count: int, size: int, workers: int) -> None:
    """Whatever their number: the same images, augmented alike, none twice, none left out, and as many batches."""
    settings: Any = {"batch_size": 4, "epochs": range(2, 4), "skip": 1, "seed": 3}
    whole = [*train_batches(Images(count), CONFIG, **settings)]
    parts = [
        [*train_batches(Images(count), CONFIG, **settings, workers=workers, world=World(rank, size))]
        for rank in range(size)
    ]
    assert {len(part) for part in parts} == {len(whole)}
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [name for share in shares for name in share.names] == batch.names
        assert torch.equal(torch.cat([share.images for share in shares]), batch.images)
        assert max(len(share.names) for share in shares) - min(len(share.names) for share in shares) <= 1
    per_epoch = -(-count // 4)
    assert sorted(int(name) for batch in whole[per_epoch - 1 :] for name in batch.names) == [*range(count)]


@pytest.mark.parametrize(("count", "size"), [(11, 2), (3, 4)])
def test_processes_share_the_batches_of_a_validation(count: int, size: int) -> None:
    parts = [[*val_batches(Images(count), CONFIG, batch_size=2, world=World(rank, size))] for rank in range(size)]
    assert len({len(part) for part in parts}) == 1
    names = [name for part in parts for batch in part for name in batch.names]
    assert names == [str(i) for i in range(count)]


@pytest.mark.parametrize(("count", "size"), [(11, 2), (3, 4)])
def test_a_validation_in_processes_has_the_same_bits(count: int, size: int) -> None:
    torch.manual_seed(0)
    variables = params_and_buffers(EfficientDet(CONFIG))

    def work(world: World) -> Any:
        return validate(variables, Images(count), config=CONFIG, batch_size=2, world=world)

    expected = work(ALONE)
    assert sum(len(one.labels) for one in expected.detections) > 0
    for found in in_threads(size, work):
        assert all(map(torch.equal, found.losses, expected.losses))
        for one, other in zip(found.detections, expected.detections, strict=True):
            assert all(map(torch.equal, one, other))
            assert one.labels.dtype == torch.int64


def test_an_output_that_is_not_finite_in_one_process_is_an_error_of_all() -> None:
    """The others are not left in the middle of their batches."""

    def work(world: World) -> str:
        bad = {
            name: x * (torch.nan if world.rank == 1 and name.endswith("weight") else 1) for name, x in params.items()
        }
        try:
            validate((bad, buffers), Images(6), config=CONFIG, batch_size=2, world=world)
        except FloatingPointError as error:
            return str(error)
        return ""

    params, buffers = params_and_buffers(EfficientDet(CONFIG))
    assert {text.partition(":")[0] for text in in_threads(3, work)} == {"image 2"}


def test_a_flag_of_one_process_is_one_of_all() -> None:
    assert in_threads(3, lambda world: world.any(world.rank == 2)) == [True] * 3
    assert in_threads(2, lambda world: world.any(False)) == [False] * 2


def test_the_whole_batch_of_processes_is_collected() -> None:
    """As failed-step.pt holds it, whatever number of boxes each share has."""
    batch = five_images()
    parts = [Batch(*(field[rows] for field in batch)) for rows in (slice(0, 3), slice(3, 5))]  # type: ignore[arg-type]
    parts[1] = parts[1]._replace(boxes=parts[1].boxes[:, :1], labels=parts[1].labels[:, :1])
    first, second = in_threads(2, lambda world: whole_batch(parts[world.rank], world))
    assert first.names == second.names == batch.names
    assert torch.equal(first.images, batch.images)
    assert torch.equal(first.boxes[:3], batch.boxes[:3])
    assert first.labels[3:, 1:].eq(BACKGROUND).all()


# Without torchrun


def test_without_torchrun_no_process_group_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with launched_world() as world:
        assert world == ALONE
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("rank", "size"), [("x", "2"), ("0", ""), ("2", "2"), ("0", "0"), ("-1", "2")])
def test_numbers_of_processes_that_cannot_be_are_an_error(
    rank: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(InputError, match=f"RANK '{rank}' of WORLD_SIZE '{size}': no such process"):
        launched_world().__enter__()


def test_processes_that_nobody_can_find_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(InputError, match="rank 0 of 2 found no other process; start them by torchrun"),
        launched_world(),
    ):
        pass
