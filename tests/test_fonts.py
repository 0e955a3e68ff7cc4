"""Names in any alphabet are drawn with a font that is installed and has it, or as boxes after one warning."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tinydet import fonts
from tinydet.draw import draw, image_grid
from tinydet.errors import visible
from tinydet.fonts import find_font, lacking, load_font

NAMES = ("Fußgänger", "汽车", "a\x1b[31m\nb")


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A machine whose one folder of fonts is empty."""
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(fonts, "find_spec", lambda name: None)
    for cached in (find_font, fonts.warn_of_boxes):
        cached.cache_clear()
    yield tmp_path
    for cached in (find_font, fonts.warn_of_boxes):
        cached.cache_clear()


@pytest.fixture
def dejavu(nothing_installed: Path) -> Path:
    """The same with the font that comes with matplotlib, whose alphabets are those of Europe and more."""
    font_manager = pytest.importorskip("matplotlib.font_manager", reason="matplotlib is not installed")
    return Path(shutil.copy(font_manager.findfont("DejaVu Sans"), nothing_installed / "DejaVuSans.ttf"))


def test_english_needs_no_other_font() -> None:
    assert load_font("Car 0.93 … x", size=12).getname()[0] == "Aileron"  # type: ignore[union-attr]


def test_the_font_that_lacks_fewest_characters_is_taken(dejavu: Path) -> None:
    (dejavu.parent / "Arial.ttf").write_bytes(b"a damaged file")
    assert find_font(frozenset("äßж")) == (str(dejavu), frozenset())
    font = load_font("Fußgänger", size=20)
    assert font.getname()[0] == "DejaVu Sans"  # type: ignore[union-attr]
    assert lacking(font, frozenset("Fußgänger")) == frozenset()
    with pytest.warns(UserWarning, match="install one, such as Noto Sans CJK"):
        assert find_font(frozenset("ä汽")) == (str(dejavu), frozenset("汽"))


def test_without_a_font_boxes_are_drawn_after_one_warning() -> None:
    image = np.full((100, 300, 3), 128, np.uint8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            drawn = draw(image, [[10, 30, 90, 90], [100, 30, 190, 90], [200, 30, 290, 90]], [0, 1, 2], classes=NAMES)
            image_grid([drawn], ["目录/车.png"], columns=1)
    assert ["drawn as boxes" in str(one.message) for one in caught] == [True]


@pytest.mark.parametrize("text", ["Car", "Fußgänger", "汽车", "a b"])
def test_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_control_characters_can_be_seen() -> None:
    assert visible("a\x1b[31m\nb\x9b\r") == "a\\x1b[31m\\nb\\x9b\\r"
