"""Small ImageNet-style sets for tests: in memory, in class folders, in Parquet files."""

import io
import os
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from reslib.data import synthetic
from reslib.data.folders import index_folder
from reslib.recipe import Recipe

SIZES = [(48, 40), (40, 52), (44, 44)]  # width, height


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@lru_cache
def pixels() -> np.ndarray:
    return synthetic.make("train", 30, 64, seed=9)[0]


def picture(i: int, size=(48, 40)) -> Image.Image:
    return Image.fromarray(pixels()[i]).resize(size)


def make_set(root, sizes=SIZES, train=5, val=3, classes=("n01", "n02", "n03")):
    for split, count in (("train", train), ("val", val)):
        for c, wnid in enumerate(classes):
            folder = root / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                number = (15 if split == "val" else 0) + 3 * i + c  # none in both
                (folder / f"{wnid}_{i}.JPEG").write_bytes(encoded(picture(number, sizes[number % len(sizes)])))
    return root


def make_imagenet(root):
    """An image in each of 1000 classes of both splits, the same in all of a split."""
    for number, split in enumerate(("train", "val")):
        (root / split).mkdir(parents=True)
        (root / f"{split}.image").write_bytes(encoded(picture(number), "JPEG"))
        for c in range(1000):
            (root / split / f"n{c:04}").mkdir()
            os.link(root / f"{split}.image", root / split / f"n{c:04}" / "0.JPEG")
    return root


def tiny(**changes) -> Recipe:
    fields = {"dataset": "imagenette", "augmentation": "scale-crop-flip-color", "crop_size": 24, "batch_size": 4}
    return Recipe(**(fields | {"scale_range": (26, 60), "seed": 5} | changes))


def in_memory(sizes=(44, 40), train=14, test=7):
    """A source whose images are (height, width) = sizes."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for count in (train, test):
        coarse = torch.randint(0, 256, (count, 3, 8, 8), generator=generator).float()
        images = torch.nn.functional.interpolate(coarse, sizes, mode="bicubic").clamp(0, 255)
        sets.append(SimpleNamespace(images=images.permute(0, 2, 3, 1).byte(), labels=torch.arange(count) % 3))
    return SimpleNamespace(train=sets[0], test=sets[1])


def on_disk(root):
    train, test = index_folder(root)
    return SimpleNamespace(train=train, test=test)


def write_parquet(path, rows, names=None):
    import json

    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table({"image": [{"bytes": d, "path": None} for d, _ in rows], "label": [label for _, label in rows]})
    if names:
        info = {"info": {"features": {"label": {"names": names}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
