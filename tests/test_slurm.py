"""The array recipe for Slurm, run by bash with a stand-in for `reslib` and `scontrol` (Slurm itself is not here)."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from reslib.presets import PRESETS
from reslib.studies import cifar10_table, figure6

SCRIPT = Path(__file__).resolve().parent.parent / "slurm" / "reslib.sbatch"
pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")


@pytest.fixture
def site(tmp_path):
    """A folder with an environment whose `reslib` writes down what it is asked; SLOW makes it wait for SIGTERM."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f"PATH={programs}:$PATH\n")
    (programs / "reslib").write_text(
        "#!/bin/bash\necho \"$RESLIB_PRESET: $*\" >> asked\n"
        '[ -z "${SLOW:-}" ] && exit\ntrap "echo checkpoint >> asked; exit 1" TERM\ntouch ready\n'
        "for i in {1..200}; do sleep 0.1; done\n"
    )  # fmt: skip
    (programs / "scontrol").write_text('#!/bin/bash\necho "scontrol $*" >> asked\n')
    for name in ("reslib", "scontrol"):
        (programs / name).chmod(0o755)
    return tmp_path


def start(site, task, **more):
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "77", "HOME": str(site)}
    environment = {k: v for k, v in environment.items() if not k.startswith("RESLIB_")} | more
    return subprocess.Popen(["bash", str(SCRIPT)], cwd=site, env=environment, stderr=subprocess.PIPE, text=True)


def wait_until_ready(site):
    end = time.monotonic() + 10
    while not (site / "ready").exists():
        assert time.monotonic() < end, "the stand-in did not start"
        time.sleep(0.05)


def test_the_array_covers_every_network_of_the_paper(site):
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)", SCRIPT.read_text()).groups())
    for task in range(first, last + 1):
        assert start(site, task).wait(30) == 0
    asked = (site / "asked").read_text().splitlines()
    assert len(asked) == last + 1 and all(line.startswith("paper: reproduce ") for line in asked)
    models = {line.split("--models ")[1] for line in asked if "--models" in line}
    studies = (figure6, cifar10_table)
    assert models == {r.model for study in studies for r in study(PRESETS["paper"], "cifar10")}
    assert {line.split()[2] for line in asked if "--models" not in line} == {"fidelity", "future_work"}
    late = start(site, last + 1)
    assert late.wait(30) == 2 and f"array task {last + 1}" in late.stderr.read()


def test_the_commands_are_ones_that_reslib_takes(site, monkeypatch):
    import argparse

    from reslib.commands import reproduce

    start(site, 0).wait(30)
    start(site, 17).wait(30)
    start(site, 0, RESLIB_NOTEBOOKS_TOO="1").wait(30)
    parser = argparse.ArgumentParser()
    reproduce.add_arguments(parser)
    for line in (site / "asked").read_text().splitlines():
        parser.parse_args(line.split()[2:])


def test_the_time_limit_requeues(site):
    task = start(site, 3, SLOW="1")
    wait_until_ready(site)
    task.send_signal(signal.SIGTERM)
    assert task.wait(30) == 1
    assert (site / "asked").read_text().splitlines()[1:] == ["checkpoint", "scontrol requeue 77_3"]


def start_imagenet(site, *arguments, **more):
    program = site / ".venv" / "bin" / "srun"
    program.write_text(
        '#!/bin/bash\necho "$RESLIB_PRESET: srun $*" >> asked\n'
        '[ -z "${SLOW:-}" ] && exit\ntrap "echo checkpoint >> asked; exit 1" TERM\ntouch ready\n'
        "for i in {1..200}; do sleep 0.1; done\n"
    )
    program.chmod(0o755)
    script = SCRIPT.with_name("imagenet.sbatch")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RESLIB_", "SLURM_"))}
    environment |= {"HOME": str(site), "SLURM_JOB_ID": "88", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    command = ["bash", str(script), *arguments]
    return subprocess.Popen(command, cwd=site, env=environment | more, stderr=subprocess.PIPE, text=True)


def test_an_imagenet_job_starts_torchrun_on_every_node(site):
    import argparse

    from reslib.commands import train
    from reslib.presets import preset_of

    assert start_imagenet(site, "resnet50", "--seed", "1").wait(30) == 0
    line = (site / "asked").read_text().splitlines()[-1]
    assert line.startswith("paper+accumulation=16: srun ") and "--nnodes 2 --nproc-per-node 8 " in line
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    asked = parser.parse_args(line.split("-m reslib train ")[1].split())
    assert (asked.model, asked.field_accumulation, asked.field_seed) == ("resnet50", None, "1")
    assert preset_of("paper+accumulation=16").name == "paper+accumulation=16"  # no table takes --accumulation 16
    assert start_imagenet(site, "resnet50", RESLIB_PRESET="paper+schedule=steps").wait(30) == 0
    assert (site / "asked").read_text().splitlines()[-1].startswith("paper+schedule=steps,accumulation=16: srun ")
    for given, nodes, preset in (
        ("paper", "1", "paper"), ("paper+accumulation=32", "2", "paper+accumulation=32"),
        ("quick", "1", "quick+accumulation=8"), ("quick", "2", "quick+accumulation=16"),
    ):  # fmt: skip
        assert start_imagenet(site, "resnet50", RESLIB_PRESET=given, SLURM_JOB_NUM_NODES=nodes).wait(30) == 0
        assert (site / "asked").read_text().splitlines()[-1].startswith(f"{preset}: srun ")
        assert preset_of(preset).name == preset
    nameless = start_imagenet(site)
    assert nameless.wait(30) == 2 and "name a network" in nameless.stderr.read()


def test_the_time_limit_of_an_imagenet_job_requeues_it(site):
    job = start_imagenet(site, "resnet34", SLOW="1")
    wait_until_ready(site)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) == 1
    assert (site / "asked").read_text().splitlines()[-2:] == ["checkpoint", "scontrol requeue 88"]
