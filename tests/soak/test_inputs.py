"""A few of the broken files of every kind, the same ones every time."""

import random
from itertools import islice
from pathlib import Path

from tests.soak.inputs import WRITERS, fault, mutated_inputs


def test_no_broken_file_breaks_its_reader(tmp_path: Path) -> None:
    tried = [(kind, fault(read, tmp_path)) for kind, read in islice(mutated_inputs(random.Random(7), tmp_path), 600)]
    assert {kind.split(":")[0] for kind, _ in tried} == {one.__name__.removeprefix("write_") for one in WRITERS}
    assert [one for one in tried if one[1]] == []
