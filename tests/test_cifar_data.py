"""CIFAR-10 as people have it, whole and damaged: torchvision layout, Parquet, class folders."""

import hashlib
import io
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from cifar_sets import TEST, TRAIN, fault, made_up, random, same

from reslib import data
from reslib.data import cifar
from reslib.data.cifar import CLASSES, FOLDER, TEST_FILES, TRAIN_FILES, find, load, restricted_unpickle
from reslib.data.sets import ImageSet, fingerprint, shared_images
from reslib.errors import UserError


def batch(images, labels):
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)  # red, green, blue planes
    return {b"batch_label": b"x", b"data": rows, b"labels": [int(v) for v in labels]}


class Python2(pickle._Pickler):
    """Writes bytes as the strings of Python 2, in which CIFAR-10 was written."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)
        self.memoize(text)

    dispatch[bytes] = save_string


def pickled(contents) -> bytes:
    out = io.BytesIO()
    Python2(out, protocol=2).dump(contents)
    return out.getvalue()


@pytest.fixture
def put(tmp_path, monkeypatch):
    """put(name, contents) writes a batch file whose MD5 counts as the published one."""
    (tmp_path / FOLDER).mkdir()

    def put(name, contents):
        raw = contents if isinstance(contents, bytes) else pickled(contents)
        (tmp_path / FOLDER / name).write_bytes(raw)
        files = TEST_FILES if name in TEST_FILES else TRAIN_FILES
        monkeypatch.setitem(files, name, hashlib.md5(raw).hexdigest())

    for i, name in enumerate(TRAIN_FILES):
        put(name, batch(TRAIN[0][12 * i : 12 * i + 12], TRAIN[1][12 * i : 12 * i + 12]))
    put("test_batch", batch(*TEST))
    return put


def test_torchvision_layout(put, tmp_path, capsys):
    assert find(tmp_path) == ("torchvision", tmp_path / FOLDER) == find(tmp_path / FOLDER)
    train, test = load(*find(tmp_path))
    same(train, *TRAIN)
    same(test, *TEST)
    assert "60 training and 20 test images; CIFAR-10 has (50000, 10000)" in capsys.readouterr().out


def test_torchvision_reads_the_same(put, tmp_path, monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda self: None)
    for part, found in zip((True, False), load(*find(tmp_path)), strict=True):
        theirs = torchvision.datasets.CIFAR10(tmp_path, train=part)
        same(found, theirs.data, theirs.targets)


def test_the_real_set(data_root):
    if not find(data_root):
        pytest.skip(f"no CIFAR-10 under {data_root}")
    told = []
    train, test = load(*find(data_root), say=told.append)
    assert (len(train), len(test), told) == (50_000, 10_000, [])  # complete, and no test image is in training
    assert train.labels.bincount().tolist() == [5000] * 10 and test.labels.bincount().tolist() == [1000] * 10
    means = train.images.double().mean((0, 1, 2)) / 255
    assert torch.allclose(means, torch.tensor([0.4914, 0.4822, 0.4465]).double(), atol=1e-4)
    assert train.labels[:5].tolist() == [6, 9, 9, 4, 1]


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_damaged_files_are_named(put, tmp_path, name):
    path = tmp_path / FOLDER / name
    whole = path.read_bytes()
    for damaged in (
        whole[:1000],
        whole[:-1],
        bytes([whole[0] ^ 1]) + whole[1:],
        whole[:2000] + b"\0" + whole[2001:],
        b"",
    ):
        path.write_bytes(damaged)
        assert name in fault(tmp_path) and "is damaged: its MD5 is" in fault(tmp_path)
    path.unlink()
    assert f"{name} cannot be read: No such file" in fault(tmp_path)
    path.mkdir()
    assert f"{name} cannot be read" in fault(tmp_path)


def test_damage_is_found_without_the_md5_too(put, tmp_path):
    whole = pickled(batch(*TEST))
    for damaged in (whole[:1000], whole[:-1], b"", b"\x80", b"no pickle", whole.replace(b"labels", b"labelz")):
        put("test_batch", damaged)
        assert "test_batch is not a CIFAR-10 batch" in fault(tmp_path)
    for position in random.integers(0, len(whole), 40):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << int(random.integers(8))
        put("test_batch", bytes(flipped))
        try:
            load(*find(tmp_path), say=lambda text: None)
        except UserError as error:
            assert FOLDER in str(error)


def rows(**changes):
    return batch(*TEST) | {k.encode(): v for k, v in changes.items()}


@pytest.mark.parametrize(
    ("contents", "part"),
    [
        (rows(data=np.zeros((20, 3071), np.uint8)), "data has shape (20, 3071), expected (N, 3072)"),
        (rows(data=np.zeros(3072, np.uint8)), "data has shape (3072,)"),
        (rows(data=np.zeros((20, 3072), np.float32)), "images are float32, allowed is uint8"),
        (rows(data=[[0] * 3072] * 20), "data has shape"),
        (rows(labels=[3] * 19), "shape (19,) for 20 images"),
        (rows(labels=[3] * 19 + [10]), "label 10 is out of range, allowed is 0 to 9"),
        (rows(labels=[-1] * 20), "label -1 is out of range"),
        (rows(labels=[0.5] * 20), "labels are not a list of whole numbers"),
        (rows(labels="abc"), "labels are not a list"),
        (rows(data=np.zeros((0, 3072), np.uint8), labels=[]), "no images"),
        ([1, 2], "is not a CIFAR-10 batch"),
        ({b"labels": [1]}, "data and labels are not in it"),
    ],
)
def test_wrong_contents_are_named(put, tmp_path, contents, part):
    put("test_batch", contents)
    assert part in fault(tmp_path) and "test_batch" in fault(tmp_path)


class Malicious:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_in_a_pickle_is_executed(put, tmp_path, protocol):
    victim = tmp_path / "victim"
    for attack in (
        Malicious(os.system, f"touch {victim}"),
        Malicious(eval, f"open({str(victim)!r}, 'w')"),
        Malicious(np.save, str(victim), 1),
        Malicious(exec, f"open({str(victim)!r}, 'w')"),
        Malicious(os.mkdir, str(victim)),
    ):
        raw = pickle.dumps({"data": attack, "labels": [1]}, protocol=protocol)
        with pytest.raises(UserError, match="here is not a CIFAR-10 batch: .*names"):
            restricted_unpickle(raw, "here")
        put("test_batch", raw)
        assert "test_batch is not a CIFAR-10 batch" in fault(tmp_path)
    assert not victim.exists()
    for raw in (b"cnumpy\nload\n(S'x'\ntR.", b"cnumpy\nndarray.tofile\n.", b"cos\nsystem\n(S'true'\ntR."):
        with pytest.raises(UserError):
            restricted_unpickle(raw, "here")


def test_swapped_sets_are_refused(put, tmp_path):
    put("test_batch", batch(*made_up(100, 3)))
    assert "60 training and 100 test images: train and test look swapped" in fault(tmp_path)


def test_leaks_are_refused_or_told(put, tmp_path):
    put("test_batch", batch(np.concatenate([TEST[0][:19], TRAIN[0][:1]]), TEST[1]))
    assert "1 of 20 test images are also training images" in fault(tmp_path)
    train = ImageSet(*map(torch.from_numpy, TRAIN))
    assert shared_images(train, train) == 60 and shared_images(train, ImageSet(*map(torch.from_numpy, TEST))) == 0
    twice = ImageSet(train.images[[0, 0, 1]], train.labels[[0, 0, 1]])
    assert shared_images(train, twice) == 3  # each copy counts


def test_one_leak_in_many_is_a_note(tmp_path, monkeypatch):
    images, labels = made_up(400, 4)
    test = (np.concatenate([images[200:399], images[:1]]), labels[200:])
    sets = tuple(ImageSet(*map(torch.from_numpy, part)) for part in ((images[:200], labels[:200]), test))
    monkeypatch.setattr(cifar, "_load_folders", lambda path: sets)
    told = []
    load("folders", tmp_path, told.append)
    assert len(told) == 2 and "note: " in told[1] and "1 of 200 test images are also training images" in told[1]


def test_load_by_name(put, tmp_path, capsys):
    source = data.load("cifar10", tmp_path)
    assert source.origin == "torchvision" and not source.synthetic and source.classes == CLASSES
    assert source.fingerprint == fingerprint(source.train, source.test) and len(source.fingerprint) == 16
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="no CIFAR-10 under"):
        data.load("cifar10", empty)
    with pytest.raises(UserError, match="data root '/nowhere' is not a folder"):
        data.load("cifar10", "/nowhere")
    with pytest.raises(UserError, match="dataset 'cifar100' is unknown.*did you mean 'cifar10'"):
        data.load("cifar100", tmp_path)
    told = []
    assert data.choose_dataset("cifar", tmp_path, say=told.append) == "cifar10" and not told
    assert data.choose_dataset("cifar", empty, say=told.append) == "synthetic"
    assert "SYNTHETIC DATA" in told[0] and str(empty) in told[0]
