"""Render Jinja2 templates to HTML pages that need no other file."""

import base64
import io
from collections.abc import Callable
from typing import Any


def render(template: str, **values: Any) -> str:
    """Render a template of tinydet/templates; what is put into it is escaped, halves of characters too."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("tinydet")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return pages.get_template(template).render(values).encode(errors="backslashreplace").decode()


def data_uri(save: Callable[..., Any], media_type: str, **options: Any) -> str:
    """Encode what `save(file, **options)` writes as a data URI."""
    save(file := io.BytesIO(), **options)
    return f"data:{media_type};base64,{base64.b64encode(file.getvalue()).decode()}"
