"""Files are written whole or not at all, and what cannot be read is named."""

from pathlib import Path

import pytest

from tinydet.errors import InputError
from tinydet.files import atomic_write, list_files, match_paths


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    with pytest.raises(TypeError), atomic_write(str(path)) as file:
        file.write("no bytes")  # type: ignore[call-overload]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


NAMES = ["cam1/0001.jpg", "cam2\\0001.jpg", "a/cam2/0002.jpg", "b/cam2/0002.jpg", "0003.jpg"]


@pytest.mark.parametrize(
    ("paths", "rows"),
    [
        (["/data/cam2/0001.jpg", "/data/cam1/0001.jpg"], [1, 0]),
        (["cam1\\0001.jpg"], [0]),
        (["x/b/cam2/0002.jpg", Path("anywhere/0003.jpg")], [3, 4]),
        ([], []),
    ],
)
def test_paths_have_the_name_that_agrees_longest(paths: list[str | Path], rows: list[int]) -> None:
    assert match_paths(paths, NAMES) == rows


def test_folders_that_all_names_have_say_nothing() -> None:
    assert match_paths(["other/8.jpg", "7.jpg"], ["C:\\set\\7.jpg", "C:\\set\\8.jpg"]) == [1, 0]
    with pytest.raises(InputError, match=r"^cam2/7.jpg: the annotations have only x/cam1/7.jpg, of another folder$"):
        match_paths(["cam2/7.jpg"], ["x/cam1/7.jpg", "x/cam2/8.jpg"])


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["0001.jpg"], r"^0001.jpg: may be cam1/0001.jpg or cam2\\0001.jpg of the annotations$"),
        (["c/cam2/0002.jpg"], "c/cam2/0002.jpg: may be a/cam2/0002.jpg or b/cam2/0002.jpg"),
        (["cam1/1.jpg"], "^cam1/1.jpg: the annotations have no image '1.jpg'$"),
        (["a/0003.jpg", "b/0003.jpg"], "b/0003.jpg: the annotations have one image, 0003.jpg, for it and for a/0003"),
    ],
)
def test_paths_without_a_name_of_their_own_are_errors(paths: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        match_paths(paths, NAMES)


def test_links_up_and_whole_disks_are_not_walked(tmp_path: Path) -> None:
    folder = tmp_path / "set/images"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    for place in (folder, folder / "inner", tmp_path / "far", tmp_path / "set", tmp_path):
        (place / "a.png").touch()
    links = {"far": tmp_path / "far", "up": tmp_path, "self": folder, "again": folder / "inner", "disk": Path("/")}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    found = [path.relative_to(folder).as_posix() for path in list_files(folder, [".png"], recursive=True)]
    assert found in [["a.png", "again/a.png", "far/a.png"], ["a.png", "far/a.png", "inner/a.png"]]
    for place in (Path("/"), folder / "disk"):
        with pytest.raises(InputError, match="all of a disk; give the folder of the files themselves"):
            list_files(place, [".png"], recursive=True)
    list_files("/", [".png"])


def test_the_number_of_folders_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinydet.files.MAX_FOLDERS", 3)
    for name in "abc":
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="more than 3 folders; give the folder of the files themselves"):
        list_files(tmp_path, [".png"], recursive=True)
