"""ImageNet-style data: views against Pillow and torchvision, order against a slow loop, layouts, and broken files."""

import io
import os
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as TF
from training import QUIET

from reslib.data import choose_dataset, imagenet, streaming, synthetic
from reslib.data.decode import BadImage, decode_rgb, resample, resampling_matrix, resized_crop, scaled_size
from reslib.data.draws import centre_scale, draw, first_images, permutation, split_indices
from reslib.data.folders import index_folder
from reslib.data.imagenet import FolderBatches, load_folder_set
from reslib.data.places import NotThere, OtherSet, find_root
from reslib.errors import UserError
from reslib.recipe import Recipe
from reslib.train import train

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
    """An image in each of 1000 classes of both splits."""
    root.mkdir(parents=True)
    (root / "image").write_bytes(encoded(picture(0), "JPEG"))
    for split in ("train", "val"):
        for c in range(1000):
            (root / split / f"n{c:04}").mkdir(parents=True)
            os.link(root / "image", root / split / f"n{c:04}" / "0.JPEG")
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


# --- Randomness ------------------------------------------------------------------------------------------------------


def test_order_is_concatenated_permutations_wrapping_around():
    source = in_memory()
    batches = FolderBatches(tiny(), source, "cpu")
    expected = np.concatenate([permutation(5, epoch, 14) for epoch in range(4)])
    assert all(sorted(expected[14 * e : 14 * e + 14]) == list(range(14)) for e in range(4))
    assert not (expected[:14] == expected[14:28]).all()
    assert (batches.order(np.arange(50)) == expected[:50]).all()
    labels = torch.cat([y for _, y in batches.stream(2, 9)])
    assert (labels == source.train.labels[expected[8:36]]).all()


def test_draw_is_a_pure_function_of_seed_and_position():
    recipe = tiny()
    whole = draw(recipe, np.arange(1000))
    part = draw(recipe, np.array([7, 500, 3]))
    assert all((part[name] == whole[name][[7, 500, 3]]).all() for name in whole)
    other = draw(recipe.replace(seed=6), np.arange(1000))
    assert all((other[name] != whole[name]).any() for name in whole)


def test_draw_has_the_stated_distributions():
    views = draw(tiny(), np.arange(20_000))
    counts = torch.bincount(views["scale"])
    assert views["scale"].min() == 26 and views["scale"].max() == 60
    assert counts[26:].min() > 400 and counts[26:].max() < 800  # 571 expected
    for name in ("top", "left"):
        assert abs(views[name].mean() - 0.5) < 0.01 and 0 <= views[name].min() and views[name].max() < 1
    assert abs(views["flip"].float().mean() - 0.5) < 0.015
    assert views["alpha"].mean(0).abs().max() < 0.003 and (views["alpha"].std(0) - 0.1).abs().max() < 0.003
    columns = torch.stack(
        [views[n].double() for n in ("scale", "top", "left", "flip")] + list(views["alpha"].T.double())
    )
    assert (torch.corrcoef(columns) - torch.eye(7)).abs().max() < 0.03


def test_other_augmentations_and_batch_crops():
    fixed = draw(tiny(augmentation="crop-flip"), np.arange(64))
    assert (fixed["scale"] == 26).all() and (fixed["alpha"] == 0).all() and fixed["flip"].any()
    none = draw(tiny(augmentation="none"), np.arange(64))
    assert (none["scale"] == centre_scale(24)).all() and not none["flip"].any()
    shared = draw(tiny(crops="batch"), np.arange(8))
    assert (shared["top"][:4] == shared["top"][0]).all() and shared["top"][4] != shared["top"][0]


def test_splits_are_disjoint_and_mixed():
    train, val = split_indices(100, 20, 30)
    assert len(train) == 30 and len(val) == 20 and not set(train) & set(val)
    assert val.max() > 50 and val.min() < 50
    assert len(split_indices(100, 20, 0)[0]) == 80
    assert first_images(100, 0).tolist() == list(range(100)) and len(set(first_images(100, 10))) == 10
    with pytest.raises(UserError, match="val_size 90"):
        split_indices(100, 90, 20)


# --- Views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shorter", [26, 33, 40, 77, 150])
def test_resampling_matrices_match_pillow(shorter):
    image = picture(0, (60, 40))
    width, height = scaled_size(60, 40, shorter)
    expected = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(float)
    zero = torch.tensor([0])
    rows = resampling_matrix(40, torch.tensor([height]), zero, height)
    columns = resampling_matrix(60, torch.tensor([width]), zero, width)
    ours = resample(torch.from_numpy(np.array(image))[None], rows, columns)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - expected).max() <= 1.01  # Pillow rounds to whole levels twice


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (200, 150)])
def test_resized_crop_equals_resizing_everything(size):
    image = picture(1, size)
    generator = np.random.default_rng(0)
    for shorter in (24, 31, 40, 90):
        width, height = scaled_size(*size, shorter)
        top, left = int(generator.integers(height - 23)), int(generator.integers(width - 23))
        whole = TF.resize(image, shorter)  # torchvision's rule for the longer side, Pillow's filter
        assert whole.size == (width, height)
        expected = np.asarray(TF.crop(whole, top, left, 24, 24)).astype(int)
        difference = np.abs(resized_crop(image, shorter, top, left, 24).astype(int) - expected)
        assert difference.max() <= 2 and difference.mean() < 0.3  # exact halves round either way


def reference_view(image: Image.Image, views: dict, row: int, batches: FolderBatches) -> torch.Tensor:
    """One training view, step by step, in torchvision."""
    crop = batches.recipe.crop_size
    resized = TF.resize(image, int(views["scale"][row]))
    top = int(views["top"][row] * (resized.height - crop + 1))
    left = int(views["left"][row] * (resized.width - crop + 1))
    view = TF.crop(resized, top, left, crop, crop)
    if views["flip"][row]:
        view = TF.hflip(view)
    offset = sum(views["alpha"][row, k] * batches.components[k] for k in range(3))
    return TF.to_tensor(view) + (offset - batches.mean)[:, None, None]


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_training_views_match_torchvision(kind, tmp_path):
    source = in_memory() if kind == "memory" else on_disk(make_set(tmp_path))
    batches = FolderBatches(tiny(), source, "cpu", workers=0)
    for iteration, (x, y) in enumerate(batches.stream(0, 6)):
        assert x.is_contiguous(memory_format=torch.channels_last) and x.dtype == torch.float32
        positions = np.arange(4 * iteration, 4 * iteration + 4)
        views = draw(batches.recipe, positions)
        for row, i in enumerate(batches.order(positions)):
            if kind == "memory":
                image = Image.fromarray(source.train.images[i].numpy())
            else:
                image = Image.open(tmp_path / source.train.name(i))
            difference = (x[row] - reference_view(image, views, row, batches)).abs() * 255
            assert difference.max() < 2.1 and difference.mean() < 0.5  # grey levels; Pillow rounds in both passes
            assert y[row] == source.train.labels[i]


def test_memory_and_disk_give_the_same_views(tmp_path):
    """Lossless square images: the two ways differ by rounding to whole levels only."""
    root = make_set(tmp_path / "set", sizes=[(44, 44)])
    data = load_folder_set(root)
    memory = SimpleNamespace(
        train=SimpleNamespace(images=data.train_images, labels=data.train_labels),
        test=SimpleNamespace(images=data.test_images, labels=data.test_labels),
    )
    first, second = FolderBatches(tiny(), memory, "cpu"), FolderBatches(tiny(), on_disk(root), "cpu", workers=0)
    second.mean, second.components = first.mean, first.components
    pairs = [*zip(first.stream(0, 5), second.stream(0, 5), strict=True)]
    pairs += zip(first.eval_batches("test", 4), second.eval_batches("test", 4), strict=True)
    for (x, y), (other_x, other_y) in pairs:
        assert (x - other_x).abs().max() < 2.1 / 255 and (y == other_y).all()


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_ranks_share_each_batch_and_resuming_changes_nothing(kind, tmp_path):
    source = in_memory() if kind == "memory" else on_disk(make_set(tmp_path))
    batches = FolderBatches(tiny(), source, "cpu", workers=0)
    whole = [x for x, _ in batches.stream(0, 5)]
    shares = [[x for x, _ in FolderBatches(tiny(), source, "cpu", workers=0).stream(3, 5, r, 2)] for r in range(2)]
    for i in range(2):
        torch.testing.assert_close(whole[3 + i], torch.cat([shares[0][i], shares[1][i]]), rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="batch_size 4 cannot be shared by 3"):
        next(batches.stream(0, 1, 0, 3))


def test_worker_processes_change_nothing(tmp_path):
    source = on_disk(make_set(tmp_path))
    alone, helped = (FolderBatches(tiny(), source, "cpu", workers=w) for w in (0, 2))
    assert (alone.reader.ahead, helped.reader.ahead) == (0, 8)
    for (x, y), (other_x, other_y) in zip(alone.stream(0, 7), helped.stream(0, 7), strict=True):
        assert (x == other_x).all() and (y == other_y).all()


def test_workers_are_shared_out_on_each_machine(monkeypatch):
    monkeypatch.setattr(streaming, "cpu_count", lambda: 32)
    assert streaming.worker_count(None, 1) == 16 and streaming.worker_count(3, 8) == 3
    assert streaming.worker_count(None, 8) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # two machines of four
    assert streaming.worker_count(None, 8) == 8


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_takes_each_image_once_in_the_centre(kind, world, tmp_path):
    source = in_memory() if kind == "memory" else on_disk(make_set(tmp_path))
    batches = FolderBatches(tiny(), source, "cpu", workers=0)
    seen = [(x, y) for rank in range(world) for x, y in batches.eval_batches("test", 2, rank, world)]
    x, y = torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen])
    order = np.concatenate([np.arange(len(source.test.labels))[rank::world] for rank in range(world)])
    assert len(y) == len(source.test.labels) and (y.numpy() == np.asarray(source.test.labels)[order]).all()
    for row, i in enumerate(order):
        if kind == "memory":
            image = Image.fromarray(source.test.images[i].numpy())
        else:
            image = Image.open(tmp_path / source.test.name(i))
        expected = TF.to_tensor(TF.center_crop(TF.resize(image, 27), 24)) - batches.mean[:, None, None]
        assert (x[row] - expected).abs().max() < 1.6 / 255


def test_colour_statistics_match_numpy_and_the_components_are_principal():
    source = in_memory()
    batches = FolderBatches(tiny(preprocessing="channel-std", val_size=4), source, "cpu")
    pixels = source.train.images[batches.sets["train"]].reshape(-1, 3).numpy() / 255
    np.testing.assert_allclose(batches.mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(batches.std, pixels.std(0), atol=1e-6)
    covariance = np.cov(pixels.T, bias=True)
    for row in batches.components.double().numpy():
        value = np.linalg.norm(row)  # row = eigenvalue * unit eigenvector
        np.testing.assert_allclose(covariance @ row, value * row, atol=1e-6)
    x = torch.cat([x for x, _ in batches.eval_batches("train")])
    assert batches.has("val") and len(batches) == 10 and x.std() > 0.5


# --- Files and layouts -----------------------------------------------------------------------------------------------


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


def test_imagenette_is_found_and_loaded(tmp_path):
    make_set(tmp_path / "imagenette-112", sizes=[(44, 44)])
    source = imagenet.load("imagenette", tmp_path)
    assert len(source.train) == 15 and source.classes == ["n01", "n02", "n03"] and not source.synthetic
    with pytest.raises(NotThere, match="no imagenet under"):
        find_root(tmp_path, "imagenet")
    make_imagenet(tmp_path / "imagenet")
    source = imagenet.load("imagenet", tmp_path)
    assert len(source.train) == 1000 and len(source.fingerprint) == 16
    x, y = next(imagenet.batches_for(tiny(), source, "cpu").stream(0, 1))
    assert x.shape == (4, 3, 24, 24) and len(y) == 4


def test_a_subset_is_never_taken_for_imagenet(tmp_path):
    """Whatever its folder is called, and wherever it lies; nor is CIFAR-10, in the forms that look alike."""
    subset, whole = make_set(tmp_path / "here" / "imagenet"), make_imagenet(tmp_path / "whole")
    (subset / "train" / ".ipynb_checkpoints").mkdir()
    said = []
    assert find_root(subset, "imagenette") == subset
    assert choose_dataset("imagenet", subset, say=said.append) == "imagenette"
    assert said == [f"note: no ImageNet under {subset}: a subset of 3 classes stands in, {subset}"]
    assert len(imagenet.load("imagenette", subset).classes) == 3
    for root in (subset, tmp_path / "here"):
        with pytest.raises(OtherSet, match="has 3 classes in train, ImageNet has 1000: a subset is data set 'imagene"):
            find_root(root, "imagenet")
    with pytest.raises(OtherSet, match="has 3 classes"):  # not synthetic images in the place of somebody's ImageNet
        choose_dataset("imagenet", tmp_path / "here")
    assert find_root(whole, "imagenet") == whole and choose_dataset("imagenet", whole) == "imagenet"
    with pytest.raises(OtherSet, match="has 1000 classes in train: that is data set 'imagenet'"):
        find_root(whole, "imagenette")
    (tmp_path / "cifar" / "train" / "airplane").mkdir(parents=True)
    assert choose_dataset("imagenet", tmp_path / "cifar", say=str) == "synthetic-imagenet"


def test_parquet_is_told_apart_by_its_columns_and_classes(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    row = [(encoded(picture(0)), 0)]
    write_parquet(tmp_path / "named" / "data" / "train-0.parquet", row, [f"n{i:04}" for i in range(1000)])
    assert find_root(tmp_path / "named", "imagenet") == tmp_path / "named"
    write_parquet(tmp_path / "counted" / "train-0.parquet", row)
    write_parquet(tmp_path / "counted" / "train-1.parquet", [(row[0][0], 999)])
    assert find_root(tmp_path / "counted", "imagenet") == tmp_path / "counted"
    write_parquet(tmp_path / "few" / "train-0.parquet", row)
    assert choose_dataset("imagenet", tmp_path / "few") == "imagenette"
    (tmp_path / "cifar").mkdir()
    pq.write_table(pa.table({"img": [b""], "label": [0]}), tmp_path / "cifar" / "train.parquet")
    assert choose_dataset("imagenet", tmp_path / "cifar", say=str) == "synthetic-imagenet"
    (tmp_path / "cifar" / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="Parquet files like .*train.parquet' cannot be read"):
        choose_dataset("imagenet", tmp_path / "cifar")


def test_a_set_too_large_for_the_memory_is_refused(tmp_path, monkeypatch):
    root = make_set(tmp_path / "set")
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    with pytest.raises(UserError, match="24 images of 40 pixels take 0.0 GiB of memory, here are 0.0: only ImageNet"):
        load_folder_set(root)


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


def test_devkit_layout(tmp_path):
    """Validation images in one folder, labels in the devkit, whose numbers are not the alphabetical ones."""
    savemat = pytest.importorskip("scipy.io").savemat
    root = make_set(tmp_path, val=1)
    flat = [(root / "val" / c / f"{c}_0.JPEG").read_bytes() for c in ("n01", "n02", "n03")]
    for c in ("n01", "n02", "n03"):
        (root / "val" / c / f"{c}_0.JPEG").unlink()
        (root / "val" / c).rmdir()
    for i, data in enumerate(flat):
        (root / "val" / f"ILSVRC2012_val_0000000{i + 1}.JPEG").write_bytes(data)
    with pytest.raises(UserError, match="3 images without labels"):
        index_folder(root)
    torch.save(({"n01": ("a",), "n02": ("b",), "n03": ("c",)}, ["n03", "n01", "n02"]), root / "meta.bin")
    assert index_folder(root)[1].labels.tolist() == [2, 0, 1]
    devkit = root / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    synsets = np.array(
        [(1, "n02"), (2, "n03"), (3, "n01")], dtype=[("ILSVRC2012_ID", object), ("WNID", object)]
    ).reshape(-1, 1)
    savemat(devkit / "meta.mat", {"synsets": synsets})
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n3\n")
    assert index_folder(root)[1].labels.tolist() == [2, 1, 0]
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n")
    with pytest.raises(UserError, match="3 images but the devkit has 2 labels"):
        index_folder(root)


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


def test_parquet_gives_what_the_folders_give(tmp_path):
    folders = on_disk(make_set(tmp_path / "folders"))
    names = ["n01", "n02", "n03"]
    for split, images, shards in (("train", folders.train, 2), ("validation", folders.test, 1)):
        rows = [(images.read(i), int(images.labels[i])) for i in range(len(images))]
        cut = -(-len(rows) // shards)
        for s in range(shards):
            file = tmp_path / "parquet" / "data" / f"{split}-0000{s}-of-0000{shards}.parquet"
            write_parquet(file, rows[s * cut : s * cut + cut], names)
    packed = on_disk(tmp_path / "parquet")
    assert packed.train.classes == ("n01", "n02", "n03")
    first, second = (FolderBatches(tiny(), s, "cpu", workers=0) for s in (folders, packed))
    for (x, y), (other_x, other_y) in zip(first.stream(0, 4), second.stream(0, 4), strict=True):
        assert (x == other_x).all() and (y == other_y).all()
    assert load_folder_set(tmp_path / "parquet").train_images.shape == (15, 40, 40, 3)


def test_broken_layouts_are_one_clear_line(tmp_path):
    def error(root):
        with pytest.raises(UserError) as caught:
            index_folder(root)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no images in" in error(tmp_path / "missing")
    root = make_set(tmp_path / "no_val", val=1)
    os.rename(root / "val", root / "elsewhere")
    assert "no val/ folder" in error(root)
    root = make_set(tmp_path / "empty_class")
    (root / "train" / "n04").mkdir()
    assert "n04' holds no images" in error(root)
    (root / "train" / "n04" / "a.JPEG").write_bytes(encoded(picture(0)))
    assert "differ in 1 classes; only in train: n04" in error(root)
    (tmp_path / "flat" / "train").mkdir(parents=True)
    assert "holds no class folders" in error(tmp_path / "flat")
    write_parquet(tmp_path / "pq" / "train.parquet", [(encoded(picture(0)), 0)])
    assert "no validation*.parquet" in error(tmp_path / "pq")
    write_parquet(tmp_path / "pq" / "validation.parquet", [(encoded(picture(0)), -1)])
    assert "1 of 1 images have no label" in error(tmp_path / "pq")
