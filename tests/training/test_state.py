"""The state of training is a value: built, saved and restored without a bit lost."""

from pathlib import Path

import pytest
import torch

import tinydet as td
from tests.checkpoints import assert_same
from tinydet.errors import InputError
from tinydet.model.config import model_config
from tinydet.training.optim import Optimizer, adamw, sgd
from tinydet.training.state import State, init, restore, save
from tinydet.weights.checkpoint import load_checkpoint, strip

CONFIG = model_config("lite0", classes=("Car",), image_size=(64, 64), num_channels=8, fpn_repeats=1, head_repeats=1)


def test_init_is_random_by_its_seed_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model, state = init(CONFIG, weights="none", seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert_same(state, init(CONFIG, weights="none", seed=1)[1])
    other = init(CONFIG, weights="none", seed=2)[1]
    assert any(not torch.equal(x, other.params[name]) for name, x in state.params.items())
    assert all(x.is_meta for x in model.state_dict().values())
    assert (state.step, state.loss_scale, state.moments["count"]) == (0, 1.0, 0)
    assert_same(state.ema.params, state.params)


def test_init_starts_from_weights() -> None:
    config = model_config("lite0", classes=("Car",), image_size=(64, 64))
    states = [init(config, weights="imagenet", seed=seed)[1] for seed in (0, 1)]
    equal = {name for name, x in states[0].params.items() if torch.equal(x, states[1].params[name])}
    assert {name for name in states[0].params if name.startswith("backbone.")} <= equal
    with pytest.raises(InputError, match=r"nowhere\.pt"):
        init(config, weights="nowhere.pt")


@pytest.mark.parametrize("optimizer", [adamw(), sgd()])
def test_a_state_comes_back_from_its_file(optimizer: Optimizer, tmp_path: Path) -> None:
    _, state = init(CONFIG, weights="none", optimizer=optimizer)
    grads = {name: torch.randn(x.shape) for name, x in state.params.items()}
    params, moments = optimizer.update(state.params, grads, state.moments, 0.1)
    state = state._replace(params=params, moments=moments, step=7, loss_scale=4.0)
    save(tmp_path / "best.pt", state, CONFIG, history=[{"ap": 1.0}])
    checkpoint = load_checkpoint(tmp_path / "best.pt")
    restored = restore(checkpoint)
    assert isinstance(restored, State)
    assert_same(restored, state)
    assert checkpoint.config == CONFIG
    assert checkpoint.training["history"] == [{"ap": 1.0}]
    assert torch.load(tmp_path / "best.pt", weights_only=True)["training"]["step"] == 7
    assert td.load(tmp_path / "best.pt").classes == ("Car",)


def test_a_stripped_checkpoint_holds_no_state(tmp_path: Path) -> None:
    _, state = init(CONFIG, weights="none")
    save(tmp_path / "best.pt", state, CONFIG)
    strip(tmp_path / "best.pt", tmp_path / "small.pt")
    with pytest.raises(InputError, match="a run cannot be resumed from a stripped checkpoint: it holds no moments"):
        restore(load_checkpoint(tmp_path / "small.pt"))
