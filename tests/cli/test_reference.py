"""docs/cli.md is what the commands say. `python -m tests.cli.test_reference` writes it anew."""

from pathlib import Path

from click.testing import CliRunner

from tinydet.cli import main

PAGE = Path(__file__).parents[2] / "docs/cli.md"


def reference() -> str:
    """Format the help of every command as a page."""
    parts = ["# The command line\n", "Made from the commands' own help; a test holds it in step.\n"]
    for name in ["", *sorted(main.commands)]:
        result = CliRunner().invoke(main, [*name.split(), "--help"], prog_name="tinydet", terminal_width=100)
        parts.append(f"## tinydet {name}".rstrip() + f"\n\n```\n{result.output.rstrip()}\n```\n")
    return "\n".join(parts)


def test_the_page_is_in_step() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference()


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
