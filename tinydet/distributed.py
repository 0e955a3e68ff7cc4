"""The processes that train or validate together: sums over them, what they share, and what they must agree on."""

import json
import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import product
from threading import Lock, Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinydet.errors import InputError, LostProcessError, SharedError

TIMEOUT = timedelta(minutes=5)  # of a collective, such as one that waits while another process computes the AP

_ONE_AT_A_TIME = Lock()
LOST = re.compile("clos|reset|refused|peer|pipe|remote|timed? ?out", re.IGNORECASE)  # in what gloo and nccl say of it


class World(NamedTuple):
    """The processes that work together, and which of them this is. All call the same methods in the same order.

    Alone, each method returns what it is given, and nothing of torch.distributed is used.
    """

    rank: int = 0
    size: int = 1

    def share(self, rows: range) -> range:
        """Select the rows of this process, as `Tensor.tensor_split` does: the first parts may be a row longer."""
        length, longer = divmod(len(rows), self.size)
        first = self.rank * length + min(self.rank, longer)
        return rows[first : first + length + (self.rank < longer)]

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum a tensor over the processes; it is overwritten."""
        if self.size > 1:
            import torch.distributed as dist

            _collective(lambda: dist.all_reduce(x))
        return x

    def any(self, flag: bool) -> bool:
        """Tell whether a flag is set in any process."""
        return flag if self.size == 1 else bool(self.all_reduce(torch.tensor(float(flag))))

    def sum(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sum tensors of one type over the processes, in one flat all-reduce."""
        if self.size == 1:
            return tensors
        flat = self.all_reduce(torch.cat([x.flatten() for x in tensors.values()]))
        parts = flat.split([x.numel() for x in tensors.values()])
        return {name: part.view_as(x) for (name, x), part in zip(tensors.items(), parts, strict=True)}

    def gather(self, rows: Tensor) -> list[Tensor]:
        """Collect the rows of each process, on the CPU, in the order of the ranks; they may have different numbers."""
        if self.size == 1:
            return [rows]
        counts = [one.item() for one in _all_gather(torch.tensor(len(rows)), self.size)]
        padded = rows.new_zeros(max(map(int, counts)), *rows.shape[1:])
        padded[: len(rows)] = rows
        return [one[: int(count)] for one, count in zip(_all_gather(padded, self.size), counts, strict=True)]

    def exchange(self, value: Any) -> list[Any]:
        """Collect what JSON can hold from each process.

        Raises:
            SharedError: another process left `together` by an error instead.
        """
        return [one["value"] for one in self._tell(value=value)]

    def first(self, value: Any) -> Any:
        """Return the value of the first process, which JSON can hold."""
        return self.exchange(value)[0]

    def agree(self, facts: Callable[[], dict[str, Any]]) -> None:
        """Raise SharedError unless all processes have the same facts: names the first that differs, and both values."""
        if self.size == 1:
            return
        told = self._tell(value=facts())
        for one, (name, wanted) in product(told, told[0]["value"].items()):
            if (found := one["value"].get(name)) != wanted:
                raise SharedError(f"{one['who']} has {name} {found}, but {told[0]['who']} has {wanted}")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise an InputError of one process in all of them."""
        try:
            yield
        except SharedError:
            raise
        except InputError as error:
            if self.size == 1:
                raise
            self._tell(error=str(error))
        self.exchange(None)

    def _tell(self, **message: Any) -> list[dict[str, Any]]:
        """Collect a message of each process, and who it is; raise SharedError where one of them is an error."""
        message["who"] = f"rank {self.rank} on {socket.gethostname()}"
        if self.size == 1:
            return [message]
        text = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        told = [json.loads(one.numpy().tobytes()) for one in self.gather(text)]
        if errors := {one["who"]: one["error"] for one in told if "error" in one}:
            same = len(errors) == self.size and len({*errors.values()}) == 1
            raise SharedError(told[0]["error"] if same else "\n".join(f"{who}: {text}" for who, text in errors.items()))
        return told


ALONE = World()


def launched() -> tuple[int, int]:
    """Read this process's rank and the number of processes, which torchrun sets; 0 and 1 without it.

    Raises:
        InputError: they are no such numbers.
    """
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise InputError(f"RANK {rank!r} of WORLD_SIZE {size!r}: no such process; start by torchrun, or unset both")
    return int(rank), int(size)


def processes_here() -> int:
    """Return the number of processes that torchrun started on this machine, 1 without it."""
    here = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return int(here) if here.isdecimal() and int(here) else 1


def use_all_cores() -> None:
    """Share the cores of a machine among its processes, where torchrun has set one thread for each."""
    if processes_here() > 1 and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes_here()))


def use_threads(count: int) -> None:
    """Compute with so many threads in the calling one: others, and those that start later, keep their number."""
    with _ONE_AT_A_TIME:
        others = torch.get_num_threads()
        torch.set_num_threads(count)  # of this thread, and of all that have not computed yet
        again = Thread(target=torch.set_num_threads, args=(others,))
        again.start()
        again.join()


@contextmanager
def launched_world() -> Iterator[World]:
    """Join the processes that torchrun, or whoever sets RANK and WORLD_SIZE, started; this one alone otherwise.

    Raises:
        InputError: the other processes cannot be found.
    """
    rank, size = launched()
    if size == 1:
        yield ALONE
        return
    import torch.distributed as dist

    use_all_cores()
    try:
        store, *_ = next(dist.rendezvous("env://", timeout=TIMEOUT))
        if processes_here() == size:  # torchrun may keep the store of processes that it restarts
            store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", ""), store)
        else:
            _choose_network(store, rank=rank, size=size)
        # By gloo for tensors on the CPU, by nccl for those on a GPU.
        dist.init_process_group(store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"rank {rank} of {size} found no other process; start them by torchrun ({error})") from None
    whole = False
    try:
        yield World(rank, size)
        whole = True
    finally:
        if whole or not torch.cuda.is_available():  # nccl would wait for processes that have ended by an error
            dist.destroy_process_group()


def _choose_network(store: Any, *, rank: int, size: int) -> None:
    """Set GLOO_SOCKET_IFNAME, where it is not set, to the network interface that reaches the other machines.

    gloo would take that of the host's own name, which is often an address of the loopback.
    """
    if rank == size - 1:  # which is on another machine than the first
        store.set("address", _address_towards(os.environ["MASTER_ADDR"]))
    own = _address_towards(store.get("address").decode())
    if own and sys.platform == "linux" and "GLOO_SOCKET_IFNAME" not in os.environ:
        import fcntl

        with socket.socket() as probe:
            for _, name in socket.if_nameindex():
                with suppress(OSError):  # it has no address
                    found = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()))  # SIOCGIFADDR
                    if found[20:24] == socket.inet_aton(own):
                        os.environ["GLOO_SOCKET_IFNAME"] = name


def _address_towards(host: str) -> str:
    """Return the IPv4 address by which this machine reaches another; "" where there is none."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # for a datagram, nothing is sent
        return str(probe.getsockname()[0])
    return ""


def _all_gather(x: Tensor, size: int) -> list[Tensor]:
    """Collect a tensor of one shape from each process, on the CPU."""
    import torch.distributed as dist

    x = x.cpu().contiguous()
    found = [torch.empty_like(x) for _ in range(size)]
    _collective(lambda: dist.all_gather(found, x))
    return found


def _collective(call: Callable[[], Any]) -> None:
    """Call what all processes must; raise LostProcessError where one does not."""
    try:
        call()
    except RuntimeError as error:
        if not LOST.search(str(error)):
            raise
        reason = re.sub(r"^\[\S*\] ", "", str(error)).partition(". ")[0]
        raise LostProcessError(f"another process has ended, or cannot be reached ({reason})") from None
