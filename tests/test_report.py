"""The report holds the numbers and the pictures, and a browser shows them without a network or a complaint."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kitti_folders import write_kitti
from tinydet.data.kitti import KittiDataset
from tinydet.model.detect import Detections
from tinydet.page import curves, items, page, table
from tinydet.report import report_page
from tinydet.score import headline, score_detections

CLASSES = ("Car", "Pedestrian")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> KittiDataset:
    return KittiDataset(write_kitti(tmp_path_factory.mktemp("kitti"), 6), "all", classes=CLASSES)


@pytest.fixture(scope="module")
def found(dataset: KittiDataset) -> list[Detections]:
    """Every object but those of the first picture, one of another class, one badly placed, and one false."""
    made = []
    for row, (boxes, labels) in enumerate(zip(dataset.boxes, dataset.labels, strict=True)):
        moved, named = torch.from_numpy(boxes.copy()), torch.from_numpy(labels.copy())
        if row == 1:
            named[0] = 1
        if row == 2:
            moved[0, [0, 2]] += 30
        if row == 3:
            moved, named = torch.cat([moved, torch.tensor([[150.0, 5, 180, 25]])]), torch.cat([named, named[:1]])
        keep = slice(0, 0) if row == 0 else slice(None)
        scores = torch.linspace(0.9, 0.6, len(named))
        made.append(Detections(moved[keep], scores[keep], named[keep]))
    return made


@pytest.fixture(scope="module")
def text(dataset: KittiDataset, found: list[Detections]) -> str:
    return report_page(dataset, found, score_detections(dataset, found), source="best.pt <of a test>")


def test_the_numbers_are_those_of_the_scores(dataset: KittiDataset, found: list[Detections], text: str) -> None:
    scores = score_detections(dataset, found)
    assert f"Moderate R40: {headline(scores).ap:.1f} %" in text
    for name in CLASSES:
        easy, moderate = (scores["R40"][name][level] for level in ("easy", "moderate"))
        assert f"<td>{name}</td><td>{easy:.2f}</td><td>{moderate:.2f}</td>" in text
        assert f"<td>{name}</td><td>{100 * scores['per_class_AP'][name]:.2f}</td>" in text
    assert f"<td>all classes</td><td>{100 * scores['stats'][0]:.2f}</td>" in text


def test_every_kind_of_mistake_is_shown(text: str) -> None:
    for heading in ("Missed: 2", "False: 1", "Confused: 1", "Badly placed: 1"):
        assert f"<h2>{heading}</h2>" in text
    assert text.count("data:image/jpeg;base64,") == 5


def test_it_needs_no_other_file_and_escapes_what_it_is_given(text: str) -> None:
    assert "best.pt &lt;of a test&gt;" in text
    assert "<script" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "url(" not in text


def test_a_page_of_nothing() -> None:
    assert page("Empty <one>", []).count("Empty &lt;one&gt;") == 2
    assert "<th>a</th><th>b</th>" in table([["a", "b"], ["<", "d"]])
    assert "<td>&lt;</td><td>d</td>" in table([["a", "b"], ["<", "d"]])
    assert '<span class="error">error</span> a &amp; b' in items([("error", "a & b")])


def test_a_curve_goes_through_its_points() -> None:
    drawn = curves("Car", {"easy": np.array([100.0, 50.0, 0.0])})
    (path,) = re.findall(r'<path d="(M[\d.]+ [\d.]+V[^"]+)"', drawn)
    points = [float(number) for number in re.findall(r"[\d.]+", path)]
    assert points == [46, 16, 110, 165, 204, 284]  # at the left and the top, down to half, half across, down, across


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
        charts: [...document.querySelectorAll("svg[role=img]")].filter(s => s.clientWidth > 200).length,
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
    for said in ('"images":5', '"shown":5', '"charts":2'):
        assert said in found
    assert int(re.findall(r'"wide":(-?\d+)', found)[0]) <= 0
    assert int(re.findall(r'"cells":(\d+)', found)[0]) > 30
    assert not [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
