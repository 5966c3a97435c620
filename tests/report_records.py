"""Writes a small results folder by hand: records, a figure, a table, as the trainer and the notebooks leave them."""

import base64
import json

from reslib.recipe import Recipe
from reslib.runs import METRICS

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def write_run(runs_dir, recipe: Recipe, status="finished", test_error=0.25, **summary):
    """One record; returns its folder. status "interrupted" leaves the summary out."""
    path = runs_dir / recipe.run_name
    path.mkdir(parents=True)
    (path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    if status == "interrupted":
        return path
    (path / "metrics.csv").write_text(f"{','.join(METRICS)}\n6,0.1,0.1,2,0.9,2,{test_error},,1,100\n")
    facts = {
        "status": status, "recipe_hash": recipe.digest, "preset": runs_dir.parent.name, "test_error": test_error,
        "train_error": 0.3, "parameters": 269_722, "precision": "fp32", "device": "cpu", "device_name": "A <fast> CPU",
        "commit": "c0ffee" * 6 + "abcd", "dirty": True, "torch": "2.14.1", "data_fingerprint": "00ff00ff00ff00ff",
        "synthetic": recipe.dataset.startswith("synthetic"), "finished": "2026-01-02T03:04:05+00:00", "message": "",
        "sessions": [{"from_iteration": 0}], "lr_drops_at": [3, 4],
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(facts | summary))
    return path


def write_results(root):
    """Presets smoke and paper; a model with a hostile name; a diverged and an interrupted run."""
    small = {"iterations": 6, "batch_size": 16, "eval_every": 3, "train_size": 256, "test_size": 64, "warmup_window": 2}
    runs = root / "smoke" / "runs"
    for seed in (0, 1):
        write_run(runs, Recipe("resnet20", "synthetic", seed, **small), test_error=0.5 + seed / 10)
    write_run(runs, Recipe("my.nets:<script>alert(1)</script>", "synthetic", **small), message='says "</script>"')
    write_run(runs, Recipe("plain20", "synthetic", **small), "diverged", None)
    write_run(runs, Recipe("plain32", "synthetic", **small), "interrupted")
    write_run(root / "paper" / "runs", Recipe("resnet56"), test_error=0.0697)
    for folder in ("figures", "tables"):
        (root / "smoke" / folder).mkdir()
    (root / "smoke" / "figures" / "figure1.png").write_bytes(PNG)
    (root / "smoke" / "figures" / "figure1.pdf").write_bytes(b"%PDF-1.4")
    (root / "smoke" / "tables" / "cifar10.csv").write_text("model,n\n<b>net</b>,2\n")
    (root / "smoke" / "tables" / "cifar10.md").write_text("SYNTHETIC DATA. The table.\n\n| model | n |\n")
    return root
