"""The public names are what their documentation says, however they are reached."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import tinydet

ROOT = Path(__file__).parents[1]
USER_PROGRAM = """
from torch import Tensor

import tinydet as td
from tinydet.ops import iou, nms

config: td.ModelConfig = td.model_config("lite0", classes=("Car",), image_size=(64, 96))
model, state = td.init(config, weights="none", seed=1)
dataset: td.DetectionDataset = td.open_dataset("kitti", "train")
for batch in td.train_batches(dataset, config, batch_size=4, epochs=2):
    state, metrics = td.train_step(state, batch, model=model, lr=1e-3 * td.cosine(0.5), optimizer=td.adamw())
    norm: Tensor = metrics.grad_norm
score: float = td.evaluate(dataset, td.validate(state.ema, dataset, config=config)).ap
td.save("best.pt", state, config)
detector: td.Detector = td.load("best.pt")
found: td.Prediction = detector("img.png")
keep: Tensor = nms(found.boxes, found.scores, found.labels)
overlap: Tensor = iou(found.boxes, found.boxes)
settings = td.TrainSettings(data="kitti", epochs=2)
for event in td.train(settings, "run"):
    print(event)
"""


@pytest.mark.parametrize("name", tinydet.__all__)
def test_a_name_is_the_same_twice_and_documented(name: str) -> None:
    value = getattr(tinydet, name)
    module = import_module(f"tinydet.{tinydet._HOME[name]}")  # which may set attributes of the package
    assert getattr(tinydet, name) is value is getattr(module, name)
    assert not inspect.ismodule(value)
    if callable(value):
        assert value.__doc__, name
        assert not value.__doc__.startswith(f"{name}("), name


def test_no_public_name_is_a_module() -> None:
    for path in (ROOT / "tinydet").rglob("*.py"):
        import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    assert not [name for name in tinydet.__all__ if inspect.ismodule(getattr(tinydet, name))]
    code = "from tinydet import train, evaluate, load; print(*map(callable, (train, evaluate, load)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True True True\n"


def test_the_table_is_what_type_checkers_read() -> None:
    tree = ast.parse((ROOT / "tinydet/__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    read = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert read == {name: f"tinydet.{module}" for name, module in tinydet._HOME.items()}
    assert len(tinydet.__all__) <= 48


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tinydet' has no attribute 'bifpn_layer'"):
        _ = tinydet.bifpn_layer


def test_first_lines_of_docstrings_are_short_sentences() -> None:
    """In the imperative, under 72 characters, for functions and classes that are public or long."""
    wrong = []
    for path in sorted((ROOT / "tinydet").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name[0] != "_" and (text := ast.get_docstring(node)):
                first = text.splitlines()[0]
                if first.split()[0] in ("The", "A", "An", "What", "Whether", "How", "Where", "Which"):
                    wrong.append(f"{path.name}: {node.name}: {first}")
    assert wrong == []


def test_a_user_program_passes_strict_type_checking(tmp_path: Path) -> None:
    program, config = tmp_path / "program.py", tmp_path / "mypy.ini"
    program.write_text(USER_PROGRAM)
    config.write_text(f"[mypy]\nstrict = True\nfollow_imports = silent\nmypy_path = {ROOT}\n")
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), str(program)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stdout
    assert (ROOT / "tinydet/py.typed").is_file()
