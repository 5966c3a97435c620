"""Several seeds at once: each trains as it does alone, and what all of them cost is counted in single runs."""

import contextlib
import queue
import time

import pytest
import torch
from bench_source import CPU, make_source, record_of, set_up
from fake_frames import texts

from reslib import data, figures
from reslib.bench import contenders, records, report, seeds


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    set_up(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def source():
    return make_source()


def test_stacked_seeds_train_as_each_does_alone(source):
    """Losses of three steps, of networks whose parameters are stacked, beside those of the step that trains one."""
    recipes = [contenders.recipe_for("resnet8", 8, source).replace(seed=s, lr=0.01) for s in (0, 1)]
    stacked = seeds.Stacked(recipes, source, CPU)  # it has taken its first step
    together = torch.stack([stacked.step() for _ in range(2)], dim=1)  # (seeds, steps)
    for recipe, losses in zip(recipes, together, strict=True):
        made = contenders.Reslib("fp32", recipe, source, CPU, say=lambda text: None)
        made.run(2)
        torch.testing.assert_close(losses, made.window.losses[1:3], rtol=1e-3, atol=1e-4)


def test_stacked_seeds_train_in_bf16(source, monkeypatch):
    recipes = [contenders.recipe_for("resnet8", 4, source).replace(seed=s, lr=0.01) for s in (0, 1)]
    exact = seeds.Stacked(recipes, source, CPU).step()
    monkeypatch.setattr(seeds, "resolve_precision", lambda asked, device: "bf16")
    torch.testing.assert_close(seeds.Stacked(recipes, source, CPU).step(), exact, rtol=0.1, atol=0.1)


def test_seeds_together_take_the_steps_they_would_take_alone(source):
    recipes = [contenders.recipe_for("resnet8", 8, source).replace(seed=s) for s in (0, 1)]
    together = seeds.Together("fp32", recipes, source, CPU)
    assert together.run(2) > 0
    for recipe, (member, _) in zip(recipes, together.made, strict=True):
        alone = contenders.Reslib("fp32", recipe, source, CPU, say=lambda text: None)
        alone.run(2)
        assert torch.equal(alone.window.losses[:3], member.window.losses[:3])


def test_cost_of_seeds_is_counted_in_single_runs(source, monkeypatch):
    class Processes(contextlib.nullcontext):
        def __init__(self, way, recipes, *rest):
            super().__init__(self)
            self.count = len(recipes)

        def run(self, steps):
            return steps * self.count * 8 / 400

    monkeypatch.setattr(seeds, "Processes", Processes)
    monkeypatch.setattr(seeds.Together, "run", lambda self, steps: steps * len(self.made) * 8 / 200)
    monkeypatch.setattr(seeds.Stacked, "run", lambda self, steps: steps * 3 * 8 / 50)
    monkeypatch.setattr(contenders.Reslib, "run", lambda self, steps: steps * 8 / 100)
    record = seeds.seeds_at_once("resnet8", 3, source, CPU, 2, 0.5, batch=8, say=lambda text: None)
    assert record["cost_in_runs"] == pytest.approx({"one in turn": 3, "together": 1.5, "stacked": 6, "processes": 0.75})
    page = "\n".join(report._seeds(record))
    assert "| together | 200 (200 to 200) | 1.50 (1.50 to 1.50) |" in page and "at a time" in page
    frame = records.seeds([record_of(seeds=[record])])
    assert set(frame.device) == {"here"} and len(frame) == 4
    figure = figures.seeds_figure(frame)
    assert figure.axes[0].get_title("left").startswith("3 seeds of ResNet-8")
    assert (
        "here · 2 threads · data synthetic · torch 2.14.1 · commit cccccccccc · 2026-01-02 · load at the start 0.5"
        in texts(figure)
    )


class Dead:
    exitcode = -9


def test_a_process_of_a_seed_that_dies_is_noticed_at_once():
    """It would be waited for ten minutes."""
    begun = time.monotonic()
    shared = seeds.Processes("fp32", [None], CPU, None)
    shared.workers, shared.orders = [Dead()], []
    with pytest.raises(RuntimeError, match="exit code -9"):
        shared.run(1)
    shared.answers = queue.Queue()
    shared.answers.put("OutOfMemoryError: no memory")
    with pytest.raises(RuntimeError, match="no memory"):
        shared.run(1)
    assert time.monotonic() - begun < 30


def test_processes_that_fail_are_no_way(source, monkeypatch):
    class Processes(contextlib.nullcontext):
        def __init__(self, *rest):
            super().__init__(self)

        def run(self, steps):
            raise RuntimeError("a process ended with exit code -9")

    monkeypatch.setattr(seeds, "Processes", Processes)
    record = seeds.seeds_at_once("resnet8", 2, source, CPU, 2, 0.01, batch=8, say=lambda text: None)
    assert record["failed"] == {"processes": "RuntimeError: a process ended with exit code -9"}
    assert list(record["cost_in_runs"]) == ["one in turn", "together", "stacked"]


@pytest.mark.long
def test_seeds_in_processes_of_their_own(source):
    recipes = [contenders.recipe_for("resnet8", 8, data.load("synthetic")).replace(seed=s) for s in (0, 1)]
    with seeds.Processes("fp32", recipes, CPU, None) as shared:
        assert all(shared.run(2) > 0 for _ in range(2)) and all(w.is_alive() for w in shared.workers)
    assert not any(w.is_alive() for w in shared.workers)


def test_the_service_that_shares_a_gpu_is_known_by_its_pipe(tmp_path, monkeypatch):
    from reslib.machine import multi_process_service

    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert not multi_process_service()
    (tmp_path / "control").touch()
    assert multi_process_service()
    part = {
        "seeds": 5,
        "model": "resnet20",
        "batch_size": 128,
        "precision": "bf16",
        "processes_at_once": 5,
        "failed": {},
    }
    part |= {
        "images_per_second": {"one in turn": 1.0, "processes": 2.0},
        "cost_in_runs": {"one in turn": 5, "processes": 2.5},
    }
    part |= {"images_per_second_turns": {"one in turn": [1.0], "processes": [2.0]}, "multi_process_service": True}
    assert "(5 at a time, through NVIDIA's Multi-Process Service)" in "\n".join(report._seeds(part))
