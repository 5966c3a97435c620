"""Run directories as the trainer writes them, with made-up numbers."""

from reslib.files import sha256, write_json
from reslib.runs import Run
from reslib.schedule import learning_rate

ENVIRONMENT = {
    "commit": "c" * 40, "dirty": False, "device": "cuda", "device_name": "Some GPU", "threads": 1, "torch": "2.14.1",
    "precision": "bf16", "data_fingerprint": "00ff00ff00ff00ff", "data_origin": "torchvision", "classes": 10,
    "train_images": 50_000, "test_images": 10_000, "started": "2026-01-01T00:00:00+00:00",
    "finished": "2026-01-01T01:00:00+00:00", "sessions": [],
}  # fmt: skip


def write_run(runs_dir, recipe, error=0.25, speed=1000.0, stop_at=None, weights=b"", **fields):
    """A finished run, its errors falling to `error`; stop_at: one interrupted at that iteration. Returns its Run."""
    run = Run(runs_dir, recipe)
    run.begin()
    steps = range(recipe.eval_every, (stop_at or recipe.iterations) + 1, recipe.eval_every)
    rows = [
        {
            "iteration": step, "epoch": step * recipe.batch_size / 50_000, "train_loss": 1.0 + error,
            "lr": learning_rate(recipe, step - 1, False, []),
            "train_error": error + 0.1 * (1 - step / recipe.iterations), "test_loss": 1.5,
            "test_error": error + 0.2 * (1 - step / recipe.iterations), "val_error": None,
            "seconds": step * recipe.batch_size / speed, "images_per_second": speed,
        }
        for step in steps
    ]  # fmt: skip
    run.write_metrics(rows)
    if stop_at:
        run.checkpoint_file.write_bytes(b"checkpoint")
        return run
    summary = {"status": "finished", "recipe_hash": recipe.digest, "preset": runs_dir.parent.name, **ENVIRONMENT}
    summary |= {name: rows[-1][name] for name in ("test_error", "train_error", "train_loss", "seconds")}
    summary |= {
        "best_test_error": min(r["test_error"] for r in rows), "best_iteration": recipe.iterations,
        "selected_test_error": None, "selected_iteration": None, "exact_bn_test_error": error, "parameters": 269_722,
        "multiply_adds": 40_551_040, "layers": 20, "iterations": recipe.iterations, "images_per_second": speed,
        "synthetic": recipe.dataset.startswith("synthetic"), "message": "", "weights_sha256": None,
    }  # fmt: skip
    if weights:
        run.weights_file.write_bytes(weights)
        summary["weights_sha256"] = sha256(run.weights_file)
    run.finish(summary | fields)
    return run


def change_summary(run, **fields):
    """Edit a summary behind the trainer's back; None removes a key."""
    summary = run.summary() | fields
    write_json(run.summary_file, {k: v for k, v in summary.items() if v is not None or k not in fields})
