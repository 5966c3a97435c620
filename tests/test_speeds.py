"""Speeds from the records: of the machine at hand, and of each device that a run was trained on."""

import json

import pytest

from reslib import speeds
from reslib.speeds import Measurement, main_device


def test_speeds_are_those_of_this_machine_where_it_has_any():
    found = [Measurement("resnet20", 1, 1.0, "quick", name, images) for name, images in (
        ("Big GPU", 9e6), ("A CPU (1 thread)", 1e6), ("A CPU (2 threads)", 2e6))]  # fmt: skip
    assert main_device(found) == main_device(found, "Other CPU (4 threads)") == "Big GPU"
    assert main_device(found, "A CPU (8 threads)") == "A CPU (2 threads)"


def test_a_run_of_two_devices_has_a_speed_on_each(tmp_path):
    """1,000 iterations took a second on a GPU, after 2 s of set-up, and ten on a processor."""
    run = tmp_path / "paper" / "runs" / "resnet32-cifar10-s0-00000000"
    run.mkdir(parents=True)
    rows = [(1000, 3.0), (2000, 4.0), (3000, 5.0), (4000, 17.0), (5000, 27.0), (6000, 37.0)]
    (run / "metrics.csv").write_text("iteration,seconds\n" + "".join(f"{i},{t}\n" for i, t in rows))
    sessions = [
        {"from_iteration": 0, "to_iteration": 3200, "device_name": "GPU"},
        {"from_iteration": 3200, "to_iteration": 3200, "device_name": "Other"},  # took no step
        {"from_iteration": 3200, "to_iteration": 6000, "device_name": "CPU (2 threads)"},
    ]
    summary = {"images_per_second": 6000 * 128 / 37, "seconds": 37.0, "iterations": 6000, "multiply_adds": 70}
    summary |= {"device_name": "CPU (2 threads)", "sessions": sessions}
    (run / "summary.json").write_text(json.dumps(summary))
    gpu, cpu = speeds.measurements(tmp_path, "paper")
    assert (gpu.device, cpu.device) == ("GPU", "CPU (2 threads)")
    assert (gpu.images_per_second, cpu.images_per_second) == pytest.approx((128_000, 12_800))
    (run / "summary.json").write_text(json.dumps(summary | {"sessions": sessions[2:]}))
    (alone,) = speeds.measurements(tmp_path, "paper")
    assert alone.images_per_second == pytest.approx(6000 * 128 / 37) and alone.device == "CPU (2 threads)"
    (run / "metrics.csv").write_text("iteration,seconds\n1000,3.0\n6000,37.0\n")
    (run / "summary.json").write_text(json.dumps(summary))
    assert not speeds.measurements(tmp_path, "paper")  # no two evaluations in either part: nothing is known
