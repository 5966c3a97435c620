"""The plain loop of scripts/plain_training.py: it resumes to the same numbers, and stands beside reslib's runs."""

import hashlib
import importlib.util
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cifar_sets import made_up

from reslib import independent, results_index, verify
from reslib.errors import UserError
from reslib.models import build_model
from reslib.record_checks import Findings

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("plain_training", SCRIPTS / "plain_training.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("plain_evaluation", None)


@pytest.fixture
def root(tmp_path):
    """Files as CIFAR-10's own, of noise."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        images, labels = made_up(40, number)
        content = {b"data": images.transpose(0, 3, 1, 2).reshape(40, -1), b"labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    return folder.parent


def test_it_trains_and_goes_on_where_it_stopped(plain, root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plain, "BATCH", 16)
    monkeypatch.setattr(plain, "EVERY", 4)
    whole, cut = tmp_path / "resnet8-12-s1.json", tmp_path / "cut" / "resnet8-12-s1.json"
    cut.parent.mkdir()
    plain.main(root, whole, "8", "12", "1")

    save = torch.save

    def stopped(state, path):
        save(state, path)
        if state["step"] == 8:
            Path(path).replace(cut.with_suffix(".pt"))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", stopped)
        plain.main(root, cut, "8", "12", "1")
    plain.main(root, cut, "8", "12", "1")
    run, other = (independent.read(path) for path in (whole, cut))
    assert run["curve"] == other["curve"] and [row[0] for row in run["curve"]] == [4, 8, 12]
    assert "12/12 train" in capsys.readouterr().out
    plain.main(root, tmp_path / "plain8-4-s0.json", "8", "4", "0", "0")
    assert independent.read(tmp_path / "plain8-4-s0.json")["model"] == "plain8"
    assert run["script_sha256"] == hashlib.sha256((SCRIPTS / "plain_training.py").read_bytes()).hexdigest()
    assert run["device"] == "processor" and run["data_sha256"] == other["data_sha256"]


@pytest.mark.gpu
def test_it_trains_on_a_gpu_with_the_same_crops(plain, root, tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "BATCH", 16)
    monkeypatch.setattr(plain, "EVERY", 1)
    for device in ("cpu", "cuda"):
        (tmp_path / device).mkdir()
        plain.main(root, tmp_path / device / "resnet8-4-s1.json", "8", "4", "1", "1", device)
    run, other = (independent.read(tmp_path / device / "resnet8-4-s1.json") for device in ("cuda", "cpu"))
    assert run["device"] == torch.cuda.get_device_name()
    assert run["curve"][0][1] == other["curve"][0][1]  # the first batch, before anything is learned


@pytest.mark.parametrize(("depth", "residual"), [(20, True), (20, False), (56, True)])
def test_its_network_is_reslibs(plain, depth, residual):
    """Written on its own, it has the parameters and, with the same weights, the output."""
    name = f"{'resnet' if residual else 'plain'}{depth}"
    mine, ours = plain.network(depth, residual).eval(), build_model(name, 10).eval()
    with torch.no_grad():
        mine_parameters, our_parameters = list(mine.parameters()), dict(ours.named_parameters())
        assert sum(p.numel() for p in mine_parameters) == sum(p.numel() for p in our_parameters.values())
        taken = iter(our_parameters.values())
        stem, norm = mine[0], mine[1]
        for p in (stem.weight, norm.weight, norm.bias):
            p.copy_(next(taken))
        for unit in (m for m in mine if isinstance(m, plain.Unit)):
            for p in (unit.a.weight, unit.p.weight, unit.p.bias, unit.b.weight, unit.q.weight, unit.q.bias):
                p.copy_(next(taken))
        mine[-1].weight.copy_(next(taken))
        mine[-1].bias.copy_(next(taken))
        x = torch.randn(3, 3, 32, 32)
        torch.testing.assert_close(mine(x), ours(x), rtol=1e-4, atol=1e-4)


def test_its_crops_are_windows_of_padded_images(plain):
    images = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    padded = np.pad(images, ((0, 0), (0, 0), (4, 4), (4, 4)))
    out = plain.crops(images, [3] * 40, np.random.default_rng(1))
    windows = [padded[3, :, t : t + 32, left : left + 32] for t in range(9) for left in range(9)]
    windows += [w[:, :, ::-1] for w in windows]
    found = {next(i for i, w in enumerate(windows) if np.array_equal(w, crop)) for crop in out}
    assert len(found) > 20 and any(i >= 81 for i in found) and any(i < 81 for i in found)


def written(folder, seed, error, **more):
    run = {"depth": 20, "residual": True, "seed": seed, "iterations": 64, "train": 0.2, "test": error}
    run |= {"torch": "2.14", "threads": 1, "finished": "2026-11-27"} | more
    run |= {"curve": [[32, 0.5, 0.5], [64, 0.2, error]]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"resnet20-64-s{seed}.json").write_text(json.dumps(run))


def test_runs_stand_beside_reslibs_of_the_same_length(tmp_path, monkeypatch):
    import pandas as pd

    folder = tmp_path / independent.FOLDER
    written(folder, 0, 0.30)
    written(folder, 1, 0.32)
    columns = {"model": "resnet20", "iterations": 64, "dataset": "cifar10", "status": "finished", "train_error": 0.2}
    ours = pd.DataFrame([columns | {"test_error": e} for e in (0.31, 0.35)])
    changes = ({"iterations": 640}, {"dataset": "synthetic"}, {"status": "diverged"})
    other = pd.concat([ours.assign(test_error=0.9, **change) for change in changes])
    monkeypatch.setattr(independent, "folders_of_presets", lambda results: [tmp_path])
    monkeypatch.setattr(
        independent.artefacts, "study_frames", lambda *a, **k: (pd.concat([ours, other]), None, "cifar10")
    )
    text = independent.section(tmp_path)
    row = next(line for line in text.splitlines() if line.startswith("| resnet20 | 64 | test"))
    assert row.startswith("| resnet20 | 64 | test | 31.00 ± 1.41 (n = 2) | 33.00 ± 2.83 (n = 2) | -2.00 | -")
    row = next(line for line in text.splitlines() if line.startswith("| resnet20 | 64 | training"))
    assert "| 20.00 ± 0.00 (n = 2) |" in row  # of the training errors, not of the test errors
    assert "`python scripts/plain_training.py DATA resnet20-64-s1.json 20 64 1 1`" in text
    assert "| torch 2.14, 1 thread, 2026-11-27 |" in text
    written(folder, 1, 0.32, device="NVIDIA H200")
    text = independent.section(tmp_path)
    assert "| torch 2.14, NVIDIA H200, 2026-11-27 |" in text and "resnet20-64-s1.json 20 64 1 1 cuda`" in text
    (folder / "resnet20-64-s1.json").unlink()
    assert "| 30.00 (n = 1) | 33.00 ± 2.83 (n = 2) | -3.00 | single runs |" in independent.section(tmp_path)
    written(folder, 1, 0.32)
    monkeypatch.setattr(independent, "folders_of_presets", lambda results: [])
    assert "| 31.00 ± 1.41 (n = 2) | none |  |  |" in independent.section(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"test": 0.2}, "do not agree"),
        ({"seed": 7}, "do not agree"),
        ({"threads": None, "curve": None}, "not a run of plain_training.py"),
        ({"curve": []}, "not a run of plain_training.py"),
        ({"curve": [[64, 0.2, 3.1]], "test": 3.1}, "do not agree"),
    ],
)
def test_a_damaged_run_is_named_by_verify(tmp_path, change, why):
    folder = tmp_path / independent.FOLDER
    written(folder, 0, 0.31)
    path = folder / "resnet20-64-s0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=why):
        independent.read(path)
    findings = Findings()
    verify.check_independent(tmp_path, findings)
    assert findings.files == 1 and why in findings.problems[0]
    assert why in independent.section(tmp_path)


def test_weights_tested_by_other_code_stand_beside_the_record(root, tmp_path, plain, capsys, monkeypatch):
    from plain_evaluation import main

    from reslib.data.download import TEST_FILES, TRAIN_FILES
    from reslib.job import Execution
    from reslib.presets import preset_of
    from reslib.recipe import Recipe
    from reslib.runs import Run
    from reslib.train import train

    for files in (TRAIN_FILES, TEST_FILES):
        for name in files:
            raw = (root / "cifar-10-batches-py" / name).read_bytes()
            monkeypatch.setitem(files, name, hashlib.md5(raw).hexdigest())
    recipe = Recipe(model="resnet8", iterations=2, batch_size=8, precision="fp32", eval_every=2)
    folder = tmp_path / "results" / preset_of("smoke").name
    runs = folder / "runs"
    train(recipe, runs, data_root=root, execution=Execution(device="cpu", deterministic=True), say=lambda text: None)
    run = Run(runs, recipe)
    out = tmp_path / "results" / independent.FOLDER / "evaluations" / f"{recipe.run_name}.json"
    out.parent.mkdir(parents=True)
    main(run.path, root, out)
    found = independent.read_evaluation(out, tmp_path / "results")
    assert found["error"] == found["recorded"] == run.summary()["test_error"]
    error = f"{100 * found['error']:.2f}"
    row = f"evaluations/{out.name}) | {error} | {error} | {found['parameters']:,} |"
    assert row in independent.section(tmp_path / "results")
    assert f"test error {error} %" in capsys.readouterr().out
    findings = Findings()
    verify.check_independent(tmp_path / "results", findings)
    assert findings.files == 1 and not findings.problems
    sound = out.read_text()
    for key, value, why in (
        ("weights_sha256", "0" * 64, "are not those of a record"), ("run", "another", "are not those of a record"),
        ("images", 0, "not of plain_evaluation.py"), ("parameters", 1, "is damaged"),
    ):  # fmt: skip
        out.write_text(json.dumps(json.loads(sound) | {key: value}))
        verify.check_independent(tmp_path / "results", findings)
        assert why in findings.problems[-1] and why in independent.section(tmp_path / "results")


def test_an_old_index_is_found(tmp_path):
    written(tmp_path / independent.FOLDER, 0, 0.31)
    (tmp_path / "smoke" / "runs").mkdir(parents=True)
    results_index.write_index(tmp_path)
    findings = Findings()
    verify.check_index(tmp_path, findings)
    assert findings.problems == []
    written(tmp_path / independent.FOLDER, 0, 0.32)
    verify.check_index(tmp_path, findings)
    assert findings.problems == ["README.md of the results is old on the plain loop; --write-index writes it anew"]
