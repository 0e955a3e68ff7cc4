"""Worlds whose processes are threads: what they compute together, in one process and in lockstep."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

from torch import Tensor

from tinydet.distributed import World

Result = TypeVar("Result")


class ThreadWorld(World):
    """One of some threads that meet at every collective."""

    slots: list[Any]
    barrier: Barrier

    def meet(self, value: Any) -> list[Any]:
        """Collect a value of each thread."""
        self.slots[self.rank] = value
        self.barrier.wait(60)
        found = [*self.slots]
        self.barrier.wait(60)
        return found

    def all_reduce(self, x: Tensor) -> Tensor:
        return x.copy_(sum(self.meet(x.clone())))

    def gather(self, rows: Tensor) -> list[Tensor]:
        return self.meet(rows.clone())


def in_threads(size: int, work: Callable[[ThreadWorld], Result]) -> list[Result]:
    """Call a function as each of some processes, and return what they return."""
    slots, barrier = [None] * size, Barrier(size)

    def run(rank: int) -> Result:
        world = ThreadWorld(rank, size)
        world.slots, world.barrier = slots, barrier
        try:
            return work(world)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception())]
    own = [error for error in errors if type(error).__name__ != "BrokenBarrierError"]
    if own:
        raise own[0]
    return [future.result() for future in futures]
