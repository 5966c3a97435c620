"""`reslib evaluate`: one process and two come to the same measurements, each image counted once."""

import os
import shutil

import pandas as pd
import pytest
import torch
from imagenet_sets import make_set
from test_distributed import free_port
from training import processes

from reslib import data
from reslib.cli import main
from reslib.errors import UserError
from reslib.evaluate import Views, merge_views
from reslib.files import sha256, write_json
from reslib.given_weights import IMAGENETTE
from reslib.models import build_model
from reslib.presets import imagenet_recipe, preset_of
from reslib.runs import Run, write_weights

KEYS = ["weights_sha256", "how", "name", "test_size", "classes", "images", "skipped", "top1", "top5"]


def make_run(runs_dir, fingerprint, model, seed=0):
    """A finished run of the study at medium, of a network with random weights and a decided opinion."""
    run = Run(runs_dir, imagenet_recipe(model, preset_of("medium"), "imagenette", seed))
    torch.manual_seed(seed + sum(map(ord, model)))
    network = build_model(model, 10, "A").eval()
    torch.nn.init.normal_(network.fc.weight)
    run.begin()
    write_weights(run.weights_file, network)
    write_json(
        run.summary_file,
        {
            "status": "finished", "recipe_hash": run.recipe.digest, "preset": "medium", "test_error": 0.75,
            "classes": 10, "synthetic": False, "data_fingerprint": fingerprint,
            "weights_sha256": sha256(run.weights_file),
        },
    )  # fmt: skip


def member(rank, world, port, arguments):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if code := main(arguments):
        os._exit(code)


def measured(results) -> pd.DataFrame:
    return pd.read_csv(results / "medium" / "measurements" / "imagenet_scores.csv", dtype=str)[KEYS]


def test_two_processes_measure_what_one_does(tmp_path, capsys):
    root = tmp_path / "data"
    make_set(root / "imagenette", train=1, val=1, classes=sorted(IMAGENETTE))
    fingerprint = data.load("imagenette", root).fingerprint
    given = tmp_path / "given"
    given.mkdir()
    torch.save({"fc.weight": torch.zeros(10, 3)}, given / "resnet101.pth")
    for name in ("one", "two"):
        for model, seed in (("plain18", 0), ("resnet18", 0), ("resnet18", 1)):
            make_run(tmp_path / name / "medium" / "runs", fingerprint, model, seed)
    arguments = ["evaluate", "--preset=medium", "--device=cpu", f"--data-root={root}", f"--weights={given}"]
    assert main([*arguments, f"--results={tmp_path / 'one'}"]) == 0
    said = capsys.readouterr().out
    assert "plain18-imagenette-s0" in said and "not evaluated" in said and "SYNTHETIC" not in said
    port, context = free_port(), processes()
    members = [
        context.Process(target=member, args=(rank, 2, port, [*arguments, f"--results={tmp_path / 'two'}"]))
        for rank in range(2)
    ]
    for process in members:
        process.start()
    for process in members:
        process.join(200)
    assert [p.exitcode for p in members] == [0, 0]
    one, two = measured(tmp_path / "one"), measured(tmp_path / "two")
    pd.testing.assert_frame_equal(one, two)
    assert sorted(set(one["how"])) == ["ensemble", "multi-scale", "ten-crop"] and set(one["images"]) == {"10"}
    assert len(one) == 3 + 2 + 1 and set(one["top1"]) != {"1"}
    for number in range(2, 6):
        first, second = (
            (tmp_path / d / "medium/tables" / f"imagenet_table{number}.md").read_text() for d in ("one", "two")
        )
        assert first == second and ("Nothing measured here" in first or "protocol scaled by 1/4" in first)


def test_a_process_without_an_image_and_none_at_all():
    none = Views("centre", torch.empty(0, 0), torch.empty(0).long(), torch.empty(0).long(), {"a": "the file is empty"})
    some = Views("centre", torch.eye(3), torch.arange(3), torch.tensor([4, 2, 0]))
    merged = merge_views([none, some])
    assert merged.index.tolist() == [0, 2, 4] and merged.errors((1,)) == {1: 0.0} and merged.skipped == none.skipped
    with pytest.raises(UserError, match="no image can be read: 1 are unreadable"):
        merge_views([none, none])


def test_what_cannot_be_evaluated_is_said_first(tmp_path, capsys):
    make_set(tmp_path / "imagenette")
    common = ["evaluate", "--preset=medium", "--device=cpu", f"--data-root={tmp_path}", f"--results={tmp_path}"]
    assert main(common) == 1
    assert "nothing to evaluate: no ended ImageNet run of preset medium in" in capsys.readouterr().err
    other = tmp_path / "medium" / "runs" / "resnet34-imagenette-s0-00000000"
    other.mkdir(parents=True)
    (other / "summary.json").write_text("{}")
    assert main(common) == 1
    assert f"(ended there: {other.name}; a change of recipe goes into the preset's name" in capsys.readouterr().err
    shutil.rmtree(other)
    assert main([*common, "--weights=nowhere"]) == 2
    assert "'nowhere' is neither a file nor a folder" in capsys.readouterr().err
    make_run(tmp_path / "medium" / "runs", "ffff", "plain18")
    assert main([*common, "--ensemble=nobody"]) == 1
    assert "member of ensemble 'chosen here (1)' 'nobody' is unknown" in capsys.readouterr().err
