"""A step that fails is run again as it was, and the layer that fails is named."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests.checkpoints import hollow
from tinydet.cli import main
from tinydet.cli.text import replay_lines
from tinydet.data.loader import Batch
from tinydet.distributed import ALONE
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.training.replay import replay, save_step
from tinydet.training.settings import TrainSettings
from tinydet.training.state import State, init
from tinydet.weights.checkpoint import save_checkpoint

CONFIG = model_config("lite0", classes=("Car", "Van"), image_size=(64, 64))
BATCH = Batch(
    images=torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    boxes=torch.tensor([[[8.0, 8, 40, 40]], [[0, 0, 0, 0]]]),
    labels=torch.tensor([[1], [-1]]),
    scales=torch.ones(2),
    sizes=torch.tensor([[64, 64]] * 2),
    names=["a", "b"],
)


@pytest.fixture(scope="module")
def state() -> State:
    return init(CONFIG, weights="none")[1]


def save(out: Path, state: State, batch: Batch = BATCH, **settings: Any) -> Path:
    told: dict[str, Any] = {"frozen": frozenset(), "weights": "none", "world": ALONE, "sync_bn": False}
    run: Any = SimpleNamespace(config=CONFIG, settings=TrainSettings("data", **settings), **told)
    return save_step(out, run, state._replace(step=6), batch, lr=0.25, micro_batches=1)


def test_a_sound_step_is_finite(state: State, tmp_path: Path) -> None:
    path = save(tmp_path, state)
    found = replay(path)
    assert path.name == "failed-step.pt"
    assert found[:3] == (7, ["a", "b"], 0.25)
    assert list(found.terms) == ["total", "classification", "box", "gradient norm"]
    assert all(0 < value < 1e4 for value in found.terms.values())
    assert found.layer == ""
    assert replay(path) == found
    assert replay_lines(found).splitlines()[2] == "all is finite on this device"


@pytest.mark.parametrize("layer", ["backbone.stages.1.0.project", "class_net.convs.1.pointwise"])
def test_the_first_layer_that_overflows_is_named(state: State, tmp_path: Path, layer: str) -> None:
    name = f"{layer}.weight"
    params = {**state.params, name: state.params[name].sign() * 3e38}
    found = replay(save(tmp_path, state._replace(params=params)))
    assert found.layer.startswith(f"{layer} (")
    assert " in, up to " in found.layer
    assert not found.terms["total"] < float("inf")
    assert replay_lines(found).startswith("step 7 on a, b, learning rate 0.25\ntotal ")
    assert f"first not finite: {layer} (" in replay_lines(found)


def test_a_gradient_alone_may_overflow(state: State, tmp_path: Path) -> None:
    name = "box_net.predict.pointwise.weight"
    params = {**state.params, name: state.params[name] * 1e30}
    found = replay(save(tmp_path, state._replace(params=params), loss="focal"))
    assert found.layer.startswith("gradient of backbone.stem.weight: numbers up to ")
    assert found.terms["total"] < found.terms["gradient norm"] == float("inf")


def test_the_command_line_replays_a_step(state: State, tmp_path: Path) -> None:
    path = save(tmp_path, state)
    result = CliRunner().invoke(main, ["train", "--replay", str(path)], catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (0, f"{replay_lines(replay(path))}\n")
    result = CliRunner().invoke(main, ["train", "data", "--replay", str(path), "--seed", "1"])
    assert (result.exit_code, result.output) == (
        2,
        "error: --replay takes everything from its file; leave out data, --seed\n",
    )
    result = CliRunner().invoke(main, ["train"])
    assert (result.exit_code, result.output.splitlines()[-1]) == (2, "Error: Missing argument '[DATA]'.")


def test_other_files_hold_no_step(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", hollow(CONFIG, training={"step": 3}))
    with pytest.raises(InputError, match=r"last\.pt: holds no step to run again; a run saves failed-step\.pt where"):
        replay(tmp_path / "last.pt")
