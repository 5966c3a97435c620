"""CIFAR-10 as Parquet files and as class folders: the same images, every fault named, decoded once."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cifar_sets import TEST, TRAIN, fault, png, same, write_folders, write_parquet

from reslib.data import cifar
from reslib.data.cifar import find, load
from reslib.data.sets import fingerprint


@pytest.mark.parametrize("place", ["", "data", "cifar10", "cifar10/plain_text"])
def test_parquet(tmp_path, place):
    write_parquet(tmp_path / place, "train", *TRAIN, shards=3)
    write_parquet(tmp_path / place, "test", *TEST)
    assert find(tmp_path) == ("parquet", tmp_path / place)
    for _ in range(2):  # decoded, then from the cache
        train, test = load(*find(tmp_path))
        same(train, *TRAIN)
        same(test, *TEST)


def test_parquet_faults(tmp_path):
    write_parquet(tmp_path, "train", *TRAIN, shards=3)
    assert "no test*.parquet" in fault(tmp_path)
    write_parquet(tmp_path, "test", *TEST)
    for changes, part in (
        ({"cells": [{"bytes": png(TEST[0][0])}, {"bytes": png(TEST[0][0])[:60]}]}, "row 1: not a readable image"),
        ({"cells": [{"bytes": None}, {"bytes": b"x"}]}, "row 0: None is not an encoded image"),
        ({"cells": [3, 4]}, "row 0: 3 is not an encoded image"),
        ({"cells": [{"bytes": png(TEST[0][0])}, {"bytes": png(TEST[0][0][:30])}]}, "images of several sizes"),
        ({"cells": [{"bytes": png(TEST[0][0][:30])}]}, "images are (30, 32) pixels, CIFAR-10 has (32, 32)"),
        ({"labels": TEST[1] + 3}, "label 10 is out of range"),
        ({"labels": TEST[1] * 0.5}, "labels are float64"),
        ({"labels": [None] * 20}, "labels are object"),
        ({"images": TEST[0][:0]}, "no images"),
    ):
        write_parquet(tmp_path, "test", **{"images": TEST[0], "labels": TEST[1], **changes})
        assert part in fault(tmp_path) and str(tmp_path) in fault(tmp_path), part
    path = tmp_path / "test-00000-of-00001.parquet"
    for damaged in (b"", b"PAR1 nonsense", path.read_bytes()[:200]):
        path.write_bytes(damaged)
        assert f"{path} is not a readable Parquet file" in fault(tmp_path)
    pq.write_table(pa.table({"img": [1], "fine_label": [1]}), path)
    assert f"{path} is not a readable Parquet file with img and label" in fault(tmp_path)
    (tmp_path / "train-00001-of-00003.parquet").unlink()
    assert "is one of 3 files, but 2 are there" in fault(tmp_path)


def test_class_folders(tmp_path):
    write_folders(tmp_path, "train", *TRAIN)
    assert find(tmp_path) == ("folders", tmp_path) and "test is missing" in fault(tmp_path)
    write_folders(tmp_path, "test", *TEST)
    train, test = load(*find(tmp_path))
    order = np.argsort(TRAIN[1], kind="stable")
    same(train, TRAIN[0][order], TRAIN[1][order])
    assert len(test) == 20
    (tmp_path / "test" / "cat" / "003.png").write_bytes(b"\x89PNG")
    assert "cat/003.png: not a readable image" in fault(tmp_path)
    (tmp_path / "test" / "bear").mkdir()
    assert "class folders are ['airplane', 'automobile', 'bear'" in fault(tmp_path)
    (tmp_path / "test" / "bear").rmdir()
    for path in (tmp_path / "test" / "dog").iterdir():
        path.unlink()
    assert "dog: no .png or .jpg files in this class" in fault(tmp_path)


def test_decoded_images_are_cached_until_a_file_changes(tmp_path, monkeypatch):
    write_folders(tmp_path, "train", *TRAIN)
    write_folders(tmp_path, "test", *TEST)
    calls, decode = [], cifar._decode
    monkeypatch.setattr(cifar, "_decode", lambda *a: calls.append(a[1]) or decode(*a))

    def decoded():
        calls.clear()
        sets = load(*find(tmp_path), say=lambda text: None)
        return len(calls), fingerprint(*sets)

    first = decoded()
    assert first[0] == 80 and decoded() == (0, first[1])
    (cache,) = (tmp_path / ".reslib-cache").iterdir()  # no temporary files
    with np.load(cache, allow_pickle=False) as stored:
        assert sorted(stored.files) == ["test_images", "test_labels", "train_images", "train_labels"]
    victim = tmp_path / "train" / "cat" / "003.png"
    victim.write_bytes(png(TRAIN[0][3] ^ 255))  # another image of the same name
    second = decoded()
    assert second[0] == 80 and second[1] != first[1] and decoded() == (0, second[1])
    (cache,) = (tmp_path / ".reslib-cache").iterdir()  # the old one is gone
    raw = cache.read_bytes()
    for damaged in (raw[:5000], b"", raw[:9000] + bytes([raw[9000] ^ 1]) + raw[9001:], pickle.dumps([1])):
        cache.write_bytes(damaged)
        assert decoded() == (80, second[1])
    cache.unlink()
    cache.parent.rmdir()
    cache.parent.write_text("in the way")  # cannot be a folder
    assert decoded() == decoded() == (80, second[1])
