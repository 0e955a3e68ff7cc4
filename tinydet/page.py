"""A page: HTML that holds all it shows, and opens without a network."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image

# Okabe and Ito's blue, vermilion and green, each dashed in its own way.
STROKES = (("#0072B2", "8 4"), ("#D55E00", "none"), ("#009E73", "2 3"))
CHART = (300, 240)  # width and height
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 75rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: 1rem 0; } figcaption { color: GrayText; }
.wide { overflow-x: auto; margin: 1rem 0; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); gap: 0 .8rem; }
.gallery figure { margin: .4rem 0; } .gallery img { width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
.error { color: #d55e00; font-weight: bold; } .warning { color: #b8860b; font-weight: bold; }
li { overflow-wrap: anywhere; }
.curve { display: inline-block; width: min(300px, 100%); vertical-align: top; margin-right: .8rem; }
.curve ul { list-style: none; padding: 0; margin: 0; }
svg text { font-size: 12px; fill: currentColor; } .grid { stroke: #8884; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page of some parts, each of them HTML."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what is under it."""
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(parts)


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first of them the head; on a narrow screen it scrolls by itself."""
    head, *rest = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    head = head.replace("<td>", "<th>").replace("</td>", "</th>")
    lines = "".join(f"<tr>{row}</tr>\n" for row in rest)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{lines}</tbody></table></div>'


def items(entries: Iterable[tuple[str, str]]) -> str:
    """A list of (kind, text); the kind is shown, and coloured where it is an error or a warning."""
    lines = (f'<li><span class="{escape(kind)}">{escape(kind)}</span> {escape(text)}</li>' for kind, text in entries)
    return "<ul>\n" + "\n".join(lines) + "\n</ul>"


def gallery(pictures: Iterable[tuple[np.ndarray, str]]) -> str:
    """Pictures, uint8[H W 3], inside the page, each over its caption: as many side by side as there is room for."""
    figures = []
    for image, caption in pictures:
        file = io.BytesIO()
        Image.fromarray(image).save(file, format="JPEG", quality=88, subsampling=0)  # thin lines keep their colour
        source, text = base64.b64encode(file.getvalue()).decode(), escape(caption, quote=True)
        picture = f'<img src="data:image/jpeg;base64,{source}" alt="{text}">'
        figures.append(f"<figure>{picture}<figcaption>{text}</figcaption></figure>")
    return '<div class="gallery">' + "\n".join(figures) + "</div>"


def curves(title: str, lines: Mapping[str, np.ndarray]) -> str:
    """Precision over recall as a drawing: lines in steps, of percent at evenly spaced recalls, by what they are."""
    drawn, keys = [], []
    for tick in range(0, 101, 25):
        x, y = _place(tick, tick)
        drawn.append(f'<line x1="{_place(0, 0)[0]}" y1="{y:g}" x2="{_place(100, 0)[0]}" y2="{y:g}" class="grid"/>')
        drawn.append(f'<text x="{_place(0, 0)[0] - 6}" y="{y + 4:g}" text-anchor="end">{tick}</text>')
        drawn.append(f'<text x="{x:g}" y="{_place(0, 0)[1] + 16}" text-anchor="middle">{tick}</text>')
    for (name, values), (colour, dashes) in zip(lines.items(), STROKES, strict=False):
        (x, y), *rest = [_place(100 * i / (len(values) - 1), value) for i, value in enumerate(values)]
        style = f'fill="none" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes}"'
        drawn.append(f'<path d="M{x:.1f} {y:.1f}{"".join(f"V{y:.1f}H{x:.1f}" for x, y in rest)}" {style}/>')
        keys.append(f'<li><svg width="34" height="10"><path d="M0 5H34" {style}/></svg> {escape(name)}</li>')
    x, y = _place(50, 50)
    drawn.append(f'<text x="{x:g}" y="{CHART[1] - 4}" text-anchor="middle">recall, %</text>')
    drawn.append(f'<text x="12" y="{y:g}" text-anchor="middle" transform="rotate(-90 12 {y:g})">precision, %</text>')
    text, box = escape(title, quote=True), f"0 0 {CHART[0]} {CHART[1]}"
    caption = f"<figcaption><b>{text}</b><ul>{''.join(keys)}</ul></figcaption>"
    svg = f'<svg viewBox="{box}" role="img" aria-label="{text}">{"".join(drawn)}</svg>'
    return f'<figure class="curve">{caption}{svg}</figure>'


def _place(x: float, y: float) -> tuple[float, float]:
    """Where a point of percent by percent lies in a chart, from its left and its top."""
    left, bottom, edge = 46, 36, 16
    return left + (CHART[0] - left - edge) * x / 100, edge + (CHART[1] - edge - bottom) * (1 - y / 100)
