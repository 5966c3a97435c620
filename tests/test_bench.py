"""What the benchmark measures, at tiny sizes."""

import argparse
import time

import pytest
import torch
from bench_source import CPU, make_source, record_of, set_up

from reslib import bench, compilation, data, figures, tune
from reslib.bench import compare, contenders, growth, loading, peer, records, report, roofline, scaling
from reslib.cli import main
from reslib.models import build_model

MACHINE = {"fp32_multiply_adds_per_second": 1e9, "bf16_multiply_adds_per_second": 2e9, "copy_bytes_per_second": 1e9}


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    set_up(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def source():
    return make_source()


def test_usual_loop_sees_normalised_images_and_counts_every_one(source):
    loop = peer.UsualLoop("resnet8", 8, source, CPU, workers=0)
    loop.run(3)
    assert loop.images == 4 * 8  # one step to warm up
    assert 0 <= loop.correct <= loop.images and loop.loss > 0
    x, y = next(loop.batches)
    expected = source.train.images.float().mean((0, 1, 2)) / 255
    expected = (expected - torch.tensor(peer.MEAN)) / torch.tensor(peer.STD)
    padded = (1 - 30**2 / 32**2) * 2  # black pad pulls the mean down, by no more than this
    assert x.shape == (8, 3, 32, 32) and ((x.mean((0, 2, 3)) - expected).abs() < padded + 0.2).all()
    loop.close()


def test_usual_loop_trains_the_same_network_as_reslib(source):
    loop = peer.UsualLoop("resnet8", 8, source, CPU, workers=0)
    ours = contenders.Reslib("fp32", contenders.recipe_for("resnet8", 8, source), source, CPU)
    shapes = [[tuple(p.shape) for p in c.model.parameters()] for c in (loop, ours)]
    assert shapes[0] == shapes[1]
    assert next(loop.model.parameters()).is_contiguous() and not loop.model.layer2[0].conv1.weight.is_contiguous(
        memory_format=torch.channels_last
    )
    loop.close()


def test_torchvision_is_the_baseline_where_its_files_are(data_root):
    real = data.load("cifar10", data_root)
    dataset, origin = peer.dataset(real, data_root)
    assert origin == "torchvision CIFAR10" and len(dataset) == 50_000
    assert dataset[7][0].shape == (3, 32, 32) and dataset[7][1] == int(real.train.labels[7])


def test_reslib_contender_takes_the_steps_it_says(source):
    recipe = contenders.recipe_for("resnet8", 8, source)
    made = contenders.Reslib("fp32", recipe, source, CPU)
    before = [p.detach().clone() for p in made.model.parameters()]
    assert made.iteration == 1 and made.run(2) > 0 and made.iteration == 3
    assert any((p != q).any() for p, q in zip(before, made.model.parameters(), strict=True))
    assert int(made.model.bn1.num_batches_tracked) == 3
    parts = made.parts(1)
    assert set(parts) == {"data", "forward", "backward", "optimiser", "metrics"}
    assert (
        made.iteration == int(made.model.bn1.num_batches_tracked) == 5
    )  # a step in parts is a whole step; one untimed


def test_floors_by_hand(source):
    net = build_model("resnet8", 10)
    # 16 filters: stem and two layers at 32x32; 32 at 16x16 and 64 at 8x8, two layers each
    outputs = 3 * 16 * 32 * 32 + 2 * 32 * 16 * 16 + 2 * 64 * 8 * 8
    assert roofline.convolution_outputs(net, 32) == outputs and net.training
    stem = 3 * 9 * 16 * 1024
    work = stem + 2 * 16 * 9 * 16 * 1024 + (16 + 32) * 9 * 32 * 256 + (32 + 64) * 9 * 64 * 64 + 64 * 10
    floors = roofline.floors(net, 32, 4, "bf16", MACHINE)
    assert floors["multiply_adds_per_step"] == 3 * 4 * work
    assert floors["arithmetic_floor_seconds"] == pytest.approx(12 * work / 2e9)
    assert floors["traffic_floor_seconds"] == pytest.approx(17 * outputs * 2 * 4 / 1e9)


def test_roofline_rates_are_of_the_stated_work():
    line = roofline.Roofline(CPU, size=32)
    line._best = lambda work, repeats=3: work() is None or 0.5  # half a second each, whatever it took
    line.measure()
    summary = line.summary()
    assert summary["fp32_multiply_adds_per_second"] == 32**3 / 0.5
    assert summary["copy_bytes_per_second"] == 2 * 4 * 32 * 32 / 0.5
    assert torch.equal(line.source, line.target)


class Fake:
    """A contender whose speed is known: `rate` images/s, of a machine that slows down by half in every turn."""

    precision, setup_seconds, what, device = "fp32", 5.0, "fake", CPU

    def __init__(self, name, rate, batch, turns):
        self.name, self.rate, self.batch, self.turns, self.steps = name, rate, batch, turns, []

    def run(self, steps):
        self.turns.append(self.name)
        self.steps.append(steps)
        return steps * self.batch / self.rate * 2 ** (len(self.turns) // 4)

    def parts(self, steps):
        return {"data": 1.0, "forward": 2.0}

    def evaluation(self):
        return 0.001

    def settle(self):
        pass

    def close(self):
        self.turns.append("closed")


def test_ratios_are_taken_turn_by_turn(monkeypatch, source):
    turns = []
    made = {"usual": Fake("usual", 100, 10, turns), "fast": Fake("fast", 300, 10, turns)}
    monkeypatch.setattr(compare, "contender", lambda name, *rest, **more: made[name])
    monkeypatch.setattr(compare, "Roofline", lambda device, size: roofline.Roofline(device, size=16))
    record = compare.compare(
        ["usual", "fast"], "resnet8", 10, source, CPU, rounds=4, seconds=1.0, memory=False, say=lambda text: None
    )
    assert turns[-2:] == ["closed", "closed"]
    timed = [name for name in turns[2:] if name != "closed"]
    assert timed == ["usual"] * 2 + ["fast"] * 4 + ["usual"] * 4 + ["fast"] * 4 + ["usual"] * 2
    usual, fast = record["contenders"]
    assert usual["ratio"] == 1 and 1 < fast["ratio"] < 6 and fast["ratio_low"] <= fast["ratio"] <= fast["ratio_high"]
    assert fast["share_of_matrix_rate"] == pytest.approx(
        fast["multiply_adds_per_second"] / record["machine"]["fp32_multiply_adds_per_second"]
    )
    whole = 5.0 + 64_000 * 10 / usual["images_per_second"] + 128 * 10_000 * 0.001
    assert usual["seconds_to_the_end_of_64k"] == pytest.approx(whole)


def test_a_contender_that_cannot_be_set_up_is_named_and_the_others_are_measured(monkeypatch, source):
    def made(name, *rest, **more):
        if name == "blocks":
            raise RuntimeError("InductorError: no compiler")
        return Fake(name, 100, 8, [])

    monkeypatch.setattr(compare, "contender", made)
    monkeypatch.setattr(compare, "Roofline", lambda device, size: roofline.Roofline(device, size=16))
    names, quiet = ["eager", "blocks", "freed"], {"memory": False, "say": lambda text: None}
    record = compare.compare(names, "resnet8", 8, source, CPU, 1, 0.01, **quiet)
    assert [row["contender"] for row in record["contenders"]] == ["eager", "freed"]
    assert record["failed"] == {"blocks": "RuntimeError: InductorError: no compiler"}
    assert "- blocks: failed, RuntimeError: InductorError" in "\n".join(report._comparison(record))
    with pytest.raises(RuntimeError, match="no compiler"):  # nothing to compare with
        compare.compare(names[1:], "resnet8", 8, source, CPU, 1, 0.01, **quiet)


def test_a_contender_is_not_measured_beside_itself():
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    asked = bench._checked(parser.parse_args(["--contenders", "usual,fp32,usual"]))
    assert asked["contenders"] == ["usual", "fp32"]


def test_turns_end_at_the_time_limit(monkeypatch, source):
    monkeypatch.setattr(compare, "contender", lambda name, *rest, **more: Fake(name, 100, 8, []))
    monkeypatch.setattr(compare, "Roofline", lambda device, size: roofline.Roofline(device, size=16))
    record = compare.compare(
        ["eager"], "resnet8", 8, source, CPU, 5, 0.01, memory=False, say=lambda text: None, end=time.monotonic()
    )
    assert record["rounds"] == 1 and len(record["contenders"][0]["images_per_second_turns"]) == 1


def test_parts_of_a_captured_step_are_said_to_be_eager(monkeypatch, source):
    class Captured(Fake):
        captured = True

    monkeypatch.setattr(compare, "contender", lambda name, *rest, **more: Captured(name, 100, 8, []))
    monkeypatch.setattr(compare, "Roofline", lambda device, size: roofline.Roofline(device, size=16))
    record = compare.compare(["fast"], "resnet8", 8, source, CPU, 1, 0.01, memory=False, say=lambda text: None)
    assert "Data to metrics of fast: of eager steps" in "\n".join(report._comparison(record))


def test_scaling_goes_on_after_what_does_not_fit(source):
    records = scaling.scaling(
        source, CPU, 1, 0.01, memory=False, depths=[8], batches=[4], widths=[4, 70000], say=lambda text: None
    )
    assert [r["axis"] for r in records] == ["depth", "batch", "width", "width"]
    assert all(r["images_per_second"] > 0 for r in records[:3])
    assert "failed" in records[3] and "images_per_second" not in records[3]


def test_scaling_leaves_out_what_main_memory_cannot_hold(monkeypatch, source):
    """Reckoned from the smaller point of the same axis; a batch is not held back by what depth needs."""
    asked = []

    def one(model, batch, *rest):
        asked.append((model, batch))
        return {"images_per_second": 1.0, "peak_memory_mib": {"process": 1024.0}}

    monkeypatch.setattr(scaling, "_one", one)
    monkeypatch.setattr(scaling, "available_memory", lambda: 9 * 2**30)
    axes = {"depths": [20, 110, 218], "batches": [4096], "widths": [16]}
    said = []
    points = scaling.scaling(source, CPU, 1, 0.01, **axes, say=said.append)
    assert asked == [("resnet20", 128), ("resnet110", 128), ("resnet218", 128), ("resnet20", 4096), ("resnet20", 128)]
    asked.clear()
    axes = {"depths": [20, 218], "batches": [4096], "widths": [16]}
    points = scaling.scaling(source, CPU, 1, 0.01, **axes, say=said.append)
    assert asked == [("resnet20", 128), ("resnet20", 4096), ("resnet20", 128)]
    assert points[1]["failed"] == "left out: about 10.9 GiB needed, 9.0 GiB free"
    monkeypatch.setattr(scaling, "available_memory", lambda: None)  # not said by the system
    assert scaling.scaling(source, CPU, 1, 0.01, depths=[20, 218], batches=[4], widths=[4], say=said.append)[1][
        "failed"
    ]


def test_records_become_frames_and_figures(tmp_path, monkeypatch, source):
    monkeypatch.setattr(data, "load", lambda name, root: source)
    monkeypatch.setattr(compare, "Roofline", lambda device, size: roofline.Roofline(device, size=64))
    argv = "bench --models resnet8 --batch-sizes 8 --devices cpu --dataset synthetic --rounds 2 --seconds 0.01"
    argv += f" --no-memory --contenders eager,contiguous,freed,convolved --results {tmp_path}"
    argv += " --scaling --depths 8,14 --batches 4 --widths 70000"
    assert main(argv.split()) == 0
    loaded = records.load_records(tmp_path / "bench", tmp_path / "bench", tmp_path / "none")
    assert len(loaded) == 1
    frame = records.comparisons(loaded)
    assert (
        frame.contender.tolist() == ["eager", "contiguous", "freed", "convolved"]
        and (frame.images_per_second > 0).all()
    )
    assert (frame.low <= frame.images_per_second).all() and "threads" not in frame.device[0]
    assert "contiguous" in frame.what[1]
    parts = frame[[f"{name} (ms)" for name in report.PARTS]]
    assert (parts.sum(axis=1) > 0).all()
    table = records.tried(loaded)
    assert table["measured, of eager"].tolist() == frame.ratio[1:].tolist() and frame.ratio[0] == 1
    points = growth.scaling(loaded)
    assert points.axis.tolist() == ["depth", "depth", "batch", "width"] and points.failed.iloc[-1]
    for figure in (figures.contenders_figure(frame), figures.scaling_figure(points)):
        assert figure._repr_png_()[:4] == b"\x89PNG"
    part = loaded[0]["comparisons"][0]["contenders"][0] | {"parts_are_of_the_eager_step": True}
    whole = records.comparisons([loaded[0] | {"comparisons": [loaded[0]["comparisons"][0] | {"contenders": [part]}]}])
    named = figures.contenders_figure(frame.assign(contender=["fp32", *frame.contender[1:]], precision="fp32"))
    assert [t.get_text() for t in named.axes[0].get_yticklabels()][:2] == ["fp32", "contiguous, fp32"]
    bars = figures.contenders_figure(whole).axes[1].patches
    assert max(bar.get_width() for bar in bars) == pytest.approx(8000 / whole.images_per_second[0])  # ms of a step
    assert sum(bar.get_width() > 0 for bar in bars) == 1, "parts of another step are drawn"
    again = records.comparisons([*loaded, dict(loaded[0], date="2999-01-01", file="later.json")])
    assert len(again) == 8 and set(records.latest(again, "eager").file) == {"later.json"}
    assert records.latest(again, "usual").empty
    threads = again.assign(threads=again["file"].map({"later.json": 16}).fillna(2))
    assert len(records.latest(threads, "eager")) == 8  # of a processor
    of_gpu = records.latest(threads.assign(kind="cuda"), "eager")
    assert len(of_gpu) == 4 and set(of_gpu.file) == {"later.json"}, "a GPU beside another processor is the same one"
    (tmp_path / "bench" / "other.json").write_text("{}")
    with pytest.raises(tune.UserError, match="other.json"):
        records.load_records(tmp_path / "bench")


def test_loading_measures_all_three():
    record = loading.loading(
        "resnet18", "synthetic-imagenet", CPU, 1, 1, preset="smoke", say=lambda text: None, batch_size=4
    )
    assert set(record["images_per_second"]) == {"loader_alone", "model_alone", "both"}
    assert all(rate > 0 for rate in record["images_per_second"].values())
    rates = {name: [10.0 * number, 12.0 * number] for number, name in enumerate(record["images_per_second"], 1)}
    record |= {"images_per_second_turns": rates, "images_per_second": {name: turns[1] for name, turns in rates.items()}}
    whole = record_of(loading=[record])
    frame = records.loading([whole | {"date": "2026-01-01"}, whole])  # measured again: the last counts
    assert len(frame) == 3 and set(frame.date) == {"2026-01-02"} and set(frame.device) == {"here"}
    (ax,) = figures.loading_figure(frame).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["loader alone", "network alone", "both"]
    assert [bar.get_width() for bar in ax.patches] == [12, 24, 36] and "ResNet-18 on synthetic" in ax.get_title("left")


def test_without_a_compiler_eager_is_used_and_said(monkeypatch, source):
    monkeypatch.setenv("CXX", "no-such-compiler")
    compilation.cannot_compile.cache_clear()
    said = []
    loss = compilation.CompiledLoss(lambda x, y, progress: (x.sum(), x), said.append)
    assert loss(torch.ones(2), None, None)[0] == 2 and loss.call is loss.eager
    assert "no-such-compiler" in said[0]
    compilation.cannot_compile.cache_clear()


def test_compilation_that_fails_falls_back_once(monkeypatch):
    monkeypatch.setattr(compilation, "cannot_compile", lambda: "")
    monkeypatch.setattr(torch, "compile", lambda *a, **o: lambda *x: (_ for _ in ()).throw(RuntimeError("broken")))
    said = []
    loss = compilation.CompiledLoss(lambda x, y, progress: (x.sum(), x), said.append)
    assert [loss(torch.ones(2), None, None)[0] for _ in range(2)] == [2, 2] and said == ["not compiled: broken"]
