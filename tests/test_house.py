"""The package keeps its plan: what may import what, how long a file is, which versions are tested together."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 300  # lines of a file
NOWHERE_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}

# Rooms from left to right; a file imports from its own room, one way, and from rooms to its left, and these packages.
PLAN = [
    ("labels errors fields files reading prefetch", "filelock yaml"),
    ("ops distributed", "torch"),
    ("model", "torch"),
    ("weights", "torch filelock safetensors onnxruntime"),
    ("data", "numpy torch PIL albumentations"),
    ("metrics", "numpy"),
    ("draw fonts html", "numpy torch PIL jinja2"),
    ("prediction views engines detector evaluation result_files tide", "numpy torch PIL supervision"),
    ("predict shard video onnx_graph export quantize convert", "numpy torch PIL cv2 onnx onnxruntime onnxscript"),
    ("training", "numpy torch filelock"),
    ("plots runs run_images report check bench", "numpy torch PIL matplotlib jinja2"),
    ("cli __main__", "click torch tinydet"),
]
APART = {"ops": "data metrics", "data": "ops model weights metrics", "metrics": "ops model weights data"}
"""Rooms that know nothing of each other though one is to the left."""


def violations(files: Mapping[str, str]) -> list[str]:
    """Name what breaks the plan, one line each; `files` maps paths from the root, with slashes, to sources."""
    graph = {module(path): imported(path, source, files=files) for path, source in files.items()}
    found = [line for path in files for line in forbidden(path, graph[module(path)])]
    found += [f"{path} has {n} lines" for path, source in files.items() if (n := len(source.splitlines())) > LONGEST]
    try:
        TopologicalSorter({name: graph[name] for name in graph if name != "tinydet"}).prepare()
    except CycleError as error:
        found.append("circle: " + " -> ".join(error.args[1]))
    return found


def module(path: str) -> str:
    """Return the dotted name of a file."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def room(name: str) -> str:
    """Return the wing or file of the top that a dotted name lies in; "tinydet" for the package itself."""
    return name.split(".")[1] if "." in name else name


def place(name: str) -> int | None:
    """Return the row of the plan that a room is in."""
    return next((i for i, (rooms, _) in enumerate(PLAN) if name in rooms.split()), None)


def imported(path: str, source: str, *, files: Mapping[str, str]) -> set[str]:
    """Return every module that a file imports, at its top or further in, by its absolute name."""
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


def forbidden(path: str, imports: set[str]) -> Iterator[str]:
    """Name the imports of a file that the plan does not allow, and a name that says nothing."""
    name = module(path)
    own = room(name)
    if not NOWHERE_NAMES.isdisjoint(name.split(".")):
        yield f"{path} is named after nothing"
    if own == "tinydet":  # which names what the others hold
        return
    if (row := place(own)) is None:
        yield f"{path} is not in the plan"
        return
    for target in sorted(imports):
        top, other = target.split(".")[0], place(room(target))
        if top == "tinydet" and target != "tinydet":
            fine = other is not None and other <= row and room(target) not in APART.get(own, "").split()
        else:
            fine = top in sys.stdlib_module_names or top in PLAN[row][1].split()
        if not fine:
            yield f"{path} imports {target}"


def test_the_package_keeps_the_plan() -> None:
    files = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "tinydet").rglob("*.py")}
    assert "tinydet/__init__.py" in files
    assert violations(files) == []


def test_the_checker_lets_through_what_the_plan_allows() -> None:
    files = {
        "tinydet/__init__.py": "from tinydet.ops.a import f",
        "tinydet/labels.py": "IGNORE = -2",
        "tinydet/ops/__init__.py": "",
        "tinydet/ops/a.py": "import math\nimport torch\nfrom torch.nn import functional\nfrom ..labels import IGNORE",
        "tinydet/ops/b.py": "from . import a\nfrom .a import f",
        "tinydet/data/augment.py": "def f():\n    import albumentations",
        "tinydet/evaluation.py": "import tinydet.ops.b\nfrom tinydet import ops",
        "tinydet/training/loop.py": "from tinydet.evaluation import f",
        "tinydet/cli/__init__.py": "import click\nfrom tinydet import __version__",
    }
    assert violations(files) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("tinydet/ops/b.py", "from tinydet.data import kitti", "tinydet/ops/b.py imports tinydet.data.kitti"),
        ("tinydet/ops/b.py", "from ..data.kitti import f", "tinydet/ops/b.py imports tinydet.data.kitti"),
        ("tinydet/ops/b.py", "from tinydet import f", "tinydet/ops/b.py imports tinydet"),
        ("tinydet/ops/b.py", "def f():\n    import numpy", "tinydet/ops/b.py imports numpy"),
        ("tinydet/data/b.py", "import tinydet.metrics.kitti", "tinydet/data/b.py imports tinydet.metrics.kitti"),
        ("tinydet/data/b.py", "from tinydet.ops.a import f", "tinydet/data/b.py imports tinydet.ops.a"),
        ("tinydet/data/b.py", "if True:\n    import cv2", "tinydet/data/b.py imports cv2"),
        ("tinydet/metrics/b.py", "from torch import nn", "tinydet/metrics/b.py imports torch"),
        ("tinydet/model/b.py", "import numpy as np", "tinydet/model/b.py imports numpy"),
        ("tinydet/model/b.py", "from tinydet.data.kitti import f", "tinydet/model/b.py imports tinydet.data.kitti"),
        ("tinydet/evaluation.py", "from tinydet.training import f", "tinydet/evaluation.py imports tinydet.training"),
        ("tinydet/check.py", "import click", "tinydet/check.py imports click"),
        ("tinydet/predict.py", "from tinydet import cli", "tinydet/predict.py imports tinydet.cli"),
        ("tinydet/ops/a.py", "from . import a", "circle: tinydet.ops.a -> tinydet.ops.a"),
        ("tinydet/more.py", "", "tinydet/more.py is not in the plan"),
        ("tinydet/ops/utils.py", "", "tinydet/ops/utils.py is named after nothing"),
        ("tinydet/ops/b.py", "x = 1\n" * (LONGEST + 1), f"tinydet/ops/b.py has {LONGEST + 1} lines"),
    ],
)
def test_the_checker_sees_a_broken_rule(path: str, source: str, expected: str) -> None:
    names = ["__init__", "ops/a", "data/__init__", "data/kitti", "metrics/kitti", "training/__init__", "cli/__init__"]
    assert expected in violations({**{f"tinydet/{name}.py": "" for name in names}, path: source})


WRITERS = {"write_text", "write_bytes", "save", "savefig", "copyfile", "move", "VideoWriter", "SummaryWriter"}
DIRECT = {
    ("tinydet/predict.py", "open"): "predictions.jsonl is a line longer before the files of an image are written",
    ("tinydet/video.py", "VideoWriter"): "OpenCV writes to a path, here a partial one",
    ("tinydet/run_images.py", "SummaryWriter"): "TensorBoard appends to files of its own",
    ("tinydet/training/memory.py", "write_text"): "no file, but the kernel's",
    ("tinydet/files.py", "write_text"): "a lock, which says who holds it",
}
"""What writes without `tinydet.files.atomic_write`, and why it may."""


def direct_writers(source: str) -> set[str]:
    """Name the functions that a file calls to write to a path, and not into an open file or into memory."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            modes = [one.value for one in values if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            opened = any(isinstance(one, ast.NamedExpr) or getattr(one, "id", "") == "file" for one in values)
            writes = any({*mode} & {*"wax+"} and {*mode} <= {*"rwaxbt+"} for mode in modes)
            if writes if name == "open" else name in WRITERS and isinstance(node.func, ast.Attribute) and not opened:
                found.add(name)
    return found


def test_whatever_writes_a_file_writes_it_whole() -> None:
    files = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "tinydet").rglob("*.py")}
    assert {(path, name) for path, source in files.items() for name in direct_writers(source)} <= {*DIRECT}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("open(path, 'wb')", {"open"}),
        ("path.open(mode='a')", {"open"}),
        ("Path(out).write_text('')", {"write_text"}),
        ("image.save(out / 'a.jpg', quality=92)", {"save"}),
        ("torch.save(content, path)", {"save"}),
        ("with open(path, 'rb') as file: torch.save(content, file)", set()),
        ("image.save(content := io.BytesIO(), format='PNG')", set()),
        ("Image.open(path)", set()),
    ],
)
def test_the_checker_sees_what_writes_to_a_path(source: str, expected: set[str]) -> None:
    assert direct_writers(source) == expected


def run(code: str) -> str:
    """Return what a fresh Python prints."""
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120).stdout


def test_importing_ops_model_and_metrics_loads_nothing_slower_than_torch() -> None:
    names = [module(path.relative_to(ROOT).as_posix()) for path in (ROOT / "tinydet").rglob("*.py")]
    quick = [name for name in names if room(name) in ("tinydet", "labels", "errors", "ops", "model", "metrics")]
    slow = ["albumentations", "cv2", "PIL", "click", "matplotlib", "scipy"]
    assert run(f"import {', '.join(quick)}, sys; print([n for n in {slow} if n in sys.modules])") == "[]\n"


def test_importing_tinydet_loads_neither_torch_nor_numpy() -> None:
    assert run("import tinydet, sys; print([n for n in ('torch', 'numpy') if n in sys.modules])") == "[]\n"


@pytest.mark.parametrize(
    ("code", "asks"),
    [("import albumentations", True), ("import tinydet.data.augment as a; a.import_albumentations()", False)],
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
