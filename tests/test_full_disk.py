"""A disk that is full when a file is written: one clear line, nothing half-written, nothing finished is lost."""

import errno
import os
import tempfile

import numpy as np
import pandas as pd
import pytest
import torch
from fake_records import write_run
from imagenet_sets import make_set
from safetensors import SafetensorError
from training import QUIET, rows_of, silent, stop_after, tiny, weights_of

from reslib import compilation, errors, figures, files, notebooks, tables, tune
from reslib.cli import main
from reslib.data import array_cache, folder_sets
from reslib.errors import UserError
from reslib.figures.style import new_figure
from reslib.runs import Run
from reslib.train import Execution, Interrupted, train

FULL = "No space left on device"
EVERY_STEP = Execution("cpu", deterministic=True, checkpoint_seconds=0.0)


class HalfWritten:
    """A file of which the first write reaches the disk by half, as on one that is then full."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.file.write(bytes(data)[: len(data) // 2] if "b" in self.file.mode else data[: len(data) // 2])
        self.file.flush()
        raise OSError(errno.ENOSPC, FULL)


@pytest.fixture
def full(monkeypatch):
    """A function that makes the disk full for files of this name, and again not full with ""; whom it struck."""
    name, struck = [""], []

    def opened(path, *arguments, **options):
        file = open(path, *arguments, **options)
        if name[0] and os.path.basename(path).startswith(f".{name[0]}."):
            struck.append(name[0])
            return HalfWritten(file)
        return file

    def fill(with_name):
        name[0] = with_name
        return struck

    monkeypatch.setattr(files, "open", opened, raising=False)
    monkeypatch.setattr(errors, "_told", set())
    return fill


def leftovers(folder):
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(tiny(), folder, execution=QUIET, say=silent)
    return folder


@pytest.mark.parametrize("name", ["recipe.json", "checkpoint.pt", "metrics.csv", "weights.safetensors", "summary.json"])
def test_a_file_of_a_run(name, full, tmp_path, whole):
    recipe, run = tiny(), Run(tmp_path, tiny())
    if name in ("checkpoint.pt", "metrics.csv"):  # a whole one is there before
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
            stop_after(patch, 5)
            train(recipe, tmp_path, execution=EVERY_STEP, say=silent)
    before = {path.name: path.read_bytes() for path in run.path.glob("*")}
    struck = full(name)
    with pytest.raises(UserError) as caught:
        train(recipe, tmp_path, execution=EVERY_STEP, say=silent)
    assert str(caught.value) == f"cannot write {run.path / name}: {FULL}" and struck
    assert not leftovers(tmp_path) and not run.ended
    assert (run.path / name).exists() == (name in before)
    if name in before:
        assert (run.path / name).read_bytes() == before[name]
    if name != "recipe.json":
        saved = torch.load(run.checkpoint_file, weights_only=True)["state"]["iteration"]
        assert saved == (5 if name in before else recipe.iterations)
    full("")
    said = []
    train(recipe, tmp_path, execution=QUIET, say=said.append)
    assert any("continues at iteration" in line for line in said) == (name != "recipe.json")
    assert rows_of(tmp_path, recipe) == rows_of(whole, recipe)
    assert weights_of(tmp_path, recipe) == weights_of(whole, recipe)


def test_a_figure_and_a_table(full, tmp_path):
    figure, frame = new_figure(2, 1)[0], pd.DataFrame({"model": ["resnet20"], "n": [1]})
    there = [*figures.save_figure(figure, tmp_path / "figure"), *tables.save_table(frame, tmp_path / "table", "words")]
    before = [path.read_bytes() for path in there]
    for path in there:
        struck = full(path.name)
        with pytest.raises(UserError) as caught:
            figures.save_figure(figure, tmp_path / "figure")
            tables.save_table(frame * 2, tmp_path / "table", "other words")
        assert str(caught.value) == f"cannot write {path}: {FULL}" and path.name in struck
        assert path.read_bytes() == before[there.index(path)] and not leftovers(tmp_path)


@pytest.mark.parametrize("name", ["report.html", "results.csv"])
def test_the_report(name, full, tmp_path, capsys):
    write_run(tmp_path / "smoke" / "runs", tiny())
    assert main(["report", "--results", str(tmp_path)]) == 0
    before = (tmp_path / name).read_bytes()
    full(name)
    capsys.readouterr()
    assert main(["report", "--results", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"reslib: cannot write {tmp_path / name}: {FULL}\n"
    assert (tmp_path / name).read_bytes() == before and not leftovers(tmp_path)


def test_an_executed_notebook(tmp_path, monkeypatch, capsys):
    """papermill writes it again and again and cuts it off each time; what an earlier batch has finished stays."""
    iorw = pytest.importorskip("papermill.iorw")
    from test_notebook_runner import arguments, write

    source, out = tmp_path / "source", tmp_path / "smoke" / "notebooks"
    source.mkdir()
    monkeypatch.setenv("RESLIB_NOTEBOOKS", str(source))
    write(source, "a", 'preset: str = "auto"')
    out.mkdir(parents=True)
    (out / "a.ipynb").write_text("finished before")

    def write_half(self, text, path):
        with open(path, "w") as file:
            file.write(text[: len(text) // 2])
        raise OSError(errno.ENOSPC, FULL)

    monkeypatch.setattr(iorw.LocalHandler, "write", write_half)
    assert notebooks.run_notebooks(arguments(), tmp_path) == 1
    assert capsys.readouterr().err == f"FAILED a: cannot write {out / 'a.running.ipynb'}: {FULL}\n"
    assert [path.name for path in out.iterdir()] == ["a.ipynb"] and (out / "a.ipynb").read_text() == "finished before"


def test_what_a_batch_has_done(full, tmp_path, capsys):
    full(".batch.json")
    notebooks.Batch(tmp_path, [], {}).add("a")
    assert capsys.readouterr().err.endswith(f"cannot write {tmp_path / '.batch.json'}: {FULL}\n")
    assert not list(tmp_path.iterdir())


def test_the_caches_of_what_was_measured(full, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path))
    for name, remember, kept in (
        ("tune.json", lambda: tune._store({"precision": "fp32", "threads": 1, "layout": "contiguous"}), tune._cached),
        ("compile.json", lambda: compilation.remember("net", compilation.Trial(1, 2, 3, 4)), compilation.known_trials),
    ):
        full(name)
        remember()
        line = capsys.readouterr().err
        assert line.startswith("note: ") and line.endswith(f"cannot write {tmp_path / name}: {FULL}\n")
        assert line.count("\n") == 1 and {p.suffix for p in tmp_path.iterdir()} == {".lock"} and kept() == {}


def note(capsys) -> str:
    line = capsys.readouterr().err
    assert line.startswith("note: the decoded images are not kept for the next time: ") and line.count("\n") == 1
    return line


def test_the_cache_of_decoded_images(full, tmp_path, capsys):
    (tmp_path / "image.png").write_bytes(b"x")
    images = {"images": np.arange(5)}

    def cached():
        return array_cache.cached(tmp_path, "kind", [tmp_path / "image.png"], lambda: images)

    cached()
    (cache,) = (tmp_path / ".reslib-cache").iterdir()
    cache.unlink()
    full(cache.name)
    assert cached() is images and not list(cache.parent.iterdir())
    assert note(capsys).endswith(f"cannot write {cache}: {FULL}\n")


def test_the_cache_of_an_imagenet_set(full, tmp_path, monkeypatch, capsys):
    root = make_set(tmp_path / "set", train=1, val=1)

    def save_half(tensors, path, facts):
        with open(path, "wb") as file:
            file.write(b"half")
        raise SafetensorError(f"Error while serializing: I/O error: {FULL} (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(folder_sets, "save_file", save_half)
        first = folder_sets.load_folder_set(root)
    assert FULL in note(capsys) and not list((tmp_path / ".reslib-cache").iterdir())
    second, third = folder_sets.load_folder_set(root), folder_sets.load_folder_set(root)
    assert [s.report["cached"] for s in (first, second, third)] == [False, False, True]
    assert (third.train_images == first.train_images).all()


def test_without_any_folder_for_a_cache(tmp_path, monkeypatch, capsys):
    root = make_set(tmp_path / "set", train=1, val=1)
    for place in (".reslib-cache", "user", "temporary"):
        (tmp_path / place).write_text("no folder")
    monkeypatch.setattr(errors, "_told", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert len(folder_sets.load_folder_set(root).train_images) == 3
    assert f"{tmp_path / '.reslib-cache'} is in the way, not a folder" in note(capsys)


# --- A disk that is really full --------------------------------------------------------------------------------------


def fill(folder):
    with open(folder / "ballast", "wb", buffering=0) as file, pytest.raises(OSError, match=FULL):
        while True:
            file.write(b"x" * 4096)


def test_a_full_disk_at_the_checkpoint_keeps_the_last_one(mounted, whole):
    folder, recipe = mounted("size=300k"), tiny()
    run = Run(folder, recipe)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 2)  # before the first evaluation: the checkpoint is what is written next
        train(recipe, folder, execution=QUIET, say=silent)
    before = run.checkpoint_file.read_bytes()
    fill(folder)
    with pytest.raises(UserError) as caught:
        train(recipe, folder, execution=QUIET, say=silent)
    assert str(caught.value) == f"cannot write {run.checkpoint_file}: {FULL}"
    assert run.checkpoint_file.read_bytes() == before and not leftovers(folder)
    (folder / "ballast").unlink()
    train(recipe, folder, execution=QUIET, say=silent)
    assert rows_of(folder, recipe) == rows_of(whole, recipe) and weights_of(folder, recipe) == weights_of(whole, recipe)


def test_a_full_disk_beside_the_images(mounted, monkeypatch, capsys):
    monkeypatch.setattr(errors, "_told", set())
    folder = mounted("size=300k")
    root = make_set(folder / "set", train=1, val=1)
    fill(folder)
    images = folder_sets.load_folder_set(root).train_images
    assert FULL in note(capsys) and not leftovers(folder)
    (folder / "ballast").unlink()
    assert not folder_sets.load_folder_set(root).report["cached"]
    assert (folder_sets.load_folder_set(root).train_images == images).all()
