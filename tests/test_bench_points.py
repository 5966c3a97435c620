"""How cost grows and what seeds cost, of several records: whose points stand on which axis, and which are the last."""

import pandas as pd
from bench_source import record_of

from reslib import figures
from reslib.bench import growth, records


def on_gpu(file: str, threads: int, **parts) -> dict:
    environment = {"device_name": "GPU", "device": "cuda", "torch": "2.14.1", "commit": "c" * 40, "threads": threads}
    return record_of(**{"environment": environment, "file": file, "scaling": [], "comparisons": []} | parts)


def point(axis, value, rate, batch=128, width=16, **more):
    name = f"resnet{value if axis == 'depth' else 20}"
    rates = {"images_per_second": rate, "images_per_second_turns": [rate]} if rate else {"failed": "no memory"}
    return {"axis": axis, "value": value, "model": name, "batch_size": batch, "width": width} | rates | more


def comparison(model, rate, contender="fast", batch=128) -> dict:
    row = {"contender": contender, "what": "", "precision": "bf16", "images_per_second": rate, "ratio": 2.0}
    row |= {"images_per_second_turns": [rate], "ratio_low": 2.0, "ratio_high": 2.0, "setup_seconds": 1.0}
    row |= {"share_of_matrix_rate": 0.1, "seconds_to_the_end_of_64k": 60.0, "parts_are_of_the_eager_step": True}
    machine = {"fp32_multiply_adds_per_second": 1.0, "bf16_multiply_adds_per_second": 2.0}
    return {"model": model, "batch_size": batch, "machine": machine, "contenders": [row | {"parts": {}}]}


def rates_of(frame: pd.DataFrame) -> dict:
    known = frame[frame["failed"] == ""]
    assert not known.duplicated(["device", "axis", "value"]).any()
    return {(r.axis, r.value): r.images_per_second for r in known.itertuples()}


def test_the_point_in_which_axes_cross_stands_on_each():
    measured = [point("depth", 20, 1000.0), point("batch", 256, 1500.0, batch=256), point("width", 8, None, width=8)]
    frame = growth.scaling([on_gpu("a.json", 16, scaling=measured)])
    assert rates_of(frame) == {("depth", 20): 1000.0, ("batch", 256): 1500.0, ("batch", 128): 1000.0}
    assert frame[frame.failed != ""].value.tolist() == [8]
    own = [*measured, point("batch", 128, 1100.0)]
    assert rates_of(growth.scaling([on_gpu("a.json", 16, scaling=own)]))["batch", 128] == 1100.0


def test_what_failed_where_axes_cross_is_left_out_where_it_is_known():
    failed = [point("batch", 128, None), point("width", 16, None)]
    frame = growth.scaling([on_gpu("a.json", 16, scaling=[point("depth", 20, 1000.0), *failed])])
    assert rates_of(frame) == {("depth", 20): 1000.0} and len(frame) == 1
    assert len(growth.scaling([on_gpu("a.json", 16, scaling=failed)])) == 2
    more = [*failed, point("width", 32, 400.0, width=32)]
    frame = growth.scaling([on_gpu("a.json", 16, scaling=[point("depth", 20, 1000.0), *more])])
    assert rates_of(frame)["width", 16] == 1000.0 and len(frame) == 3


def test_depths_of_comparisons_fill_the_axis():
    """A point of --scaling is preferred, whenever it was measured."""
    compared = [comparison("resnet20", 900.0), comparison("resnet110", 200.0), comparison("resnet56", 1.0, "usual")]
    compared += [comparison("plain32", 1.0), comparison("resnet44", 1.0, batch=64), comparison("resnet50", 1.0)]
    made = [on_gpu("a.json", 16, scaling=[point("depth", 20, 1000.0)]), on_gpu("b.json", 2, comparisons=compared)]
    frame = growth.scaling(made)
    assert rates_of(frame) == {("depth", 20): 1000.0, ("depth", 110): 200.0}
    alone = [on_gpu("b.json", 2, comparisons=compared[:1])]
    assert growth.scaling(alone).empty  # one point shows no growth
    assert rates_of(growth.scaling(made[1:])) == {("depth", 20): 900.0, ("depth", 110): 200.0}
    assert set(frame.file) == {"a.json", "b.json"} and frame.peak_memory_mib.isna().all()


def test_a_gpu_is_the_same_beside_another_processor():
    older, newer = (on_gpu(f"{n}.json", t, scaling=[point("depth", 20, r)]) for n, t, r in ((1, 2, 5.0), (2, 16, 7.0)))
    assert rates_of(growth.scaling([older, newer])) == {("depth", 20): 7.0}
    part = {"model": "resnet20", "batch_size": 128, "seeds": 5, "precision": "bf16", "processes_at_once": 5}
    ways = [part | {"images_per_second": {"together": r}, "cost_in_runs": {"together": c}} for r, c in ((9, 3), (8, 4))]
    ways[0]["images_per_second"]["stacked"] = ways[0]["cost_in_runs"]["stacked"] = 1
    frame = records.seeds([older | {"seeds": ways[:1]}, newer | {"seeds": ways[1:]}])
    assert frame[["way", "cost_in_runs"]].values.tolist() == [["together", 4]], "a way of another single run"
    processors = [
        record_of(seeds=[way], file=f"{threads}.json", environment=record_of()["environment"] | {"threads": threads})
        for way, threads in zip(ways, (1, 2), strict=True)
    ]
    assert records.seeds(processors).cost_in_runs.tolist() == [3, 1, 4]


def test_a_wide_axis_has_few_ticks():
    """Labels of five values in each of five decades would lie on each other."""
    wide = [point("depth", 20, 100_000.0), point("depth", 56, 30_000.0), point("depth", 1202, 3.0)]
    figure = figures.scaling_figure(growth.scaling([on_gpu("a.json", 16, scaling=wide)]))
    figure.canvas.draw()
    axes = figure.axes[0]
    low, high = axes.get_ylim()
    boxes = [
        label.get_window_extent()
        for label in axes.get_yticklabels()
        if low <= label.get_position()[1] <= high and label.get_text()
    ]
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) > 2 and all(a.y1 <= b.y0 for a, b in zip(boxes, boxes[1:], strict=False))


def test_what_failed_is_said_with_the_device_where_there_are_several():
    failed = record_of(scaling=[point("width", 8, None, width=8)], comparisons=[])
    frame = growth.scaling([on_gpu("a.json", 16, scaling=[point("depth", 20, 5.0)]), failed])
    words = " ".join(text.get_text() for text in figures.scaling_figure(frame).texts)
    assert "width 8 (here): no memory" in " ".join(words.split())
