"""Small CIFAR-10 sets for tests, as Parquet files and as class folders."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from reslib.data.cifar import CLASSES, find, load
from reslib.data.sets import ImageSet
from reslib.errors import UserError

random = np.random.default_rng(0)


def made_up(count, seed):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count) % 10


TRAIN, TEST = made_up(60, 1), made_up(20, 2)


def png(image, kind="PNG"):
    out = io.BytesIO()
    Image.fromarray(image).save(out, kind)
    return out.getvalue()


def write_parquet(folder, split, images, labels, shards=1, cells=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(shards):
        part = (
            slice(i, None, shards) if shards == 1 else slice(i * len(images) // shards, (i + 1) * len(images) // shards)
        )
        rows = cells or [{"bytes": png(image), "path": None} for image in images[part]]
        table = pa.table({"img": rows, "label": list(labels[part])[: len(rows)]})
        pq.write_table(table, folder / f"{split}-{i:05}-of-{shards:05}.parquet")


def write_folders(root, split, images, labels):
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / split / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:03}.png").write_bytes(png(image))


def same(found: ImageSet, images, labels):
    assert found.images.dtype == torch.uint8 and found.labels.dtype == torch.int64
    assert np.array_equal(found.images, images) and np.array_equal(found.labels, labels)


def fault(root) -> str:
    with pytest.raises(UserError) as caught:
        load(*find(root), say=lambda text: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)
