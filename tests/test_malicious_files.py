"""A file of each kind that tries to run code when it is read: it is refused, and nothing runs.

The pickles of CIFAR-10 are in test_cifar_data.py, its archive in test_cifar_download.py, checkpoints in test_faults.py,
notebook parameters in test_fuzz_notebooks.py.
"""

import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from imagenet_sets import encoded, make_set, picture, write_parquet
from training import QUIET, silent, tiny

from reslib import tune
from reslib.data import cifar, data_root
from reslib.data.array_cache import cached
from reslib.data.folder_sets import load_folder_set
from reslib.data.folders import index_folder
from reslib.data.parquet import index_parquet
from reslib.errors import UserError
from reslib.given_weights import read_state
from reslib.models import build_model
from reslib.networks import load_network
from reslib.records import load_runs
from reslib.runs import Run, read_weights
from reslib.train import train


class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def proof(tmp_path):
    """A folder that exists as soon as a trap has gone off; after the test one is set off to show that it works."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()
    pickle.loads(pickle.dumps(Trap(path)))
    assert path.exists()


def torch_file(path, content):
    torch.save(content, path)
    return path


def test_weights_of_a_run(tmp_path, proof):
    run = Run(tmp_path, tiny(iterations=2))
    train(run.recipe, tmp_path, execution=QUIET, say=silent)
    for write in (
        lambda: run.weights_file.write_bytes(pickle.dumps(Trap(proof))),
        lambda: torch_file(run.weights_file, {"conv.weight": Trap(proof)}),
    ):
        write()
        with pytest.raises(UserError, match="weights.safetensors cannot be read as safetensors"):
            read_weights(run.weights_file)
        with pytest.raises(UserError, match="cannot be read as safetensors"):
            load_network(run.path)


@pytest.mark.parametrize("name", ["resnet18.pth", "resnet18.pt", "resnet18.safetensors"])
def test_given_weights(tmp_path, proof, name):
    for content in ({"fc.weight": Trap(proof)}, Trap(proof), [Trap(proof)]):
        with pytest.raises(UserError, match=name):
            read_state(torch_file(tmp_path / name, content))
        (tmp_path / name).write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=name):
            read_state(tmp_path / name)


def test_the_cache_of_decoded_images(tmp_path, proof):
    image = tmp_path / "image.png"
    image.write_bytes(b"x")
    wanted = {"images": np.zeros(3, np.uint8)}
    cached(tmp_path, "kind", [image], lambda: wanted)
    (cache,) = (tmp_path / ".reslib-cache").glob("*.npz")
    trap = np.empty(1, object)
    trap[0] = Trap(proof)
    for write in (
        lambda file: np.savez(file, images=trap),
        lambda file: file.write(pickle.dumps(Trap(proof))),
        lambda file: zipfile.ZipFile(file, "w").writestr("images.npy", pickle.dumps(Trap(proof))),
    ):
        with open(cache, "wb") as file:
            write(file)
        assert np.array_equal(cached(tmp_path, "kind", [image], lambda: wanted)["images"], wanted["images"])


def damages(proof, file):
    """Writers of a file that is a trap, or no longer what it was."""
    whole, trap = file.read_bytes(), np.empty(1, object)
    trap[0] = Trap(proof)
    return (
        lambda: file.write_bytes(pickle.dumps(Trap(proof))),
        lambda: np.savez(file.open("wb"), names=trap, labels=trap, offsets=trap, checksums=trap, images=trap),
        lambda: zipfile.ZipFile(file, "w").writestr("labels.npy", pickle.dumps(Trap(proof))),
        lambda: torch_file(file, {"labels": Trap(proof)}),
        lambda: file.write_bytes(whole[: len(whole) // 2]),
        lambda: file.write_bytes(b""),
        lambda: file.write_bytes(whole[:-9] + bytes(b ^ 1 for b in whole[-9:])),
    )


def test_the_cache_of_an_imagenet_set(tmp_path, proof):
    root = make_set(tmp_path / "set", train=1, val=1)
    first = load_folder_set(root)
    for damage in damages(proof, Path(first.report["cache"])):
        damage()
        again = load_folder_set(root)
        assert not again.report["cached"] and (again.test_images == first.test_images).all()
        assert load_folder_set(root).report["cached"]


@pytest.mark.parametrize("suffix", [".npz", ".bin"])
def test_what_was_unpacked_of_parquet(tmp_path, proof, suffix):
    images = [(encoded(picture(i)), i % 2) for i in range(4)]
    for split in ("train", "validation"):
        write_parquet(tmp_path / f"{split}-0.parquet", images)
    first, _ = index_parquet(tmp_path)
    for damage in damages(proof, Path(first.blob).with_suffix(suffix)):
        damage()
        again, _ = index_parquet(tmp_path)
        assert [again.read(i) for i in range(4)] == [data for data, _ in images]
        assert again.labels.tolist() == [0, 1, 0, 1] and again.classes == first.classes


def test_an_unpacked_image_that_changes_later_is_not_shown(tmp_path):
    images = [(encoded(picture(i)), i % 2) for i in range(2)]
    for split in ("train", "validation"):
        write_parquet(tmp_path / f"{split}-0.parquet", images)
    train_images, _ = index_parquet(tmp_path)
    blob = Path(train_images.blob)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    assert train_images.read(0) == images[0][0] and train_images.read(1) == b""


def test_meta_bin_of_imagenet(tmp_path, proof):
    for folder in ("train/n01", "val"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "train/n01/a.JPEG").write_bytes(b"x")
    (tmp_path / "val/a.JPEG").write_bytes(b"x")
    for content in (({}, Trap(proof)), Trap(proof)):
        torch_file(tmp_path / "meta.bin", content)
        with pytest.raises(UserError, match="meta.bin"):
            index_folder(tmp_path)
    (tmp_path / "meta.bin").write_bytes(pickle.dumps(Trap(proof)))
    with pytest.raises(UserError, match="meta.bin"):
        index_folder(tmp_path)


def test_parquet(tmp_path, proof):
    trap = pickle.dumps(Trap(proof))
    python = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": trap}
    schema = pa.schema(
        [pa.field("img", pa.binary(), metadata=python), pa.field("label", pa.int64(), metadata=python)],
        metadata={b"pandas": trap, b"huggingface": trap},
    )
    for split in ("train", "test"):
        table = pa.table({"img": [trap], "label": [3]}, schema=schema)
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    with pytest.raises(UserError, match="row 0: not a readable image"):
        cifar.load(*cifar.find(tmp_path))


def test_an_image_that_is_a_pickle(tmp_path, proof):
    for split in ("train", "test"):
        for name in cifar.CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.png").write_bytes(pickle.dumps(Trap(proof)))
    with pytest.raises(UserError, match="0.png: not a readable image"):
        cifar.load(*cifar.find(tmp_path))


def test_records_are_text(tmp_path, proof):
    run = Run(tmp_path, tiny())
    train(run.recipe, tmp_path, execution=QUIET, say=silent)
    for file in (run.recipe_file, run.summary_file):
        whole, said = file.read_bytes(), []
        file.write_bytes(pickle.dumps(Trap(proof)))
        assert load_runs(tmp_path, said.append).empty and file.name in said[0]
        file.write_bytes(whole)
    # a recipe from elsewhere names a teacher by a path out of the folder
    recipe = json.loads(run.recipe_file.read_text())
    run.recipe_file.write_text(json.dumps(recipe | {"teacher": "../../elsewhere"}))
    said = []
    assert load_runs(tmp_path, said.append).empty and "not a path" in said[0]


def test_a_factory_that_makes_no_network_is_not_taken(tmp_path, proof):
    """Importing a network of one's own is running code that is on the path already; other callables are refused."""
    pickled = tmp_path / "pickle"
    pickled.write_bytes(pickle.dumps(Trap(proof)))
    for model, options in (
        ("os:mkdir", f"path={proof}"),
        ("subprocess:getoutput", f"cmd=mkdir {proof}"),
        ("own_models:os.mkdir", f"path={proof}"),
        ("pandas:read_pickle", f"filepath_or_buffer={pickled}"),
        ("torch:load", f"f={pickled},weights_only=false"),
        ("torch.hub:load", "repo_or_dir=some/where,model=net,trust_repo=true"),
        ("numpy:load", f"file={pickled},allow_pickle=true"),
    ):
        with pytest.raises(UserError, match=model):
            train(tiny(model=model, options=options), tmp_path, execution=QUIET, say=silent)
        assert not proof.exists()
    assert build_model("torchvision.models:resnet18", 10).fc.out_features == 10  # says that it makes a network


def test_what_was_measured_of_this_machine(tmp_path, proof, monkeypatch):
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path))
    tune.cache_file().write_bytes(pickle.dumps(Trap(proof)))
    assert tune._cached() == {}


def test_a_data_root_that_is_no_path():
    for text in ("a\0b", "~nobody-of-this-name/data"):
        with pytest.raises(UserError, match="data root"):
            data_root(text)
