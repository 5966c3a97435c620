"""Data that nobody should train on is refused by name before training, whatever form it has.

Truncated, bit-flipped and wrong-checksum files, shapes, types, labels and swapped sets of the torchvision layout are in
test_cifar_data.py; damaged files of ImageNet-style sets in test_imagenet_files.py.
"""

import io
import re

import numpy as np
import pytest
import torch
from imagenet_sets import make_imagenet
from PIL import Image
from training import QUIET, silent, tiny

from reslib import data
from reslib.data import cifar, imagenet, synthetic
from reslib.data.decode import BadImage, decode_rgb
from reslib.data.image_list import fingerprint
from reslib.data.sets import ImageSet, image_set, shared_images
from reslib.errors import UserError
from reslib.train import train

IMAGES, LABELS = synthetic.make("train", 40, 32)
TEST, TEST_LABELS = synthetic.make("test", 20, 32)


def floats(value=0.5) -> bytes:
    """An image of floats that calls itself a PNG; Pillow opens it by its contents."""
    out = io.BytesIO()
    Image.fromarray(np.full((32, 32), value, np.float32)).save(out, "TIFF")
    return out.getvalue()


def write_folders(root, odd=None):
    """CIFAR-10 as class folders, one more image in the first class if given."""
    for split, images in (("train", IMAGES), ("test", TEST)):
        for number, name in enumerate(cifar.CLASSES * 2):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number]).save(folder / f"{number:02}.png")
    if odd is not None:
        (root / "train" / cifar.CLASSES[0] / "odd.png").write_bytes(odd)
    return root


def refused(root, dataset="cifar10") -> str:
    """What training says of the data; nothing is recorded."""
    recipe = tiny(dataset=dataset, train_size=0, test_size=0)
    with pytest.raises(UserError) as caught:
        train(recipe, root / "runs", root, execution=QUIET, say=silent)
    assert not list(root.rglob("recipe.json")) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
def test_an_image_of_floats_or_of_no_numbers(tmp_path, value):
    text = refused(write_folders(tmp_path, floats(value)))
    assert "odd.png: not a readable image (its pixels are of mode F, allowed are 8 bits)" in text


def test_an_image_of_sixteen_bits(tmp_path):
    out = io.BytesIO()
    Image.fromarray(np.full((32, 32), 1000, np.uint16)).save(out, "PNG")
    assert "odd.png: not a readable image (its pixels are of mode I" in refused(write_folders(tmp_path, out.getvalue()))


@pytest.mark.parametrize("odd", [b"", b"\x89PNG\r\n", b"text"])
def test_an_image_that_is_none(tmp_path, odd):
    assert "odd.png: not a readable image" in refused(write_folders(tmp_path, odd))


def test_half_an_image_and_one_of_another_size(tmp_path):
    out = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(out, "PNG")
    assert "odd.png: not a readable image" in refused(write_folders(tmp_path / "a", out.getvalue()[:-200]))
    Image.new("RGB", (31, 32)).save(out := io.BytesIO(), "PNG")
    assert "images of several sizes" in refused(write_folders(tmp_path / "b", out.getvalue()))


def test_swapped_and_shared_class_folders(tmp_path):
    swapped = write_folders(tmp_path / "a")
    for number, image in enumerate(IMAGES[20:30]):
        Image.fromarray(image).save(swapped / "test" / cifar.CLASSES[0] / f"more{number}.png")
    assert "20 training and 30 test images: train and test look swapped" in refused(swapped)
    leaking = write_folders(tmp_path / "b")
    Image.fromarray(IMAGES[0]).save(leaking / "test" / cifar.CLASSES[1] / "01.png")
    assert "1 of 20 test images are also training images" in refused(leaking)


def test_arrays_of_no_numbers():
    images = np.zeros((2, 32, 32, 3), np.float32)
    images[1, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="here: images are float32, allowed is uint8"):
        image_set(images, [0, 1], "here", 10)
    with pytest.raises(UserError, match="here: labels are float64"):
        image_set(np.zeros_like(images, np.uint8), [0.0, np.nan], "here", 10)


def test_floats_that_are_no_numbers_in_an_imagenet_set():
    with pytest.raises(BadImage, match="a pixel is not a number"):
        decode_rgb(floats(np.nan))
    assert decode_rgb(floats(7.0)).getpixel((0, 0)) == (7, 7, 7)


def write_subset(root, train, test):
    for split, images in (("train", train), ("val", test)):
        for number, image in enumerate(images):
            folder = root / split / f"n0{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number}.png")
    return root


def test_leaks_and_swapped_sets_of_an_imagenet_subset(tmp_path):
    source = imagenet.load("imagenette", write_subset(tmp_path / "sound" / "imagenette", IMAGES[:8], TEST[:4]))
    assert shared_images(source.train, source.test) == 0
    write_subset(tmp_path / "a" / "imagenette", IMAGES[:8], np.concatenate([TEST[:3], IMAGES[5:6]]))
    assert "1 of 4 test images are also training images" in refused(tmp_path / "a", "imagenette")
    write_subset(tmp_path / "b" / "imagenette", IMAGES[:4], TEST[:8])
    assert "4 training and 8 test images: train and test look swapped" in refused(tmp_path / "b", "imagenette")


def test_a_leak_of_imagenet_itself(tmp_path):
    """A thousand classes on disk: copies of training images among the validation images, under other names."""
    root = make_imagenet(tmp_path / "imagenet")
    said = []
    sound = imagenet.load("imagenet", root, said.append)
    assert said == [] and sound.fingerprint == fingerprint(sound.train, sound.test)
    for number in range(0, 1000, 300):  # 4 of 1000: told, not refused
        victim = root / "val" / f"n{number:04}" / "0.JPEG"
        victim.unlink()  # a link to what all the others are
        victim.with_name("copy.JPEG").write_bytes((root / "train.image").read_bytes())
    imagenet.load("imagenet", root, said.append)
    (line,) = said
    assert re.fullmatch(rf"note: {root}: [1-4] of 512 test images are also training images", line)
    for number in range(100):
        (root / "val" / f"n{number:04}" / "1.JPEG").write_bytes((root / "train.image").read_bytes())
    assert "test images are also training images: a test error on them means nothing" in refused(root, "imagenet")


@pytest.mark.parametrize("name", ["synthetic", "synthetic-imagenet"])
def test_the_synthetic_sets_share_no_image(name):
    source = data.load(name)
    assert shared_images(source.train, source.test) == 0
    assert shared_images(source.train, ImageSet(source.train.images[:5], source.train.labels[:5])) == 5
    assert source.train.labels.unique().tolist() == torch.arange(10).tolist()
