"""When a step on the processor is compiled: only after a trial on the network itself, which leaves no trace."""

import dataclasses
import json

import pytest
import torch
from own_models import Small
from training import rows_of, silent, tiny, train_in_pieces, weights_of

from reslib import compilation, trials, tune
from reslib.compilation import CompiledLoss, Trial, accelerate, known_trials, try_compiled
from reslib.engine import make_optimizer, make_step
from reslib.job import Execution
from reslib.models import build_model
from reslib.passes import TOLERANCE, Passes, difference
from reslib.train import train

CPU = torch.device("cpu")
CHOSEN = tune.Choice("fp32", 1)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RESLIB_TUNE", raising=False)
    monkeypatch.setattr(compilation, "cannot_compile", lambda: "")


@pytest.fixture
def not_really(monkeypatch):
    """torch.compile gives back what it was given, and counts."""
    calls = []
    monkeypatch.setattr(torch, "compile", lambda loss, **options: calls.append(loss) or loss)
    return calls


def stepper(model="resnet8", **changes):
    recipe = tiny(model=model, **changes)
    torch.manual_seed(0)
    net = (build_model(model, 10, "A", width=4) if model == "resnet8" else Small()).train()
    return make_step(recipe, net, make_optimizer(recipe, net, CPU), CPU, "fp32")


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 3, 32, 32, generator=generator), torch.randint(10, (8,), generator=generator)


def timed(monkeypatch, eager, compiled):
    """Passes take as long as the test says."""
    taken = {False: eager, True: compiled}
    monkeypatch.setattr(Passes, "seconds", lambda self, loss: taken[isinstance(loss, CompiledLoss)])


def test_a_trial_leaves_no_trace(not_really):
    step = stepper()
    before = {k: v.clone() for k, v in step.model.state_dict().items()}
    state = torch.get_rng_state()
    loss, trial = try_compiled(Passes(step, *batch()), silent)
    assert loss is not None and trial.compiled > 0 and trial.layers == 8
    assert all(torch.equal(v, before[k]) for k, v in step.model.state_dict().items())
    assert all(p.grad is None for p in step.model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_compiled_pass_that_computes_something_else_is_refused(monkeypatch):
    def wrong(loss, **options):
        return lambda x, y, progress: tuple(1.05 * value for value in loss(x, y, progress))

    monkeypatch.setattr(torch, "compile", wrong)
    said = []
    loss, trial = try_compiled(Passes(stepper(), *batch()), said.append)
    assert loss is None and not trial.wins and "off by 5.0%" in said[-1]


def test_a_net_that_multiplies_rounding_errors_is_judged_by_double_precision(monkeypatch):
    """Two right answers of plain-56 in fp32 are far apart; a compiled pass that is wrong is further off than both."""
    recipe = tiny(model="plain56")
    torch.manual_seed(0)
    net = build_model("plain56", 10, "A", width=4).train()
    step, said, (x, y) = make_step(recipe, net, make_optimizer(recipe, net, CPU), CPU, "fp32"), [], batch()
    rounded = x * (1 + 2.0**-23)  # by the last bit
    monkeypatch.setattr(torch, "compile", lambda loss, **options: lambda _, y, progress: loss(rounded, y, progress))
    passes = Passes(step, x, y)
    assert difference(passes.run(step.loss), passes.run(CompiledLoss(step.loss))) > TOLERANCE["fp32"]
    loss, trial = try_compiled(passes, said.append, rounds=1)
    assert loss is not None and trial.compiled and said == []

    def doubled_at_the_end(loss, **options):
        def call(x, y, progress):
            value, logits = loss(x, y, progress)
            return value.detach() + 2 * (value - value.detach()), logits  # the right loss, twice the gradient

        return call

    monkeypatch.setattr(torch, "compile", doubled_at_the_end)
    loss, trial = try_compiled(passes, said.append, rounds=1)
    assert loss is None and trial.compiled is None and "off by 100.0%" in said[-1]


def test_difference_by_hand():
    mine, theirs = (0.0, 2.0, [torch.tensor([3.0, 4.0])]), (0.0, 2.1, [torch.tensor([3.0, 3.0])])
    assert difference(mine, theirs) == pytest.approx(0.2) and difference(theirs, theirs) == 0
    assert difference(mine, (0.0, 2.0, [])) == float("inf")


@pytest.mark.parametrize(("compiled", "wins"), [(0.5, True), (0.99, False), (2.0, False)])
def test_the_faster_one_is_kept_and_remembered(monkeypatch, not_really, compiled, wins):
    timed(monkeypatch, 1.0, compiled)
    step = stepper()
    evidence = accelerate(step, CHOSEN, batch, 10_000, say=silent)
    assert evidence["compiled"] is wins and isinstance(step.loss, CompiledLoss) is wins
    assert step.way == ("compiled" if wins else "eager")
    (trial,) = known_trials().values()
    assert trial.wins is wins and trial.eager == 1.0
    again = accelerate(stepper(), CHOSEN, batch, 10_000, say=silent)
    assert again["compiled"] is wins and "measured before" in again["why"]
    assert len(not_really) == 1 + wins  # a loser is not compiled again
    other = accelerate(stepper(batch_size=4), CHOSEN, lambda: [t[:4] for t in batch()], 10_000, say=silent)
    assert "measured before" not in other["why"] and len(known_trials()) == 2


def test_a_run_too_short_to_win_the_compilation_back_is_not_compiled(monkeypatch, not_really):
    timed(monkeypatch, 0.1, 0.05)
    assert accelerate(stepper(), CHOSEN, batch, 2000, say=silent)["compiled"] is False  # 200 s, 8 layers of 2 s
    assert accelerate(stepper(), CHOSEN, batch, 4000, limit=300.0, say=silent)["compiled"] is False
    assert not not_really
    assert accelerate(stepper(), CHOSEN, batch, 4000, say=silent)["compiled"] is True  # 400 s


def test_what_is_never_compiled(monkeypatch, not_really):
    timed(monkeypatch, 1.0, 0.1)

    def why(step, **changes):
        evidence = accelerate(step, dataclasses.replace(CHOSEN, **changes), batch, 10_000, say=silent)
        assert not evidence["compiled"]
        return evidence["why"]

    assert "one's own" in why(stepper("own_models:Small"))
    assert "RESLIB_TUNE" in why(stepper(), compile=False, origin="given")
    sparing = stepper()
    sparing.model.activation_checkpointing = True
    assert "checkpointing" in why(sparing)
    monkeypatch.setattr(compilation, "cannot_compile", lambda: "no C++ compiler")
    assert why(stepper()) == "no C++ compiler"
    assert not not_really


def test_a_network_of_ones_own_may_say_that_it_can(monkeypatch, not_really):
    timed(monkeypatch, 1.0, 0.1)
    step = stepper("own_models:Small")
    step.model.compilable = True
    assert accelerate(step, CHOSEN, batch, 10_000, say=silent)["compiled"]


def test_a_run_goes_on_as_it_was_begun(monkeypatch, not_really):
    timed(monkeypatch, 1.0, 0.1)
    begun = {"threads": 1, "layout": "channels-last", "compiled": False}
    assert accelerate(stepper(), CHOSEN, batch, 10_000, before=begun, say=silent)["why"] == "as the run was begun"
    timed(monkeypatch, 1.0, 2.0)
    compiled = begun | {"compiled": True}
    assert accelerate(stepper(), CHOSEN, batch, 3, before=compiled, say=silent)["compiled"]  # however little is left
    said = []
    monkeypatch.setattr(compilation, "cannot_compile", lambda: "no C++ compiler")
    assert not accelerate(stepper(), CHOSEN, batch, 3, before=compiled, say=said.append)["compiled"]
    assert said[0] == "not compiled: no C++ compiler" and "begun with compiled True" in said[1]


def test_threads_of_the_run_stay_unless_asked_for(monkeypatch):
    monkeypatch.setattr(compilation, "cores", lambda: 8)
    before = torch.get_num_threads()
    begun = {"threads": 2, "layout": "channels-last", "compiled": False}
    try:
        fixed = dataclasses.replace(CHOSEN, compile=False)
        assert accelerate(stepper(), fixed, batch, 9, before=begun, say=silent)["threads"] == 2
        assert torch.get_num_threads() == 2
        pinned = dataclasses.replace(fixed, pinned=True)
        assert accelerate(stepper(), pinned, batch, 9, before=begun, say=silent)["threads"] == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"KEY": {"a": 3}}', '{"KEY": {"a": {"eager": 1}}}'])
def test_a_damaged_memory_of_trials_counts_as_empty(text):
    trials.path_of("compile.json").parent.mkdir(parents=True)
    key = json.dumps(trials.here())[1:-1]
    trials.path_of("compile.json").write_text(text.replace("KEY", key))
    assert known_trials() == {}
    compilation.remember("net", Trial(1.0, 0.5, 9.0, 8))
    assert known_trials() == {"net": Trial(1.0, 0.5, 9.0, 8)}


# --- In training ------------------------------------------------------------------------------------------------------

EXECUTION = Execution(device="cpu")
NET = {"model": "resnet8", "options": "width=4", "iterations": 6, "eval_every": 3, "batch_size": 4, "train_size": 16}


def test_short_and_deterministic_runs_measure_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "measure", lambda: pytest.fail("measured"))
    summary = train(tiny(precision="auto"), tmp_path, execution=EXECUTION, say=silent)
    assert summary["sessions"][0]["speed"]["why"] == "short or deterministic"
    assert summary["sessions"][0]["step"] == "eager" and summary["precision"] == "fp32"
    monkeypatch.setattr(tune, "LONG", 1)
    exact = dataclasses.replace(EXECUTION, deterministic=True)
    assert train(tiny(precision="auto"), tmp_path / "exact", execution=exact, say=silent)["precision"] == "fp32"
    monkeypatch.setenv("RESLIB_TUNE", "precision=bf16")
    assert train(tiny(precision="auto"), tmp_path / "given", execution=exact, say=silent)["precision"] == "bf16"
    assert tune.choice_for(64_000, deterministic=True).compile is False


def test_the_choice_reaches_the_run_and_its_record(tmp_path, monkeypatch):
    before, said = torch.get_num_threads(), []
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1,layout=contiguous,compile=false")
    summary = train(tiny(**NET), tmp_path, execution=EXECUTION, say=said.append)
    session = summary["sessions"][0]
    assert session["threads"] == 1 and session["speed"]["layout"] == "contiguous"
    assert any("fp32, contiguous, 1 thread, not compiled (as RESLIB_TUNE says)" in line for line in said)
    assert torch.get_num_threads() == before
    monkeypatch.setenv("RESLIB_TUNE", "threads=1,compile=false")
    other = train(tiny(**NET), tmp_path / "other", execution=EXECUTION, say=silent)
    assert other["train_loss"] == pytest.approx(summary["train_loss"], rel=1e-4)


def test_threads_shared_out_by_an_executor_stand_above_the_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=2,compile=false")
    summary = train(tiny(), tmp_path, execution=Execution(device="cpu", threads=1), say=silent)
    assert summary["sessions"][0]["speed"]["threads"] == summary["sessions"][0]["threads"] == 1


@pytest.mark.skipif(bool(compilation.cannot_compile()), reason="no C++ compiler")
def test_a_compiled_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    """The only test here that really compiles, a net of one layer: seconds."""
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1,compile=true")
    recipe = tiny(model="own_models:Compilable", iterations=6, options="dropout=0.5")
    whole = train(recipe, tmp_path / "whole", execution=EXECUTION, say=silent)
    assert whole["sessions"][0]["step"] == "compiled" and whole["sessions"][0]["speed"]["set_up_seconds"] > 0.1
    pieces, sessions = train_in_pieces(monkeypatch, recipe, tmp_path / "pieces", 4, EXECUTION)
    assert sessions == 2 and [s["step"] for s in pieces["sessions"]] == ["compiled"] * 2
    assert weights_of(tmp_path / "pieces", recipe) == weights_of(tmp_path / "whole", recipe)
    assert rows_of(tmp_path / "pieces", recipe) == rows_of(tmp_path / "whole", recipe)
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1,compile=false")
    eager = train(recipe, tmp_path / "eager", execution=EXECUTION, say=silent)
    assert eager["sessions"][0]["step"] == "eager"
    assert eager["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-4)  # dropout's masks are the same


def test_more_networks_are_compiled_than_torch_allows_for_one_piece_of_code():
    """Beyond its limit of eight torch goes on eagerly, without a word in a record."""
    import torch._dynamo.config as config

    compiled = []
    call = torch.compile(lambda x: x + 1, dynamic=False, backend=lambda graph, inputs: compiled.append(1) or graph)
    with config.patch(recompile_limit=8):
        compilation.allow_many()
        for size in range(2, 14):
            call(torch.zeros(size))
    assert len(compiled) == 12
