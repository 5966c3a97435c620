"""What only a CUDA GPU can show: the captured step is the eager step, a resumed run is the same run."""

import json
import math

import pytest
import torch
from on_gpu import GPU, RECIPE, exact, follow_fp32, source  # noqa: F401 (fixtures)
from own_models import Small
from training import rows_of, silent, slow_loop, stop_after, tiny

from reslib import data
from reslib.engine import CapturedStep, Step, make_optimizer, make_step, set_learning_rate
from reslib.equivalence import departure, first_steps
from reslib.networks import make_model
from reslib.window import Window

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_steps_are_the_eager_steps(source, precision):
    eager = first_steps(RECIPE, source, GPU, precision, steps=30, eager=True)  # the rate drops at 20 and 30
    captured = first_steps(RECIPE, source, GPU, precision, steps=30)
    away = departure(eager, captured)
    assert away["loss"] < 1e-4 and away["weights"] < 1e-2, away


def test_first_captured_step_leaves_no_trace_of_the_warm_up(source):
    def one(kind):
        model = make_model(RECIPE, 10, None).to(GPU, memory_format=torch.channels_last).train()
        optimizer = make_optimizer(RECIPE, model, GPU)
        step = kind(RECIPE, model, optimizer, GPU, "fp32")
        x, y = data.batches_for(RECIPE, source, GPU).batch(0)
        loss, wrong = step(x, y, 0)
        return float(loss), int(wrong), model, optimizer

    eager, captured = one(Step), one(CapturedStep)
    assert eager[1] == captured[1] and eager[0] == pytest.approx(captured[0], rel=1e-5)
    for left, right in zip(eager[2].state_dict().values(), captured[2].state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)  # weights, statistics and batch counts
    for left, right in zip(eager[3].state.values(), captured[3].state.values(), strict=True):
        torch.testing.assert_close(left["momentum_buffer"], right["momentum_buffer"], rtol=1e-3, atol=1e-5)


def test_learning_rate_reaches_the_captured_graph(source):
    model = make_model(RECIPE, 10, None).to(GPU, memory_format=torch.channels_last).train()
    recipe = RECIPE.replace(momentum=0.0, weight_decay=0.0)
    optimizer = make_optimizer(recipe, model, GPU)
    step = make_step(recipe, model, optimizer, GPU, "fp32")
    assert isinstance(step, CapturedStep)
    x, y = data.batches_for(recipe, source, GPU).batch(0)
    step(x, y, 0)
    set_learning_rate(optimizer, 1e-8, 1e-8)
    before = model.fc.weight.detach().clone()
    step(x, y, 1)
    assert (model.fc.weight - before).abs().max() < 1e-6
    set_learning_rate(optimizer, 0.1, 0.1)
    step(x, y, 2)
    assert (model.fc.weight - before).abs().max() > 1e-5


def test_replays_decay_the_weights_and_drop_the_rate_as_a_slow_loop_does(tmp_path):
    """What 1e-4 of decay does shows only after thousands of steps: here it is large enough for sixteen."""
    from reslib.job import Execution
    from reslib.train import train

    recipe = tiny(model="resnet8", iterations=16, eval_every=1, test_size=16, lr_drops=(0.25, 0.5), weight_decay=0.3)
    train(recipe, tmp_path, execution=Execution(device="cuda", deterministic=True), say=silent)
    losses = [float(row["train_loss"]) for row in rows_of(tmp_path, recipe)]
    assert losses == pytest.approx(slow_loop(recipe, device=GPU)[0], rel=1e-2)
    for other in ({"weight_decay": 0.0}, {"momentum": 0.0}, {"lr_drops": (0.5,)}):
        wrong = slow_loop(recipe.replace(**other), device=GPU)[0]
        assert max(abs(a - b) for a, b in zip(losses, wrong, strict=True)) > 0.1, other


def test_weights_change_with_every_replay(source):
    model = make_model(RECIPE, 10, None).to(GPU, memory_format=torch.channels_last).train()
    step = make_step(RECIPE, model, make_optimizer(RECIPE, model, GPU), GPU, "fp32")
    x, y = data.batches_for(RECIPE, source, GPU).batch(0)
    ends = []
    for iteration in range(3):  # the first call captures and replays too
        step(x, y, iteration)
        ends.append(model.fc.weight.detach().clone())
    assert step.way == "CUDA graph"
    assert not torch.equal(ends[0], ends[1]) and not torch.equal(ends[1], ends[2])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_a_step_on_another_device_than_the_current_one_is_captured_there(source):
    torch.cuda.set_device(0)
    eager, captured = (first_steps(RECIPE, source, torch.device("cuda:1"), "fp32", 10, eager=e) for e in (True, False))
    away = departure(eager, captured)
    assert torch.cuda.current_device() == 0
    assert away["loss"] < 1e-4 and away["weights"] < 1e-2, away


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_workers_of_two_devices_capture_each_on_its_own(tmp_path):
    from reslib.executor import execute
    from reslib.job import Execution
    from reslib.runs import Run

    recipes = [RECIPE.replace(seed=s) for s in range(2)]
    assert execute(recipes, tmp_path, execution=Execution(device="cuda"), executor="local", say=silent) == []
    for recipe in recipes:
        summary = Run(tmp_path, recipe).summary()
        assert summary["sessions"][0]["step"] == "CUDA graph" and summary["train_error"] < 0.9


class Reads(Small):
    """Its forward pass reads a value on the host, which no capture allows."""

    def forward(self, x):
        assert x.abs().sum().item() > 0
        return super().forward(x)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_network_that_cannot_be_captured_takes_the_plain_steps(source, dropout):
    def losses(kind):
        torch.manual_seed(0)
        model = Reads(10, dropout).to(GPU, memory_format=torch.channels_last).train()
        step = kind(RECIPE, model, make_optimizer(RECIPE, model, GPU), GPU, "fp32")
        batches = data.batches_for(RECIPE, source, GPU)
        return step, [float(step(*batches.batch(i), i)[0]) for i in range(4)]

    stream = torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="not captured as a CUDA graph"):
        step, tried = losses(CapturedStep)
    assert torch.cuda.current_stream() == stream and step.way.startswith("eager, not captured: ")
    assert tried == pytest.approx(losses(Step)[1], rel=1e-4)
    after = first_steps(RECIPE, source, GPU, "fp32", steps=5)  # another network of this process is captured as ever
    assert departure(first_steps(RECIPE, source, GPU, "fp32", steps=5, eager=True), after)["loss"] < 1e-4


def test_compiled_passes_are_captured_where_asked_for(tmp_path, monkeypatch):
    from reslib.job import Execution
    from reslib.train import train

    execution = Execution(device="cuda")
    eager = train(RECIPE, tmp_path / "eager", execution=execution, say=silent)
    monkeypatch.setenv("RESLIB_TUNE", "compile=true")
    torch.use_deterministic_algorithms(False)
    compiled = train(RECIPE, tmp_path / "compiled", execution=execution, say=silent)
    assert compiled["sessions"][0]["step"] == "CUDA graph, compiled"
    assert compiled["train_loss"] == pytest.approx(eager["train_loss"], rel=0.1)


def test_nothing_waits_for_the_device_between_evaluations(source):
    """Over 14 epochs, whose draws are copied to the device."""
    torch.use_deterministic_algorithms(False)
    recipe = RECIPE.replace(iterations=450, eval_every=450)
    model = make_model(recipe, 10, None).to(GPU, memory_format=torch.channels_last).train()
    optimizer = make_optimizer(recipe, model, GPU)
    step, window = make_step(recipe, model, optimizer, GPU, "bf16"), Window(recipe, GPU)
    stream = data.batches_for(recipe, source, GPU).stream(0, 450)
    try:
        for iteration in range(450):
            if iteration == 3:  # captured by now
                torch.cuda.set_sync_debug_mode("error")
            set_learning_rate(optimizer, 0.01, 0.02 if iteration % 100 == 99 else 0.01)
            window.add(*step(*next(stream), iteration))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.way == "CUDA graph" and torch.isfinite(window.losses).all()


def test_captured_batches_are_the_batches(source):
    batches = data.batches_for(RECIPE.replace(train_size=0), source, GPU)
    for iteration, (x, y) in enumerate(batches.stream(620, 640), start=620):  # from one epoch into the next
        other_x, other_y = batches.batch(iteration)
        assert torch.equal(x, other_x) and torch.equal(y, other_y)


def test_every_network_of_the_table_takes_a_captured_step(source):
    for model in ("maxout", "nin", "dsn", "fitnet19", "highway19", "highway32"):
        recipe = RECIPE.replace(model=model, batch_size=8)
        net = make_model(recipe, 10, None).to(GPU, memory_format=torch.channels_last).train()
        step = make_step(recipe, net, make_optimizer(recipe, net, GPU), GPU, "bf16")
        losses = [
            float(step(x, y, i)[0]) for i, (x, y) in enumerate(data.batches_for(recipe, source, GPU).stream(0, 2))
        ]
        assert step.way == "CUDA graph" and all(map(math.isfinite, losses)), model


def test_a_long_run_tries_compiled_passes_and_says_what_came_of_it(source, monkeypatch, tmp_path):
    from reslib import gpu_compilation, gpu_trials

    torch.use_deterministic_algorithms(False)
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path))
    monkeypatch.setenv("RESLIB_TUNE", "units=false")
    monkeypatch.setattr(gpu_compilation, "WHOLE", 10)
    for model, blocks in (("resnet8", False), ("resnet14", True)):
        said, recipe = [], RECIPE.replace(model=model)
        net = make_model(recipe, 10, None).to(GPU, memory_format=torch.channels_last).train()
        before = {name: value.clone() for name, value in net.state_dict().items()}
        step = make_step(recipe, net, make_optimizer(recipe, net, GPU), GPU, "bf16")
        gpu_trials.accelerate(step, 10**7, say=said.append)
        x, y = data.batches_for(recipe, source, GPU).batch(0)
        step._capture(x, y)
        assert said[-1].startswith("a step takes") and step.way == "CUDA graph" + ", compiled" * said[-1].endswith(
            "kept"
        )
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert blocks == any(
            hasattr(m, "_compiled_call_impl") and "_compiled_call_impl" in vars(m) for m in net.modules()
        )


@pytest.mark.parametrize("model", ["resnet8", "resnet14"])  # as a whole, and block by block
def test_compiled_captured_steps_follow_fp32_for_fifty_steps(source, monkeypatch, model):
    from reslib import gpu_compilation

    torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(gpu_compilation, "WHOLE", 10)
    recipe = RECIPE.replace(model=model, lr=0.001)
    follow_fp32(recipe, source, monkeypatch, "compile=true", "CUDA graph, compiled")


def test_dropout_of_the_captured_step_is_a_function_of_the_iteration(source):
    recipe = RECIPE.replace(model="nin", batch_size=8)
    model = make_model(recipe, 10, None).to(GPU, memory_format=torch.channels_last).train()
    optimizer = make_optimizer(recipe.replace(lr=1e-8), model, GPU)
    step = make_step(recipe, model, optimizer, GPU, "fp32")
    x, y = data.batches_for(recipe, source, GPU).batch(0)
    losses = [float(step(x, y, i)[0]) for i in (0, 1, 0)]
    assert losses[0] == pytest.approx(losses[2], rel=1e-4) and abs(losses[0] - losses[1]) > 1e-5


def test_evaluation_between_replays_changes_nothing(source):
    from reslib.measure import error_and_loss

    batches = data.batches_for(RECIPE, source, GPU)

    def losses(evaluate):
        model = make_model(RECIPE, 10, None).to(GPU, memory_format=torch.channels_last).train()
        step = make_step(RECIPE, model, make_optimizer(RECIPE, model, GPU), GPU, "fp32")
        seen = []
        for i in range(6):
            seen.append(float(step(*batches.batch(i), i)[0]))
            if evaluate:
                error_and_loss(model, batches.eval_batches("test"), GPU)
        return seen

    assert losses(True) == pytest.approx(losses(False), rel=1e-5)


def test_resumed_run_is_the_same_run(tmp_path, monkeypatch):
    """Stopped within a window and before a drop of the rate: momenta, rate, window and averages are taken up again."""
    from reslib.job import Execution
    from reslib.train import Interrupted, train

    recipe = RECIPE.replace(eval_every=10)
    execution = Execution(device="cuda", deterministic=True)
    whole = train(recipe, tmp_path / "whole", execution=execution, say=silent)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="iteration 17 of 40"):
        stop_after(patch, 17)
        train(recipe, tmp_path / "cut", execution=execution, say=silent)
    resumed = train(recipe, tmp_path / "cut", execution=execution, say=silent)
    assert [s["from_iteration"] for s in resumed["sessions"]] == [0, 17]
    assert rows_of(tmp_path / "cut", recipe) == rows_of(tmp_path / "whole", recipe)
    assert resumed["weights_sha256"] == whole["weights_sha256"]


def test_run_begun_on_the_processor_continues_on_the_gpu(tmp_path):
    from reslib.job import Execution
    from reslib.train import Interrupted, train

    recipe = RECIPE.replace(precision="fp32", eval_every=10)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path, execution=Execution(device="cpu", time_limit=0.0), say=lambda text: None)
    summary = train(recipe, tmp_path, execution=Execution(device="cuda"), say=lambda text: None)
    assert summary["status"] == "finished" and [s["device"] for s in summary["sessions"]] == ["cpu", "cuda"]


def test_seeds_on_streams_of_their_own_are_the_runs_they_are_alone(tmp_path):
    from reslib.job import Execution
    from reslib.together import train_together
    from reslib.train import train

    execution = Execution(device="cuda", deterministic=True)
    recipes = [RECIPE.replace(seed=s, eval_every=15) for s in range(3)]
    train_together(recipes, tmp_path / "all", execution=execution, say=lambda text: None)
    for recipe in recipes:
        alone = train(recipe, tmp_path / "one", execution=execution, say=lambda text: None)
        side_by_side = train(recipe, tmp_path / "all", execution=execution)  # ended: its summary
        assert side_by_side["weights_sha256"] == alone["weights_sha256"]
        assert [s["step"] for s in side_by_side["sessions"]] == ["CUDA graph"]


def test_dropout_of_seeds_at_once_is_that_of_each_alone(tmp_path):
    from reslib.job import Execution
    from reslib.together import train_together
    from reslib.train import train

    execution = Execution(device="cuda", deterministic=True)
    recipes = [RECIPE.replace(model="nin", batch_size=8, iterations=8, seed=s) for s in range(2)]
    train_together(recipes, tmp_path / "all", execution=execution, say=lambda text: None)
    for recipe in recipes:
        alone = train(recipe, tmp_path / "one", execution=execution, say=lambda text: None)
        assert train(recipe, tmp_path / "all", execution=execution)["train_loss"] == pytest.approx(alone["train_loss"])


def test_how_the_step_ran_is_in_the_record(tmp_path):
    from reslib.job import Execution
    from reslib.train import train

    for name, eager, step in (("fast", False, "CUDA graph"), ("plain", True, "eager")):
        summary = train(RECIPE, tmp_path / name, execution=Execution(device="cuda", eager=eager), say=lambda text: None)
        assert summary["sessions"][0]["step"] == step


@pytest.mark.parametrize(
    "part",
    [
        "--models resnet8 --contenders usual,fp32,fast,compiled --workers 0",
        "--models resnet8 --contenders fast --tried",
        "--models none --scaling --depths 8 --batches 16 --widths 8",
        "--models none --seeds-at-once 2 --seed-models resnet8",
        "--models none --loader --loader-model resnet18 --loader-dataset synthetic-imagenet --loader-steps 1",
        "--models none --start",
    ],
)
def test_bench_smoke(tmp_path, part):
    from reslib.cli import main

    torch.use_deterministic_algorithms(False)
    common = f"--batch-sizes 16 --devices cuda --dataset synthetic --rounds 1 --seconds 0.05 --results {tmp_path}"
    assert main(["bench", *part.split(), *common.split()]) == 0
    (record,) = (tmp_path / "bench").glob("*.json")
    assert json.loads(record.read_text())["failed"] == {}
