"""The house keeps its plan: what may import what, what `import tinydet` costs, which versions are tested together.

Wings go from the ground up, `ops`, `data` and `metrics` knowing nothing of each other, `model` on `ops`, `weights` on
`model`, `training`, which is the inside of `train`, on all of them. The verbs go one way among themselves: `draw` <-
`prediction` <- `detector` <- {`predict`, `evaluate` <- `train`} and `score` <- `evaluate`; {`page`, `score`,
`mistakes`} <- `report` and `page` <- `check`; `plots` <- `pictures` show what `train` says, `runs` what it left. All
else that imports a verb is the command line, `cli`. Within a wing the files go one way. `tinydet/__init__.py` may name
anything but the command line.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

import tinydet

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 320  # lines; the house says "about 300"
NOWHERE_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}


class Room(NamedTuple):
    """What a wing or a file may import besides its own wing and the standard library."""

    rooms: str
    packages: str


LEAVES = "labels errors files"
WINGS = f"{LEAVES} ops data metrics model weights"
PLAN = {
    "labels": Room("", ""),
    "errors": Room("", ""),
    "files": Room("", ""),
    "ops": Room(LEAVES, "torch"),
    "data": Room(LEAVES, "numpy torch PIL"),
    "data.augment": Room(LEAVES, "numpy albumentations"),
    "data.yolo": Room(LEAVES, "numpy torch yaml"),
    "metrics": Room(LEAVES, "numpy"),
    "model": Room(f"{LEAVES} ops", "torch"),
    "weights": Room(f"{LEAVES} model", "torch safetensors"),
    "draw": Room(WINGS, "numpy torch PIL"),
    "score": Room(WINGS, "numpy"),
    "evaluate": Room(f"{WINGS} draw score prediction detector", "numpy torch"),
    "training": Room(f"{WINGS} memory", "numpy torch"),
    "train": Room(f"{WINGS} training draw score evaluate", "numpy torch"),
    "prediction": Room(f"{WINGS} draw", "numpy torch PIL"),
    "detector": Room(f"{WINGS} draw prediction", "numpy torch PIL"),
    "predict": Room(f"{WINGS} draw prediction detector", "numpy torch PIL"),
    "export": Room(WINGS, "numpy torch PIL onnxruntime onnxscript"),
    "page": Room("", "numpy PIL"),
    "check": Room(f"{WINGS} training draw page", "numpy PIL"),
    "mistakes": Room(WINGS, "numpy torch"),
    "report": Room(f"{WINGS} draw page score mistakes", "numpy"),
    "info": Room(f"{WINGS} training", ""),
    "plots": Room(f"{WINGS} training draw score evaluate", "numpy matplotlib"),
    "pictures": Room(f"{WINGS} training draw score evaluate plots", "numpy torch"),
    "runs": Room(f"{WINGS} training", "numpy"),
    "memory": Room("", ""),
    "cli": Room(
        f"{WINGS} training draw score evaluate train prediction detector predict export info page check report "
        "pictures runs plots memory tinydet",
        "click torch",
    ),
    "tinydet": Room(f"{WINGS} training draw score evaluate train prediction detector predict export", ""),
}


def violations(files: Mapping[str, str]) -> list[str]:
    """What in a package breaks the plan, one line each; `files` maps paths from the root, with slashes, to sources."""
    graph = {module(path): imported(path, source, files=files) for path, source in files.items()}
    found = [line for path in files for line in [*misplaced(path), *forbidden(path, graph[module(path)])]]
    found += [f"{path} has {n} lines" for path, source in files.items() if (n := len(source.splitlines())) > LONGEST]
    try:
        TopologicalSorter({name: graph[name] for name in graph if name != "tinydet"}).prepare()
    except CycleError as error:
        found.append("goes round: " + " -> ".join(error.args[1]))
    return found


def module(path: str) -> str:
    """The dotted name of a file."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room(name: str) -> str:
    """The wing, verb or leaf that a dotted name of the package lies in; "tinydet" for the package itself."""
    return name.split(".")[1] if "." in name else name


def imported(path: str, source: str, *, files: Mapping[str, str]) -> set[str]:
    """Every module that a file imports, at its top or further in, by its absolute name."""
    modules = {module(other) for other in files}
    folder = path.split("/")[:-1]
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = folder[: len(folder) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found = {f"{base}.{alias.name}" for alias in node.names}
            names |= {name if name in modules else base for name in found}
    return names


def misplaced(path: str) -> Iterator[str]:
    """What is wrong with where a file is and what it is called."""
    if room(module(path)) not in PLAN:
        yield f"{path} is not in the plan"
    if not NOWHERE_NAMES.isdisjoint(module(path).split(".")):
        yield f"{path} is named after nothing"


def forbidden(path: str, imports: set[str]) -> Iterator[str]:
    """The imports of a file that the plan does not allow."""
    name = module(path)
    own = room(name)
    allowed = PLAN.get(name.removeprefix("tinydet."), PLAN.get(own, Room("", "")))
    for target in sorted(imports):
        top = target.split(".")[0]
        if top == "tinydet":
            fine = room(target) in [own, *allowed.rooms.split()]
        else:
            fine = top in sys.stdlib_module_names or top in allowed.packages.split()
        if not fine:
            yield f"{path} imports {target}"


def test_the_package_keeps_the_plan() -> None:
    files = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "tinydet").rglob("*.py")}
    assert "tinydet/__init__.py" in files
    assert violations(files) == []


def test_the_checker_lets_through_what_the_plan_allows() -> None:
    files = {
        "tinydet/__init__.py": "from tinydet.ops.a import f\ndef g(name):\n    from tinydet.data import loader",
        "tinydet/labels.py": "IGNORE = -2",
        "tinydet/ops/__init__.py": "",
        "tinydet/ops/a.py": "import math\nimport torch\nfrom torch.nn import functional\nfrom ..labels import IGNORE",
        "tinydet/ops/b.py": "from . import a\nfrom .a import f",
        "tinydet/data/augment.py": "import albumentations",
        "tinydet/data/loader.py": "def f():\n    from tinydet.data.augment import g",
        "tinydet/evaluate.py": "import tinydet.ops.b\nfrom tinydet import ops",
        "tinydet/train.py": "from tinydet.evaluate import f",
        "tinydet/cli.py": "import click\nfrom tinydet import __version__, train",
    }
    assert violations(files) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("tinydet/ops/b.py", "from tinydet.data import kitti", "tinydet/ops/b.py imports tinydet.data.kitti"),
        ("tinydet/ops/b.py", "from ..data.kitti import f", "tinydet/ops/b.py imports tinydet.data.kitti"),
        ("tinydet/ops/b.py", "from .. import data", "tinydet/ops/b.py imports tinydet.data"),
        ("tinydet/ops/b.py", "from tinydet import f", "tinydet/ops/b.py imports tinydet"),
        ("tinydet/ops/b.py", "def f():\n    import numpy", "tinydet/ops/b.py imports numpy"),
        ("tinydet/data/b.py", "import tinydet.metrics.kitti", "tinydet/data/b.py imports tinydet.metrics.kitti"),
        ("tinydet/data/b.py", "if True:\n    import cv2", "tinydet/data/b.py imports cv2"),
        ("tinydet/data/b.py", "import albumentations.core as A", "tinydet/data/b.py imports albumentations.core"),
        ("tinydet/metrics/b.py", "from torch import nn", "tinydet/metrics/b.py imports torch"),
        ("tinydet/model/b.py", "import numpy as np", "tinydet/model/b.py imports numpy"),
        ("tinydet/model/b.py", "from tinydet.data.kitti import f", "tinydet/model/b.py imports tinydet.data.kitti"),
        ("tinydet/weights/b.py", "from tinydet.train import f", "tinydet/weights/b.py imports tinydet.train"),
        ("tinydet/evaluate.py", "from tinydet.train import f", "tinydet/evaluate.py imports tinydet.train"),
        ("tinydet/train.py", "import click", "tinydet/train.py imports click"),
        ("tinydet/predict.py", "from tinydet import cli", "tinydet/predict.py imports tinydet.cli"),
        ("tinydet/ops/a.py", "from . import a", "goes round: tinydet.ops.a -> tinydet.ops.a"),
        ("tinydet/more.py", "", "tinydet/more.py is not in the plan"),
        ("tinydet/ops/utils.py", "", "tinydet/ops/utils.py is named after nothing"),
        ("tinydet/common/a.py", "", "tinydet/common/a.py is named after nothing"),
        ("tinydet/ops/b.py", "x = 1\n" * (LONGEST + 1), f"tinydet/ops/b.py has {LONGEST + 1} lines"),
    ],
)
def test_the_checker_sees_a_broken_rule(path: str, source: str, expected: str) -> None:
    names = ["__init__", "ops/a", "data/__init__", "data/kitti", "metrics/kitti", "train", "cli"]
    assert expected in violations({**{f"tinydet/{name}.py": "" for name in names}, path: source})


def test_the_checker_sees_files_that_go_round() -> None:
    files = {
        "tinydet/ops/a.py": "from tinydet.ops.b import f",
        "tinydet/ops/b.py": "def f():\n    from .c import f",
        "tinydet/ops/c.py": "from tinydet.ops import a",
    }
    (line,) = violations(files)
    assert line.startswith("goes round: ")
    assert all(module(path) in line for path in files)


def run(code: str) -> str:
    """What a fresh Python prints."""
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout


def test_importing_tinydet_ops_model_and_metrics_loads_nothing_slower_than_torch() -> None:
    names = [module(path.relative_to(ROOT).as_posix()) for path in (ROOT / "tinydet").rglob("*.py")]
    quick = [name for name in names if room(name) in ("tinydet", "labels", "errors", "ops", "model", "metrics")]
    slow = ["albumentations", "cv2", "PIL", "click", "matplotlib", "scipy"]
    assert run(f"import {', '.join(quick)}, sys; print([n for n in {slow} if n in sys.modules])") == "[]\n"


def test_importing_tinydet_costs_little_more_than_importing_torch() -> None:
    # Both in one process, one after the other: what tinydet adds is then itself measured, and not the difference of two
    # long times on a busy machine. Three tries, because the first one may have to compile, and any may be interrupted.
    code = """if True:
        from time import perf_counter
        start = perf_counter()
        import torch
        middle = perf_counter()
        import tinydet
        print((perf_counter() - middle) / (middle - start))"""
    assert any(float(run(code)) <= 0.15 for _ in range(3))


def test_public_names_exist_and_are_documented() -> None:
    values = {name: getattr(tinydet, name) for name in tinydet.__all__}
    # Dataclasses and named tuples without a docstring are given their signature for one.
    undocumented = [
        name
        for name, value in values.items()
        if callable(value) and (value.__doc__ or f"{name}(").startswith(f"{name}(")
    ]
    assert undocumented == []


@pytest.mark.parametrize(
    ("code", "asks"),
    [("import albumentations", True), ("import tinydet.data.augment, albumentations", False)],
)
def test_augmenting_does_not_ask_the_network_for_albumentations_newest_version(code: str, asks: bool) -> None:
    seen = run(f"""if True:
        import sys, warnings

        def watch(event, arguments):
            if event in ("urllib.Request", "socket.getaddrinfo", "socket.connect"):
                print(event)
                raise OSError(event)

        sys.addaudithook(watch)
        warnings.simplefilter("ignore")
        {code}""")
    assert bool(seen) == asks


@pytest.fixture(scope="module")
def requirements() -> dict[str, Requirement]:
    """What pyproject.toml asks for, to use tinydet and to test it, by name."""
    tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return {line.name: line for line in map(Requirement, lines)}


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13", "3.14"])
def test_constraints_pin_what_is_required(requirements: dict[str, Requirement], python: str) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})]
    versions = {pin.name: str(pin.specifier).removeprefix("==") for pin in here}
    assert len(versions) == len(here)
    for name, requirement in requirements.items():
        assert requirement.specifier.contains(versions[name]), f"{requirement} does not admit {versions[name]}"


def test_required_packages_are_the_five(requirements: dict[str, Requirement]) -> None:
    assert list(requirements)[:5] == ["torch", "numpy", "albumentations", "pillow", "click"]
    # The last release under the MIT licence; its successor is under the AGPL.
    assert str(requirements["albumentations"].specifier) == "<2.1,>=2.0.8"
