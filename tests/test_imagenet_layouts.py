"""Where ImageNet-style sets are found, which one is ImageNet, and what a broken layout says."""

import os

import numpy as np
import pytest
import torch
from imagenet_sets import encoded, make_imagenet, make_set, on_disk, picture, tiny, write_parquet

from reslib.cli import main
from reslib.data import choose_dataset, imagenet
from reslib.data.folders import index_folder
from reslib.data.imagenet import FolderBatches, load_folder_set
from reslib.data.places import BrokenSet, NotThere, OtherSet, find_root
from reslib.errors import UserError


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
    assert "differ in 1 class; only in train: n04" in error(root)
    (tmp_path / "flat" / "train").mkdir(parents=True)
    assert "holds no class folders" in error(tmp_path / "flat")
    parquet, (first, second) = tmp_path / "pq", (encoded(picture(i)) for i in range(2))
    write_parquet(parquet / "train.parquet", [(first, 0)], ["cat", "dog"])
    assert "no validation*.parquet" in error(parquet)
    write_parquet(parquet / "validation.parquet", [(second, -1)], ["cat", "dog"])
    assert "train.parquet': no image of class 'dog'" in error(parquet)
    write_parquet(parquet / "train.parquet", [(first, 0), (first, 1)], ["cat", "dog"])
    assert "validation.parquet': 1 of 1 images have no label" in error(parquet)
    write_parquet(parquet / "validation.parquet", [(second, 1)], ["cat", "dog"])
    assert "validation.parquet': no image of class 'cat'" in error(parquet)
    write_parquet(parquet / "validation.parquet", [(second, 2)], ["cat", "dog"])
    assert "labels reach 2 with 2 classes" in error(parquet)
    write_parquet(parquet / "validation.parquet", [(second, "dog")], ["cat", "dog"])
    assert "label is of type string" in error(parquet)
    assert not (parquet / ".reslib-cache").exists()  # said before anything is copied


def broken_sets(folder):
    """Folders called imagenet that are none: (folder, what must be said of it)."""
    made = {name: make_set(folder / name / "imagenet") for name in ("empty", "unlabelled", "no_val", "no_train")}
    (made["empty"] / "train" / "n04").mkdir()
    for file in list((made["unlabelled"] / "val").rglob("*.JPEG")):
        file.rename(made["unlabelled"] / "val" / file.name)
    for c in ("n01", "n02", "n03"):
        (made["unlabelled"] / "val" / c).rmdir()
    os.rename(made["no_val"] / "val", made["no_val"] / "elsewhere")
    os.rename(made["no_train"] / "train", made["no_train"] / "elsewhere")
    classes = make_set(folder / "on_top" / "elsewhere") / "train"
    os.rename(classes, folder / "on_top" / "imagenet")
    said = ["train/n04' holds no images", "9 images without labels", "no val/ folder", "has val but no train/ folder"]
    return zip(
        (folder / name for name in (*made, "on_top")), [*said, "has no train/ folder or train*.parquet"], strict=True
    )


def test_what_is_wrong_with_a_folder_called_imagenet_is_not_hidden_by_its_number_of_classes(tmp_path, capsys):
    for root, text in broken_sets(tmp_path):
        for find in (lambda r: find_root(r, "imagenet"), lambda r: choose_dataset("imagenet", r)):
            with pytest.raises(BrokenSet) as caught:
                find(root)
            assert text in str(caught.value) and "\n" not in str(caught.value)
        assert main(["data", "--data-root", str(root)]) == 1
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "DAMAGED" in line]
        assert line.startswith("imagenet: DAMAGED: ") and text in line
        make_set(root / "imagenette")  # a sound subset beside it serves
        assert choose_dataset("imagenet", root) == "imagenette"
    (tmp_path / "nothing" / "imagenet").mkdir(parents=True)
    assert choose_dataset("imagenet", tmp_path / "nothing", say=str) == "synthetic-imagenet"
    (tmp_path / "nothing" / "val").mkdir()  # the data root itself
    with pytest.raises(BrokenSet, match="nothing' has val but no train/ folder"):
        choose_dataset("imagenet", tmp_path / "nothing")


def test_half_a_devkit_is_named(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    root = make_set(tmp_path, val=1)
    for c in ("n01", "n02", "n03"):
        os.rename(root / "val" / c / f"{c}_0.JPEG", root / "val" / f"{c}.JPEG")
        (root / "val" / c).rmdir()
    devkit = root / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n3\n")
    with pytest.raises(UserError, match="ILSVRC2012_devkit_t12/data' lacks meta.mat"):
        index_folder(root)
    synsets = np.array([(1, "n02"), (2, "n03")], dtype=[("ILSVRC2012_ID", object), ("WNID", object)]).reshape(-1, 1)
    savemat(devkit / "meta.mat", {"synsets": synsets})
    with pytest.raises(UserError, match="data' cannot be read .KeyError"):
        index_folder(root)


def test_parquet_with_columns_of_other_types_or_damaged(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    image = encoded(picture(0))
    for number, (images, labels, said) in enumerate(
        (
            ([{"bytes": image}] * 2, [0.0, 1.5], "column label is of type double: allowed is whole numbers"),
            ([{"bytes": image}] * 2, ["0", "1"], "column label is of type string: allowed is whole numbers"),
            ([image] * 2, [0, 1], "column image is of type binary: allowed is a struct with bytes"),
            (None, None, "cannot be read"),
        )
    ):
        root = tmp_path / str(number)
        for split in ("train", "validation"):
            write_parquet(root / f"{split}-0.parquet", [(image, 0), (image, 1)])
        train = root / "train-0.parquet"
        if images:
            pq.write_table(pa.table({"image": images, "label": labels}), train)
        else:
            data = bytearray(train.read_bytes())
            data[4:60] = b"\xff" * 56  # the pages of data, not the description at the end
            train.write_bytes(data)
        with pytest.raises(UserError, match=said) as caught:
            index_folder(root)
        assert "train-0.parquet" in str(caught.value) and not list((root / ".reslib-cache").glob("*.npz"))
