"""The training loop against pinned numbers, a slow loop written here, and itself in pieces."""

import json
import math

import pandas as pd
import pytest
import torch
from training import QUIET, rows_of, silent, slow_loop, stop_after, tiny, train_in_pieces, weights_of

from reslib.errors import UserError
from reslib.networks import load_network
from reslib.runs import Run
from reslib.schedule import learning_rate, plateaus
from reslib.train import Execution, Interrupted, memory_advice, train

# fp32 on a processor; other kernels or numbers of threads move the last ones by up to 0.5 %.
GOLDEN = [2.24263, 2.36324, 2.32555, 2.43784, 2.0977, 2.30382, 2.35577, 2.17387, 2.0089, 1.8952]
GOLDEN += [1.86616, 2.35785, 1.75584, 1.99831, 2.18393, 2.01709, 2.20251, 1.9379, 1.80959, 2.01898]


def metrics(tmp_path, recipe):
    return pd.read_csv(Run(tmp_path, recipe).metrics_file)


def test_golden_losses_of_twenty_steps(tmp_path):
    recipe = tiny(model="resnet8", iterations=20, batch_size=16, train_size=64, eval_every=1, test_size=16)
    train(recipe, tmp_path, execution=QUIET, say=silent)
    losses = metrics(tmp_path, recipe).train_loss.tolist()
    assert losses[:5] == pytest.approx(GOLDEN[:5], rel=2e-3)
    assert losses == pytest.approx(GOLDEN, rel=1.5e-2)


@pytest.mark.parametrize("model", ["resnet8", "plain8", "own_models:Small"])
def test_a_slow_loop_gives_the_same_losses_across_the_drops(tmp_path, model):
    recipe = tiny(model=model, iterations=16, eval_every=1, test_size=16, lr_drops=(0.25, 0.5), weight_decay=1e-2)
    train(recipe, tmp_path, execution=QUIET, say=silent)
    frame = metrics(tmp_path, recipe)
    losses, errors, rates = slow_loop(recipe)
    assert frame.train_loss.tolist() == pytest.approx(losses, rel=1e-3)
    assert frame.train_error.tolist() == pytest.approx(errors)
    assert frame.lr.tolist() == pytest.approx(rates)
    other = slow_loop(recipe, keep_velocity=False)[0]
    assert other[:5] == pytest.approx(losses[:5], rel=1e-3)  # the two agree while the rate stays
    assert max(abs(a - b) for a, b in zip(other, losses, strict=True)) > 0.02  # and the test can tell them apart


@pytest.mark.parametrize("model", ["resnet8", "own_models:Small"])
def test_accumulation_is_the_mean_gradient_of_micro_batches(tmp_path, model):
    recipe = tiny(model=model, accumulation=4, eval_every=1, test_size=16, iterations=8)
    train(recipe, tmp_path, execution=QUIET, say=silent)
    frame = metrics(tmp_path, recipe)
    losses, errors, _ = slow_loop(recipe, accumulation=4)
    assert frame.train_loss.tolist() == pytest.approx(losses, rel=1e-3)
    assert frame.train_error.tolist() == pytest.approx(errors)


def trace(recipe, first_below):
    """The whole learning-rate trace, from the iteration after which the training error was below the threshold."""
    drops = [round(f * recipe.iterations) for f in recipe.lr_drops]
    return [
        recipe.warmup_lr if i < first_below else recipe.lr / 10 ** sum(i >= d for d in drops)
        for i in range(recipe.iterations)
    ]


@pytest.mark.parametrize("piece", [None, 3, 7])
def test_the_whole_learning_rate_trace_of_a_warm_up(tmp_path, monkeypatch, piece):
    recipe = tiny(iterations=40, eval_every=1, test_size=16, warmup_lr=0.005, warmup_window=4, warmup_error=0.75)
    if piece:
        summary, sessions = train_in_pieces(monkeypatch, recipe, tmp_path, piece)
        assert sessions == math.ceil(40 / piece)
    else:
        summary = train(recipe, tmp_path, execution=QUIET, say=silent)
    frame = metrics(tmp_path, recipe)
    windows = frame.train_error.to_numpy().reshape(-1, 4).mean(1)  # every window of 4 iterations
    ended = 4 * (1 + next(i for i, error in enumerate(windows) if error < 0.75))
    assert 4 < ended < 20, f"choose other numbers: the warm-up ended at {ended}"
    assert max(windows[ended // 4 :]) > 0.75, "choose other numbers: the error never rises again"
    assert frame.lr.tolist() == pytest.approx(trace(recipe, ended))
    assert summary["warmup_ended_at"] == ended
    assert frame.iteration.tolist() == list(range(1, 41))


def test_a_warm_up_that_never_succeeds_is_recorded_as_such(tmp_path):
    recipe = tiny(warmup_lr=0.001, warmup_window=2, warmup_error=0.0, eval_every=1)
    summary = train(recipe, tmp_path, execution=QUIET, say=silent)
    assert summary["warmup_ended_at"] is None
    assert set(metrics(tmp_path, recipe).lr) == {0.001}


def test_the_latch_does_not_return_when_the_error_rises_again():
    recipe = tiny(warmup_lr=0.01, iterations=100)
    assert learning_rate(recipe, 10, True, []) == 0.01
    assert learning_rate(recipe, 10, False, []) == 0.05
    assert learning_rate(recipe, 50, False, []) == pytest.approx(0.005)
    assert learning_rate(recipe, 99, False, []) == pytest.approx(0.0005)


@pytest.mark.parametrize(
    "errors, count",
    [([], 0), ([0.5, 0.4, 0.3], 0), ([0.5, 0.5, 0.5], 1), ([0.5, 0.6, 0.5, 0.5, 0.5], 2), ([0.5, 0.6, 0.4, 0.4], 0)],
)
def test_plateaus(errors, count):
    assert plateaus(errors, 2) == count


def test_the_plateau_schedule_divides_when_the_validation_error_stands_still(tmp_path):
    recipe = tiny(schedule="plateau", plateau_patience=1, val_size=20, eval_every=2, iterations=20)
    train(recipe, tmp_path, execution=QUIET, say=silent)
    frame = metrics(tmp_path, recipe)
    expected, best, drops = [], 2.0, 0
    for error in frame.val_error:
        expected.append(recipe.lr / 10**drops)
        drops += not error < best
        best = min(best, error)
    assert drops > 1
    assert frame.lr.tolist() == pytest.approx(expected)


PIECES = [
    tiny(lr_drops=(0.3, 0.6)),
    tiny(options="dropout=0.5", seed=3),
    tiny(accumulation=2, options="dropout=0.5", val_size=10),
    tiny(schedule="plateau", plateau_patience=1, warmup_lr=0.01, warmup_window=5, crops="batch"),
]


@pytest.mark.parametrize("recipe", PIECES, ids=["steps", "dropout", "accumulation", "plateau"])
def test_resumed_at_any_iteration_the_bits_are_the_same(tmp_path, monkeypatch, recipe):
    train(recipe, tmp_path / "whole", execution=QUIET, say=silent)
    whole = rows_of(tmp_path / "whole", recipe), weights_of(tmp_path / "whole", recipe)
    for stop in range(recipe.iterations) if recipe is PIECES[0] else (1, 4, 11):
        folder = tmp_path / str(stop)
        with monkeypatch.context() as patch, pytest.raises(Interrupted, match=f"checkpoint at iteration {stop} of 12"):
            stop_after(patch, stop)
            train(recipe, folder, execution=QUIET, say=silent)
        torch.manual_seed(stop)  # whatever the generator holds must not matter
        summary = train(recipe, folder, execution=QUIET, say=silent)
        assert (rows_of(folder, recipe), weights_of(folder, recipe)) == whole, f"stopped at {stop}"
        assert [(s["from_iteration"], s["to_iteration"]) for s in summary["sessions"]] == [(0, stop), (stop, 12)]
    other = recipe.replace(seed=recipe.seed + 1)
    train(other, tmp_path / "whole", execution=QUIET, say=silent)
    assert weights_of(tmp_path / "whole", other) != whole[1]


def test_a_run_goes_on_in_the_precision_it_was_begun_in(tmp_path, monkeypatch):
    """On another machine `auto` would be resolved otherwise; the run, its name and what else is kept do not change."""
    recipe = tiny(precision="auto", iterations=4, eval_every=2)
    execution = Execution(device="cpu")
    monkeypatch.setenv("RESLIB_TUNE", "precision=bf16,threads=1,compile=false")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 2)
        train(recipe, tmp_path, execution=execution, say=silent)
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1,compile=false")
    assert train(recipe, tmp_path, execution=execution, say=silent)["precision"] == "bf16"
    assert train(recipe.replace(seed=1), tmp_path, execution=execution, say=silent)["precision"] == "fp32"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("model", ["nin", "resnet8", "fitnet19"])
def test_the_networks_of_the_study_resume_to_the_bit(tmp_path, monkeypatch, model):
    recipe = tiny(model=model, iterations=3, eval_every=2, batch_size=4, train_size=8, test_size=4, lr=0.01)
    train(recipe, tmp_path / "whole", execution=QUIET, say=silent)
    train_in_pieces(monkeypatch, recipe, tmp_path / "pieces", 1)
    assert rows_of(tmp_path / "whole", recipe) == rows_of(tmp_path / "pieces", recipe)
    assert weights_of(tmp_path / "whole", recipe) == weights_of(tmp_path / "pieces", recipe)


def test_activation_checkpointing_changes_no_bit(tmp_path):
    recipe = tiny(model="resnet8", iterations=4, eval_every=2)
    train(recipe, tmp_path / "usual", execution=QUIET, say=silent)
    sparing = Execution(device="cpu", deterministic=True, activation_checkpointing=True)
    train(recipe, tmp_path / "sparing", execution=sparing, say=silent)
    assert weights_of(tmp_path / "usual", recipe) == weights_of(tmp_path / "sparing", recipe)


def test_networks_without_activation_checkpointing_train_without_and_say_so(tmp_path):
    """An option of execution does not decide which runs of a plan are trained."""
    sparing, said = Execution(device="cpu", deterministic=True, activation_checkpointing=True), []
    for recipe in (
        tiny(),
        tiny(model="nin", iterations=1, eval_every=1, batch_size=4, train_size=8, test_size=4, lr=0.01),
    ):
        assert train(recipe, tmp_path, execution=sparing, say=said.append)["status"] == "finished"
        (line,) = [text for text in said if "without activation checkpointing" in text and recipe.run_name in text]
        assert "\n" not in line


def test_the_record_of_a_finished_run(tmp_path):
    recipe, said, seen = tiny(val_size=10), [], []
    summary = train(recipe, tmp_path, preset="smoke", execution=QUIET, say=said.append, on_row=seen.append)
    frame, run = metrics(tmp_path, recipe), Run(tmp_path, recipe)
    assert summary == json.loads(run.summary_file.read_text())
    assert sorted(p.name for p in run.path.iterdir()) == [
        "lock", "metrics.csv", "recipe.json", "summary.json", "weights.safetensors"
    ]  # fmt: skip
    assert len(said) == len(seen) == len(frame) == 4
    assert summary["status"] == "finished" and summary["preset"] == "smoke"
    assert summary["test_error"] == pytest.approx(frame.test_error.iloc[-1])  # the last, not the best
    assert summary["best_test_error"] == pytest.approx(frame.test_error.min())
    chosen = frame.loc[frame.val_error.idxmin()]
    assert summary["selected_test_error"] == pytest.approx(chosen.test_error, rel=1e-5)
    assert summary["selected_iteration"] == chosen.iteration
    assert summary["train_error"] == pytest.approx(frame.train_error.iloc[-1], rel=1e-5)
    assert summary["train_loss"] == pytest.approx(frame.train_loss.iloc[-1], rel=1e-5)
    assert summary["lr_drops_at"] == [6, 9] and summary["iterations"] == 12
    assert summary["images_per_second"] == pytest.approx(12 * 8 / summary["seconds"])
    assert summary["train_images"] == 40 and summary["test_images"] == 64
    assert frame.epoch.tolist() == pytest.approx([0.6, 1.2, 1.8, 2.4])
    assert (frame.images_per_second > 0).all() and frame.seconds.is_monotonic_increasing
    between = frame.seconds.diff().iloc[1:]  # evaluations included, which the speed leaves out
    assert (frame.images_per_second.iloc[1:] * between >= 3 * 8 * 0.999).all()
    assert (abs(frame.test_loss - frame.train_loss) > 1e-6).all()
    model, read = load_network(run.path)
    assert read == recipe and not model.training
    before = run.path.stat().st_mtime_ns
    assert train(recipe, tmp_path, execution=QUIET) == summary  # nothing is trained again
    assert run.path.stat().st_mtime_ns == before


def test_running_errors_are_over_the_window(tmp_path):
    fine, coarse = tiny(eval_every=1), tiny(eval_every=5)
    for recipe in (fine, coarse):
        train(recipe, tmp_path, execution=QUIET, say=silent)
    fine, coarse = metrics(tmp_path, fine), metrics(tmp_path, coarse)
    assert coarse.iteration.tolist() == [5, 10, 12]  # the end is always evaluated
    for column in ("train_loss", "train_error"):
        windows = [fine[column][:5].mean(), fine[column][5:10].mean(), fine[column][10:].mean()]
        assert coarse[column].tolist() == pytest.approx(windows, rel=1e-5)
    assert coarse.test_error.tolist() == [fine.test_error[i] for i in (4, 9, 11)]


@pytest.mark.parametrize("piece", [None, 2])
def test_divergence_names_the_iteration_and_is_final(tmp_path, monkeypatch, piece):
    recipe, said = tiny(model="own_models:NaNAfter", options="steps=5", eval_every=4), []
    if piece:  # the counter of the network starts anew with every session: stop once, before it has come to its end
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            stop_after(patch, piece)
            train(recipe, tmp_path, execution=QUIET, say=silent)
    summary = train(recipe, tmp_path, execution=QUIET, say=said.append)
    at = 5 + (piece or 0)
    assert summary["status"] == "diverged"
    assert summary["message"] == f"the loss of iteration {at} is not finite"
    assert f"the loss of iteration {at} is not finite" in said[-1]
    assert metrics(tmp_path, recipe).iteration.tolist() == [4]
    assert not Run(tmp_path, recipe).checkpoint_file.exists()
    assert train(recipe, tmp_path, execution=QUIET, say=silent) == summary


def test_an_absurd_learning_rate_diverges(tmp_path):
    recipe = tiny(model="plain8", lr=100.0, momentum=0.99, iterations=30, eval_every=30, weight_decay=1.0)
    summary = train(recipe, tmp_path, execution=QUIET, say=silent)
    assert summary["status"] == "diverged"
    assert "iteration" in summary["message"] and "not finite" in summary["message"]
    assert summary["test_error"] is None


def test_weights_that_are_no_numbers_after_the_last_step(tmp_path):
    recipe = tiny(model="own_models:Poisoned", iterations=1)
    summary = train(recipe, tmp_path, execution=QUIET, say=silent)
    assert (summary["status"], summary["message"]) == ("diverged", "the weights after iteration 1 are not finite")


def test_a_dead_net_says_so(tmp_path):
    summary = train(tiny(model="own_models:Dead", test_size=500), tmp_path, execution=QUIET, say=silent)
    assert summary["status"] == "finished" and summary["message"].startswith("dead")
    alive = train(tiny(iterations=60, test_size=500), tmp_path, execution=QUIET, say=silent)
    assert alive["message"] == ""


def test_out_of_memory_says_what_to_do(tmp_path):
    recipe = tiny(model="own_models:Hungry", accumulation=2)
    with pytest.raises(UserError, match="out of memory with batch_size 8, accumulation 2: raise accumulation .say 4."):
        train(recipe, tmp_path, execution=QUIET, say=silent)
    assert memory_advice(torch.OutOfMemoryError("CUDA out of memory. Tried"), recipe)
    assert memory_advice(MemoryError(), recipe)
    assert "raise accumulation (say 3)" in memory_advice(MemoryError(), tiny(batch_size=9))  # it divides the batch
    assert "accumulation 8: lower batch_size or" in memory_advice(MemoryError(), tiny(batch_size=8, accumulation=8))
    assert not memory_advice(RuntimeError("shapes cannot be allocated to each other"), recipe)


def test_options_of_execution_are_not_part_of_the_result(tmp_path):
    recipe = tiny()
    train(recipe, tmp_path / "a", execution=QUIET, say=silent)
    train(recipe, tmp_path / "b", execution=Execution(device="cpu", checkpoint_seconds=0.0), say=silent)
    assert rows_of(tmp_path / "a", recipe) == rows_of(tmp_path / "b", recipe)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("iterations, dead", [(250, True), (240, False)])
def test_a_net_at_chance_level_is_called_dead_once_it_has_seen_every_image(tmp_path, iterations, dead):
    recipe = tiny(
        lr=1e-8, weight_decay=0.0, train_size=2000, test_size=1000, iterations=iterations, eval_every=iterations
    )
    summary = train(recipe, tmp_path, execution=QUIET, say=silent)
    assert summary["message"].startswith("dead") == dead and summary["test_error"] > 0.85


def test_a_damaged_summary_says_what_to_do(tmp_path):
    run = Run(tmp_path, tiny())
    train(run.recipe, tmp_path, execution=QUIET, say=silent)
    run.summary_file.write_text(run.summary_file.read_text()[:50])
    with pytest.raises(UserError, match="summary.json cannot be read: .*; move the run's folder away to train it anew"):
        train(run.recipe, tmp_path, execution=QUIET, say=silent)
