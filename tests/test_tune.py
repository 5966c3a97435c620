"""The settings of a processor: measured once, cached, overridden; a damaged cache does no harm."""

import json

import pytest
import torch

from reslib import compilation, numerics, tune


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32,threads=1,compile=false")


@pytest.fixture
def measured(monkeypatch):
    """Measuring without the time it takes: calls are counted, and bf16 wins."""
    monkeypatch.delenv("RESLIB_TUNE")
    calls = []
    result = tune.Choice("bf16", 1, seconds={"fp32, 1 thread": 2.0, "bf16, 1 thread": 1.0})
    monkeypatch.setattr(tune, "measure", lambda: calls.append(1) or result)
    return calls


def test_measured_once_then_cached(measured):
    assert tune.choice().origin == "measured" and tune.choice().origin == "cached" and len(measured) == 1
    assert tune.choice().precision == "bf16" and "bf16, 1 thread 1000 ms" in str(tune.choice())


def test_forgotten_choices_are_measured_again(measured):
    tune.choice()
    compilation.remember("net", compilation.Trial(1.0, 0.5, 9.0, 8))
    tune.forget()
    tune.forget()  # nothing left to remove
    assert not compilation.known_trials() and tune.choice().origin == "measured" and len(measured) == 2


def test_another_machine_measures_for_itself(measured, monkeypatch):
    tune.choice()
    monkeypatch.setattr(tune, "machine_key", lambda: "another processor")
    tune.choice()
    assert len(measured) == 2 and len(json.loads(tune.cache_file().read_text())) == 2


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"KEY": {"precision": "fp8", "threads": 1, "layout": "contiguous"}}', '{"KEY": 3}']
)
def test_damaged_cache_is_measured_again(measured, text):
    tune.cache_file().parent.mkdir(parents=True)
    tune.cache_file().write_text(text.replace("KEY", tune.machine_key().replace('"', "")))
    assert tune.choice().origin == "measured"


def test_cache_that_cannot_be_written_is_fine(measured, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESLIB_CACHE", str(tmp_path / "file" / "below"))
    assert tune.choice().precision == "bf16" and tune.choice().precision == "bf16" and len(measured) == 2


def test_environment_overrides(measured, monkeypatch):
    monkeypatch.setenv("RESLIB_TUNE", "precision=fp32")
    assert (tune.choice().precision, tune.choice().threads, tune.choice().origin) == ("fp32", 1, "given")
    monkeypatch.setenv("RESLIB_TUNE", "measure")
    before = len(measured)
    tune.choice()
    assert len(measured) == before + 1
    for wrong, said in (
        ("precision=fp8", "fp8"),
        ("threads=0", "0"),
        ("speed=high", "speed"),
        ("compile=7", "7"),
        ("layout=nhwc", "nhwc"),
    ):
        monkeypatch.setenv("RESLIB_TUNE", wrong)
        with pytest.raises(tune.UserError, match=said):
            tune.choice()


def test_a_precision_given_after_another_run_counts(measured, monkeypatch):
    """As in a notebook whose second cell sets RESLIB_TUNE: what the first run measured does not stand above it."""
    numerics._measured_precision.cache_clear()
    cpu = torch.device("cpu")
    try:
        assert numerics.resolve_precision("auto", cpu) == "bf16" and len(measured) == 1
        for precision in ("fp32", "bf16"):
            monkeypatch.setenv("RESLIB_TUNE", f"precision={precision},threads=1")
            assert numerics.resolve_precision("auto", cpu) == precision
        monkeypatch.delenv("RESLIB_TUNE")
        assert numerics.resolve_precision("auto", cpu) == "bf16" and len(measured) == 1
    finally:
        numerics._measured_precision.cache_clear()


def test_measuring_leaves_threads_and_random_state_alone(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    chosen = tune.measure(rounds=1)
    assert chosen.precision in tune.PRECISIONS and chosen.layout in tune.LAYOUTS
    assert set(chosen.seconds) == {
        "fp32, 1 thread", "bf16, 1 thread", f"{chosen.precision} contiguous, 1 thread"
    }  # fmt: skip
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)


def test_one_thread_is_a_candidate_on_two_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(tune, "cores", lambda: 2)
    monkeypatch.setattr(tune, "DEFAULT_THREADS", 2)
    monkeypatch.setattr(tune, "Probe", lambda *words, **options: None)
    monkeypatch.setattr(tune, "_compare", lambda probes, rounds, threads, clock=None: dict.fromkeys(probes, threads))
    chosen = tune.measure(rounds=1)
    assert chosen.threads == 1 and {"fp32, 1 thread, wall clock", "fp32, 2 threads"} <= set(chosen.seconds)
