"""The report has the scores and the errors, and a browser shows it without a network or a complaint."""

import base64
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import tinydet.report
from tests.kitti_folders import write_kitti
from tinydet.data.kitti import KittiDataset
from tinydet.evaluation import Scores, evaluate
from tinydet.metrics.coco import STATS
from tinydet.model.postprocess import Detections
from tinydet.report import report_page, score_tables

CLASSES = ("Car", "Pedestrian")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> KittiDataset:
    return KittiDataset(write_kitti(tmp_path_factory.mktemp("kitti"), 6), "all", classes=CLASSES)


@pytest.fixture(scope="module")
def found(dataset: KittiDataset) -> list[Detections]:
    """All objects but those of the first image, with an error of each of the other types."""
    made = []
    for row, frame in enumerate(dataset.frames()):
        moved, named = torch.from_numpy(frame.boxes.copy()), torch.from_numpy(frame.labels.copy())
        if row == 1:
            named[0] = 1
        if row == 2:
            moved[0, [0, 2]] += 30
        if row == 3:
            moved, named = torch.cat([moved, torch.tensor([[150.0, 5, 180, 25]])]), torch.cat([named, named[:1]])
        if row == 4:
            moved, named = torch.cat([moved, moved[:1]]), torch.cat([named, named[:1]])
        if row == 5:  # scores too little to be an error
            moved, named = torch.cat([moved, torch.tensor([[150.0, 5, 180, 25]])]), torch.cat([named, named[:1]])
        keep = slice(0, 0) if row == 0 else slice(None)
        scores = torch.linspace(0.9, 0.6, len(named))
        scores[-1] = 0.2 if row == 5 else scores[-1]
        made.append(Detections(moved[keep], scores[keep], named[keep]))
    return made


@pytest.fixture(scope="module")
def text(dataset: KittiDataset, found: list[Detections]) -> str:
    return report_page(dataset, found, evaluate(dataset, found), source="best.pt <of a test>")


def test_the_numbers_are_those_of_the_scores(dataset: KittiDataset, found: list[Detections], text: str) -> None:
    scores = evaluate(dataset, found)
    assert f"Moderate R40: {scores.ap:.1f} %" in text
    for name in CLASSES:
        levels = scores["KITTI"]["R40"][name].values()
        numbers = ["-" if ap is None else f"{ap:.2f}" for ap in levels]
        assert f"<td>{name}</td><td>{'</td><td>'.join(numbers)}</td>" in text
        assert f"<td>{name}</td><td>{scores['COCO']['per_class'][name]:.2f}</td>" in text
    assert f"<td>all classes</td><td>{scores['COCO']['AP']:.2f}</td>" in text


def test_notes_on_the_scores_are_shown(dataset: KittiDataset, found: list[Detections]) -> None:
    scores = Scores(evaluate(dataset, found), notes=["2 images hold more than 100 objects"])
    assert "<p>2 images hold more than 100 objects</p>" in report_page(dataset, found, scores, source="a test")


def test_errors_of_every_type_are_shown(text: str) -> None:
    for heading in ("Missed: 2", "Background: 1", "Classification: 1", "Localisation: 1", "Duplicate: 1"):
        assert f"<h3>{heading}</h3>" in text
    for caption in ("000000: Car", "000001: Pedestrian for Car 0.90", "000003: Car 0.60"):
        assert f"<figcaption>{caption}</figcaption>" in text
    assert text.count("data:image/jpeg;base64,") == 6


def test_it_needs_no_other_file_and_escapes_what_it_is_given(text: str) -> None:
    assert "best.pt &lt;of a test&gt;" in text
    assert "<script" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "url(" not in text


@pytest.mark.skipif(not find_spec("matplotlib"), reason="matplotlib is not installed")
def test_every_class_has_precision_recall_curves(text: str) -> None:
    svg = [base64.b64decode(one).decode() for one in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text)]
    assert len(svg) == len(CLASSES)
    for name, one in zip(CLASSES, svg, strict=True):
        assert f"<!-- {name}, AP -->" in one


def test_without_matplotlib_a_line_says_how_to_install_it(
    dataset: KittiDataset, found: list[Detections], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tinydet.report, "find_spec", lambda name: None)
    text = report_page(dataset, found, evaluate(dataset, found), source="a test")
    assert "pip install 'tinydet[plot]'" in text
    assert "image/svg" not in text


def test_undefined_scores_are_a_dash(dataset: KittiDataset) -> None:
    scores = Scores(COCO=dict.fromkeys(STATS) | {"AP": 12.345, "per_class": {"Car": None, "Van": 0.0}})
    assert score_tables(scores) == [
        [["COCO %", *STATS[:6]], ["all classes", 12.345, *[None] * 5]],
        [["COCO %", *STATS[6:]], ["all classes", *[None] * 6]],
        [["COCO %", "AP"], ("Car", None), ("Van", 0.0)],
    ]
    levels = {"easy": None, "moderate": 50.0, "hard": 0.0}
    scores = Scores(scores, KITTI={kind: {"Car": levels} for kind in ("R40", "R11")})
    kitti, *_ = score_tables(scores)
    assert kitti[1] == ["Car", *[None, 50.0, 0.0] * 2]
    nothing = [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))] * len(dataset)
    text = report_page(dataset, nothing, scores, source="a test")
    cells = ["Car", *["-", "50.00", "0.00"] * 2], ["all classes", "12.35", *"-----"], ["Car", "-"], ["Van", "0.00"]
    for row in cells:
        assert f"<tr><td>{'</td><td>'.join(row)}</td></tr>" in text


@pytest.mark.skipif(BROWSER is None, reason="there is no chromium to open it in")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it(text: str, tmp_path: Path, width: int) -> None:
    """Its own script, for the test alone, says what the browser made of the page."""
    probe = """<script>
    window.addEventListener("error", e => console.error("page error " + e.message));
    window.addEventListener("load", () => {
      const images = [...document.images];
      document.title = JSON.stringify({
        images: images.length, shown: images.filter(i => i.complete && i.naturalWidth > 300).length,
        wide: document.documentElement.scrollWidth - window.innerWidth, cells: document.querySelectorAll("td").length,
      });
    });</script>"""
    path = tmp_path / "report.html"
    path.write_text(text.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    assert BROWSER is not None
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    flags += [f"--window-size={width},900"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"]
    ran = subprocess.run([BROWSER, *flags, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    (found,) = re.findall(r"<title>(\{.*?\})</title>", ran.stdout)
    images = 6 + (len(CLASSES) if find_spec("matplotlib") else 0)
    for said in (f'"images":{images}', f'"shown":{images}'):
        assert said in found
    assert int(re.findall(r'"wide":(-?\d+)', found)[0]) <= 0
    assert int(re.findall(r'"cells":(\d+)', found)[0]) > 30
    assert not [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
