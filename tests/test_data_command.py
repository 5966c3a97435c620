"""`reslib data`: what is found where, damaged sets, downloads, exit codes."""

import numpy as np
import pytest
from PIL import Image

from reslib import data
from reslib.cli import main
from reslib.commands import data as command
from reslib.data import cifar
from reslib.errors import UserError


@pytest.fixture
def folders(tmp_path):
    """A tiny CIFAR-10 in class folders, every image different."""
    for split, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(cifar.CLASSES):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                image = np.full((32, 32, 3), label * 20 + i * 5 + (split == "test"), np.uint8)
                Image.fromarray(image).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def run(action, root):
    data._load.cache_clear()
    return main(["data", action, "--data-root", str(root)])


def test_nothing_there(tmp_path, capsys):
    assert run("show", tmp_path) == 0
    out = capsys.readouterr().out
    assert out.count("not found") == 3 and "reslib data download" in out
    assert run("verify", tmp_path) == 1
    assert run("show", tmp_path / "absent") == 2
    assert run("shwo", tmp_path) == 2


def test_class_folders_are_found_in_their_form(tmp_path, folders, capsys):
    root = folders
    # class folders train/<class> in the root itself also look like ImageNet's, but for the missing val
    assert command.locate("cifar10", root) == ("folders", root)
    capsys.readouterr()
    run("show", root)
    line = next(text for text in capsys.readouterr().out.splitlines() if text.startswith("cifar10: folders"))
    assert "20 training and 10 test images" in line
    assert data.load("cifar10", root).fingerprint in line


def test_verify_names_the_damage(tmp_path, capsys):
    folder = tmp_path / cifar.FOLDER
    folder.mkdir()
    (folder / "data_batch_1").write_bytes(b"not the file")
    assert run("verify", tmp_path) == 1 and run("show", tmp_path) == 1
    out = capsys.readouterr().out
    assert "cifar10: DAMAGED" in out and "data_batch_1" in out


def test_verify_of_readable_images_says_that_they_are_not_the_original(folders):
    source = data.load("cifar10", folders)
    assert "not the original" in command.checked("cifar10", "folders", source)
    assert "MD5" in command.checked("cifar10", "torchvision", source)
    source.fingerprint = command.CIFAR10
    assert "the original" in command.checked("cifar10", "parquet", source)


def test_download(tmp_path, folders, monkeypatch, capsys):
    def fetched(root):
        asked.append(root)
        return root / cifar.FOLDER

    asked = []
    monkeypatch.setattr(cifar, "download", fetched)
    assert run("download", folders) == 0 and not asked  # already there
    assert "already there" in capsys.readouterr().out
    empty = tmp_path / "new"
    assert run("download", empty) == 0 and asked == [empty]

    def refused(root):
        raise UserError("https://example.org cannot be downloaded: no network")

    monkeypatch.setattr(cifar, "download", refused)
    assert run("download", empty) == 1
    assert "no network" in capsys.readouterr().err


def test_the_original_has_the_known_fingerprint():
    root = data.data_root()
    if not (cifar.find(root) or ("", None))[0] == "torchvision":
        pytest.skip(f"no original CIFAR-10 under {root}")
    assert data.load("cifar10", root).fingerprint == command.CIFAR10
