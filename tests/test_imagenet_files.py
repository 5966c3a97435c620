"""Image files of every kind, broken ones among them, and what is kept of decoded ones."""

import os

import numpy as np
import pytest
import torch
from imagenet_sets import encoded, make_imagenet, make_set, on_disk, picture, tiny, write_parquet
from PIL import Image
from training import QUIET

from reslib.data.decode import BadImage, decode_rgb
from reslib.data.imagenet import FolderBatches, load_folder_set
from reslib.errors import UserError
from reslib.train import train


def odd_files() -> dict[str, tuple[bytes, bool]]:
    """File name -> bytes and whether it can be shown."""
    rgb = picture(2)
    deep = Image.fromarray((np.asarray(rgb.convert("L")).astype(np.uint16)) * 257)
    jpeg = encoded(rgb, "JPEG")
    return {
        "cmyk.JPEG": (encoded(rgb.convert("CMYK"), "JPEG"), True),
        "grey.JPEG": (encoded(rgb.convert("L"), "JPEG"), True),
        "sixteen.JPEG": (encoded(deep), True),
        "png_inside.JPEG": (encoded(rgb), True),
        "alpha.png": (encoded(rgb.convert("RGBA")), True),
        "palette.png": (encoded(rgb.convert("P")), True),
        "empty.JPEG": (b"", False),
        "truncated.JPEG": (jpeg[: len(jpeg) // 2], False),
        "text.JPEG": (b"<html>404 not found</html>", False),
        "header.JPEG": (jpeg[:20], False),
    }


def test_every_kind_of_file_becomes_rgb_or_is_refused():
    reference = np.asarray(picture(2)).astype(float)
    for name, (data, good) in odd_files().items():
        if not good:
            with pytest.raises(BadImage):
                decode_rgb(data)
            continue
        image = decode_rgb(data)
        assert image.mode == "RGB", name
        grey = name in ("grey.JPEG", "sixteen.JPEG")
        expected = np.asarray(picture(2).convert("L")).astype(float)[..., None] if grey else reference
        assert np.abs(np.asarray(image) - expected).mean() < 16, name  # lossy, but neither black nor inverted


def broken_set(tmp_path):
    root = make_set(tmp_path / "set")
    for name, (data, _) in odd_files().items():
        for split in ("train", "val"):
            (root / split / "n02" / name).write_bytes(data)
    return root


def test_broken_files_are_left_out_and_named(tmp_path):
    root = broken_set(tmp_path)
    data = load_folder_set(root)
    bad = {f"{split}/n02/{name}" for split in ("train", "val") for name, (_, good) in odd_files().items() if not good}
    assert set(data.report["skipped"]) == bad and all(data.report["skipped"].values())
    assert len(data.train_labels) == 15 + 6 and len(data.test_labels) == 9 + 6
    assert data.train_images.shape[1:] == (40, 40, 3)  # the median shorter side
    again = load_folder_set(root)
    assert again.report["cached"] and again.report["skipped"] == data.report["skipped"]
    assert (again.train_images == data.train_images).all() and again.fingerprint == data.fingerprint


def test_validation_images_that_imagenet_trains_on_are_told_by_their_names(tmp_path):
    root = make_set(tmp_path / "imagenette", classes=("n01440764", "n02102040"))
    folder = root / "val" / "n01440764"
    (folder / "n01440764_1.JPEG").rename(folder / "ILSVRC2012_val_00000293.JPEG")
    (folder / "n01440764_0.JPEG").write_bytes(b"broken")
    data = load_folder_set(root)
    names = ["ILSVRC2012_val_00000293", "n01440764_2", "n02102040_0", "n02102040_1", "n02102040_2"]
    assert len(data.test_labels) == len(names) and data.report["trained_on"] == (1, 2, 3, 4)
    assert load_folder_set(root).report["trained_on"] == (1, 2, 3, 4)  # from the cache


def test_streaming_replaces_broken_files_by_the_next_one(tmp_path):
    source = on_disk(broken_set(tmp_path))
    batches, helped = (FolderBatches(tiny(batch_size=5), source, "cpu", workers=w) for w in (0, 2))
    result, other = list(batches.stream(0, 5)), list(helped.stream(0, 5))  # one epoch of 25 images
    assert all((x == z).all() for (x, _), (z, _) in zip(result, other, strict=True))
    labels = torch.cat([y for _, y in result])
    assert len(labels) == 25 and set(batches.skipped) == set(helped.skipped) and len(batches.skipped) == 4
    readable = np.array([odd_files().get(os.path.basename(source.train.name(i)), (0, True))[1] for i in range(25)])
    expected = [next(j % 25 for j in range(i, i + 25) if readable[j % 25]) for i in batches.order(np.arange(25))]
    assert (labels.numpy() == source.train.labels[expected]).all()
    assert sum(len(y) for _, y in batches.eval_batches("test", 4)) == 9 + 6  # not the four broken ones
    assert len(batches.skipped) == 8


def test_nothing_readable_is_one_clear_error(tmp_path):
    root = make_set(tmp_path / "set")
    for file in (root / "train").rglob("*.JPEG"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"^no readable image in a row of 15 under [^\n]*$"):
        list(FolderBatches(tiny(), on_disk(root), "cpu", workers=1).stream(0, 1))
    with pytest.raises(UserError, match="no image of class 'n01' in train"):
        load_folder_set(root)


def test_fingerprint_follows_contents_and_a_damaged_cache_is_made_again(tmp_path):
    root = make_set(tmp_path / "set", sizes=[(44, 44)])
    first = load_folder_set(root)
    cache = first.report["cache"]
    assert not first.report["cached"] and os.path.dirname(cache) == str(tmp_path / ".reslib-cache")
    with open(cache, "rb+") as file:
        file.truncate(1000)
    second = load_folder_set(root)
    assert not second.report["cached"] and (second.train_images == first.train_images).all()
    assert load_folder_set(root).report["cached"]
    file = root / "train/n01/n01_0.JPEG"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # same size, other contents
    file.write_bytes(data)
    assert load_folder_set(root).fingerprint != first.fingerprint


def test_unwritable_data_root_uses_another_cache(tmp_path, monkeypatch):
    root = make_set(tmp_path / "set", train=1, val=1)
    (tmp_path / ".reslib-cache").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert load_folder_set(root).report["cache"].startswith(str(tmp_path / "cache" / "reslib"))


def test_training_names_the_images_it_could_not_read(tmp_path):
    root, lines = make_imagenet(tmp_path / "imagenet"), []
    for name in ("train/n0007/0.JPEG", "val/n0003/0.JPEG", "val/n0900/0.JPEG"):
        (root / name).unlink()
        (root / name).write_bytes(b"<html>")
    recipe = tiny(dataset="imagenet", model="resnet18", options="width=1", batch_size=250, iterations=5)
    summary = train(recipe, tmp_path / "runs", tmp_path, execution=QUIET, say=lines.append)
    assert summary["unreadable"] == ["train/n0007/0.JPEG", "val/n0003/0.JPEG", "val/n0900/0.JPEG"]
    assert summary["unreadable_images"] == 3 and summary["status"] == "finished"
    (note,) = [line for line in lines if "unreadable" in line]
    assert "3 unreadable images left out: train/n0007/0.JPEG (no image format is recognised), val/n0003" in note


@pytest.mark.parametrize("form", ["folders", "parquet"])
def test_a_subset_with_broken_images_trains_and_its_record_names_them(form, tmp_path):
    """Decoded once, before training: what could not be is in the summary as it is with ImageNet."""
    bad = {name for name, (_, good) in odd_files().items() if not good}
    if form == "folders":
        root = make_set(tmp_path / "imagenette")
        for name, (data, _) in odd_files().items():
            (root / "train" / "n02" / name).write_bytes(data)
        names = {f"train/n02/{name}" for name in bad}
    else:
        rows = [(encoded(picture(i)), i % 3) for i in range(15)] + [(data, 1) for data, _ in odd_files().values()]
        write_parquet(tmp_path / "imagenette" / "train.parquet", rows, ["a", "b", "c"])
        write_parquet(
            tmp_path / "imagenette" / "validation.parquet",
            [(encoded(picture(i)), i % 3) for i in range(15, 24)], ["a", "b", "c"],
        )  # fmt: skip
        names = {f"train.parquet:{15 + i}" for i, name in enumerate(odd_files()) if name in bad}
    recipe = tiny(model="resnet18", options="width=1", iterations=2)
    summary = train(recipe, tmp_path / "runs", tmp_path, execution=QUIET, say=str)
    assert set(summary["unreadable"]) == names and summary["unreadable_images"] == len(names) == 4
    assert summary["train_images"] == 15 + 6 and summary["status"] == "finished"
