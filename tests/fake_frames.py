"""Frames as load_runs and load_curves give them, with made-up numbers, for tests of figures, tables and claims."""

import matplotlib.text
import numpy as np
import pandas as pd


def fake_runs(errors, seeds=(0,), **fields):
    """errors: {model: (train error %, test error %) or a list of test errors %, one per seed}."""
    rows = []
    for model, value in errors.items():
        family = next((f for f in ("plain", "resnet") if model.startswith(f)), model)
        digits = model.removeprefix(family)
        depth = int(digits) if digits.isdigit() else 0
        tests = value if isinstance(value, list) else [value[1]] * len(seeds)
        train = 5.0 if isinstance(value, list) else value[0]
        for i, test in enumerate(tests):
            seed = seeds[i] if i < len(seeds) else i
            rows.append(
                {
                    "run": f"{model}-s{seed}-{len(rows)}", "status": "finished", "model": model, "family": family,
                    "depth": depth, "seed": seed, "dataset": "cifar10", "iterations": 64_000, "batch_size": 128,
                    "eval_every": 500, "train_size": 0, "val_size": 0, "test_size": 0, "shortcut": "A", "options": "",
                    "warmup_lr": 0.01 if depth >= 110 else 0.0, "precision_asked": "auto", "preset": "paper",
                    "precision": "bf16", "device_name": "Some GPU", "data_fingerprint": "00ff", "synthetic": False,
                    "train_error": train / 100, "test_error": test / 100, "best_test_error": test / 100 - 0.003,
                    "selected_test_error": np.nan, "exact_bn_test_error": test / 100 + 0.001, "parameters": 269_722.0,
                    "layers": float(depth), "test_images": 10_000,
                    "warmup_ended_at": 400.0 if depth >= 110 else np.nan, "multiply_adds": 40_551_040.0,
                }
                | fields
            )  # fmt: skip
    return pd.DataFrame(rows)


def fake_curves(runs, points=8):
    """Errors falling to each run's final ones; every run has its own numbers."""
    rows = []
    for run in runs.to_dict("records"):
        for i in range(1, points + 1):
            extra = 0.5 * (1 - i / points)
            rows.append(
                {name: run[name] for name in ("run", "model", "family", "depth", "seed", "dataset", "synthetic")}
                | {
                    "iteration": run["iterations"] * i // points,
                    "train_error": run["train_error"] + extra,
                    "test_error": run["test_error"] + extra,
                }
            )
    return pd.DataFrame(rows)


def texts(fig):
    """Every text of the figure on a line of its own, line breaks undone."""
    return "\n".join(" ".join(t.get_text().split()) for t in fig.findobj(matplotlib.text.Text) if t.get_text())


def lines(ax, start):
    return [line for line in ax.lines if str(line.get_label()).startswith(start)]
