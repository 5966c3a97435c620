"""The command line: exit codes, one-line messages, every field of the recipe."""

import dataclasses
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from one_line import one_line

from reslib import __version__, data, stand_ins
from reslib.cli import COMMANDS, duration, main
from reslib.commands import reproduce
from reslib.commands import train as command
from reslib.data.places import NotThere
from reslib.recipe import NOTES, SYNONYMS, Recipe, field_help, field_types

OTHER = {  # another value of every field
    "dataset": ("synthetic-imagenet", "synthetic-imagenet"), "seed": ("7", 7), "iterations": ("100", 100),
    "batch_size": ("64", 64), "lr": ("0.2", 0.2), "momentum": ("0.8", 0.8), "nesterov": ("true", True),
    "weight_decay": ("0.001", 0.001), "schedule": ("plateau", "plateau"), "lr_drops": ("0.25,0.5", (0.25, 0.5)),
    "lr_gamma": ("0.2", 0.2), "plateau_patience": ("3", 3), "warmup_lr": ("0.01", 0.01),
    "warmup_error": ("0.7", 0.7), "warmup_window": ("50", 50), "train_size": ("1000", 1000), "val_size": ("500", 500),
    "test_size": ("100", 100), "preprocessing": ("channel-std", "channel-std"), "padding": ("black", "black"),
    "crops": ("batch", "batch"), "augmentation": ("none", "none"), "crop_size": ("64", 64),
    "scale_range": ("200,300", (200, 300)), "shortcut": ("B", "B"), "options": ("width=8", "width=8"),
    "teacher": ("some-run", "some-run"), "precision": ("fp32", "fp32"), "accumulation": ("2", 2),
    "eval_every": ("50", 50),
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """The recipes that would have been trained; nothing is."""
    seen = []

    def instead(recipe, runs_dir, data_root, preset, execution, **more):
        seen.append((recipe, execution, runs_dir))
        return {"status": "finished", "test_error": 0.5, "message": ""}

    monkeypatch.setattr(command, "train", instead)
    return seen


def test_every_field_can_be_set(asked, monkeypatch):
    monkeypatch.setattr(data, "check_recipe", lambda recipe: None)  # CIFAR-10 has one size and no scales
    assert set(OTHER) == set(field_types()) - {"model"}
    for name, (text, value) in OTHER.items():
        assert getattr(Recipe(), name) != value
        assert (
            main(["train", "resnet20", "--preset=paper", "--dataset=synthetic", f"--{name.replace('_', '-')}={text}"])
            == 0
        )
        assert getattr(asked[-1][0], name) == value
        unset = [f.name for f in dataclasses.fields(Recipe) if f.name not in (name, "dataset")]
        if name != "dataset":
            assert all(getattr(asked[-1][0], other) == getattr(Recipe(), other) for other in unset)


def test_options_of_execution(asked, tmp_path):
    arguments = ["train", "resnet20", "--preset=smoke", f"--results={tmp_path}", "--deterministic", "--time-limit=2m"]
    arguments += ["--checkpoint-every=5s", "--activation-checkpointing", "--tensorboard", "--no-wait", "--device=cpu"]
    assert main(arguments) == 0
    recipe, execution, runs_dir = asked[0]
    assert dataclasses.astuple(execution) == ("cpu", True, 120.0, 5.0, True, False, True, False, None)
    assert recipe.dataset == "synthetic" and runs_dir == tmp_path / "smoke" / "runs"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train", "resnet21"], ["resnet21", "6n+2", "resnet20"]),
        (["train", "restnet20"], ["restnet20", "resnet20"]),
        (["train", "resnet20", "--preset=huge"], ["preset 'huge'", "smoke"]),
        (["train", "resnet20", "--lr=fast"], ["lr 'fast' is not a number"]),
        (["train", "resnet20", "--lr=-1"], ["lr -1.0 is out of range"]),
        (["train", "resnet20", "--lr", "-1"], ["lr -1.0 is out of range"]),
        (["train", "resnet20", "--nesterov=maybe"], ["nesterov 'maybe'", "true or false"]),
        (["train", "resnet20", "--shortcut=D"], ["shortcut 'D'", "A, B, C"]),
        (["train", "resnet20", "--options=depth=3"], ["option of resnet20 'depth'"]),
        (["train", "resnet20", "--options=width=wide"], ["width", "wide"]),
        (["train", "resnet20", "--batch-size=10", "--accumulation=3"], ["accumulation 3", "batch_size 10"]),
        (["train", "resnet20", "--device=tpu"], ["device 'tpu'", "cuda"]),
        (["train", "resnet20", "--time-limit=soon"], ["'soon' is not a duration"]),
        (["train", "resnet20", "--learning-rate=1"], ["--learning-rate=1"]),
        (["train"], ["model"]),
        (["train", "resnet20", "--crop-size=33"], ["crop_size 33", "synthetic: allowed is 32"]),
        (
            ["train", "resnet20", "--augmentation=scale-crop-flip-color"],
            ["that of ImageNet"],
        ),
        (["train", "resnet20", "--results="], ["--results", "'' names nothing"]),
        (["trian"], ["trian", "did you mean 'train'"]),
        (["verify", ""], ["RESULTS", "'' names nothing"]),
        (["verify", "--results", " "], ["--results", "' ' names nothing"]),
        (["report", "--out="], ["--out", "'' names nothing"]),
        (["data", "--data-root=/nowhere"], ["data root '/nowhere' is not a folder"]),
        (["equivalence", "resnet20"], ["did you mean --model resnet20?"]),
        (["bench", "resnet20"], ["did you mean --models resnet20?"]),
        (["bench", "--seconds=-1"], ["--seconds: '-1'", "from 0.01 to 3600"]),
        (["bench", "--seconds=nan"], ["--seconds: 'nan'"]),
        (["bench", "--seconds=inf"], ["--seconds: 'inf'"]),
        (["bench", "--workers=-1"], ["--workers: '-1'", "from 0 to 1024"]),
        (["bench", "--dataset=imagenet"], ["dataset 'imagenet'", "cifar10"]),
        (["bench", "--loader", "--loader-preset=huge"], ["preset 'huge'"]),
        ([], ["command"]),
        (["reproduce", "--preset=huge"], ["preset 'huge'"]),
        (["reproduce", "--executor=magic"], ["executor 'magic'", "inline"]),
        (["reproduce", "--seeds=-1"], ["--seeds", "'-1'", "allowed is a whole number from 0 to"]),
        (["reproduce", "--workers=-1"], ["--workers", "'-1'", "allowed is a whole number from 0 to"]),
        (["reproduce", "--device=tpu"], ["device 'tpu'"]),
        (["reproduce", "figur1"], ["notebook 'figur1'", "did you mean 'figure1'"]),
        (["reproduce", "figur1", "--runs-only"], ["study 'figur1'", "did you mean 'figure1'"]),
        (["reproduce", "notebooks/figur1.ipynb"], ["notebook 'figur1'", "did you mean 'figure1'"]),
        (["reproduce", "elsewhere/figure1.ipynb"], ["notebook 'elsewhere/figure1.ipynb'", "figure1"]),
        (["reproduce", "--models=resnet20"], ["--models resnet20 goes with --runs-only"]),
        (
            ["reproduce", "figure1", "--preset=smoke", "--runs-only", "--models=resnet21"],
            ["model 'resnet21'", "resnet20"],
        ),
        *((["reproduce", f"--gpus-per-run={n}"], ["--gpus-per-run", f"'{n}'"]) for n in ("nan", "-1", "0", "2", "abc")),
        (["verify", "--preset=huge"], ["preset 'huge'", "smoke"]),
        (["report", "--preset=huge"], ["preset 'huge'", "smoke"]),
        (["status", "--data-root=/nowhere"], ["--data-root", "'/nowhere' is not a folder"]),
        (["status", "--results=a\0b"], ["--results", "'a\\x00b'"]),
    ],
)
def test_mistakes_give_one_line_and_code_two(asked, capsys, arguments, words):
    extra = ["--dataset=synthetic"] if arguments[:1] == ["train"] and len(arguments) > 1 else []
    assert main(arguments + extra) == 2
    line = one_line(capsys)
    assert all(word in line for word in words), line
    assert not asked


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("--learning-rate 0.1", "--lr"), ("--learning_rate=0.1", "--lr"), ("--wd 1", "--weight-decay"),
        ("--weight_decay 1", "--weight-decay"), ("--bs 8", "--batch-size"), ("--steps 9", "--iterations"),
        ("--max-iter 9", "--iterations"), ("--epochs 9", "--iterations"), ("--momentun 0.8", "--momentum"),
        ("--output-dir here", "--results"), ("--gpu 0", "--device"), ("--LR 1", "--lr"),
    ],
)  # fmt: skip
def test_unknown_options_name_the_right_one_and_the_right_help(asked, capsys, wrong, right):
    assert main(["train", "resnet20", "--dataset=synthetic", *wrong.split()]) == 2
    line = one_line(capsys)
    assert f"{wrong}; did you mean {right}?" in line and "`reslib train --help`" in line
    assert ("counted in iterations" in line) == ("epoch" in wrong) and not asked


def test_no_hint_where_nothing_is_alike(asked, capsys):
    assert main(["train", "resnet20", "--dataset=synthetic", "--zzzqq", "9"]) == 2
    assert one_line(capsys) == "reslib: unrecognized arguments: --zzzqq 9 (see `reslib train --help`)"
    assert main(["train", "resnet20", "resnet32"]) == 2
    assert "did you mean" not in one_line(capsys)


def test_synonyms_lead_to_options_that_exist():
    assert set(SYNONYMS.values()) <= set(field_types()) and not set(SYNONYMS) & set(field_types())
    assert set(NOTES) <= set(SYNONYMS)


def test_help_of_train_says_what_every_field_means_and_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.replace("-\n", "-").split())
    for name, meaning in field_help().items():
        if name != "model":
            _, _, after = text.partition(f"--{name.replace('_', '-')} VALUE {meaning} [")
            assert re.match(r"[^\]]+\] \(default: [^)]+\)", after), name
    assert "a number] (default: 0.9)" in text and "VALUE images per step" in text
    assert re.search(r"--lr VALUE learning rate [^\[]+ \[a number\] \(default: the preset's\)", text)


def test_reproduce_at_paper_leaves_out_what_needs_imagenet(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(data, "choose_dataset", lambda kind, *a, **k: {"cifar": "cifar10"}.get(kind, "imagenette"))

    def nowhere(*arguments):
        raise NotThere("no imagenet")

    monkeypatch.setattr(stand_ins, "find_root", nowhere)
    planned = []
    monkeypatch.setattr(reproduce, "execute", lambda recipes, *a: planned.extend(recipes) or [])
    base = ["reproduce", "--preset=paper", "--device=cpu", "--runs-only", f"--results={tmp_path}"]
    assert main(base) == 0
    assert {r.dataset for r in planned} == {"cifar10"} and len(planned) > 100
    line = "left out: preset paper draws figure4, imagenet_tables from ImageNet itself: no imagenet"
    assert capsys.readouterr().out.count(line) == 2  # before weeks of training, and after them
    planned.clear()
    assert main([*base, "figure4", "figure1"]) == 1 and not planned
    assert "preset paper draws figure4 from ImageNet itself: no imagenet" in one_line(capsys)
    assert main([*base[:1], "--preset=paper+iterations=300", *base[2:], "figure4"]) == 0
    assert {r.dataset for r in planned} == {"imagenette"}


def test_without_notebooks_the_command_says_where_they_are_looked_for(tmp_path, monkeypatch, capsys):
    """As from a wheel, which has none."""
    monkeypatch.setenv("RESLIB_NOTEBOOKS", str(tmp_path))
    assert main(["reproduce", "--preset=smoke", f"--results={tmp_path}"]) == 1
    assert one_line(capsys) == f"reslib: no notebooks in {tmp_path}: run this from a checkout, or set RESLIB_NOTEBOOKS"


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0 and capsys.readouterr().out == f"reslib {__version__}\n"


def test_a_notebook_is_also_named_by_its_file(monkeypatch):
    folder = Path(__file__).resolve().parent.parent / "notebooks"
    monkeypatch.chdir(folder)
    assert {reproduce.name_of(t) for t in ("figure1.ipynb", str(folder / "figure1.ipynb"), "figure1")} == {"figure1"}
    monkeypatch.chdir("/")  # as the README writes it, from anywhere
    assert reproduce.name_of("notebooks/figure1.ipynb") == "figure1"
    for other in ("figure1.ipynb", "/tmp/figure1.ipynb", "notebooks/figure1", "a\0.ipynb"):
        assert reproduce.name_of(other) == other


def test_runs_only(tmp_path, capsys):
    arguments = ["reproduce", "figure1", "--preset=smoke", "--runs-only", "--models=plain20", f"--results={tmp_path}"]
    assert main([*arguments, "--device=cpu"]) == 0
    assert "1 of 1 runs to train" in capsys.readouterr().out
    assert main([*arguments, "--device=cpu"]) == 0
    assert capsys.readouterr().out == ""
    assert main([*arguments[:-2], "--models=plain21", "--device=cpu"]) == 2
    assert "plain21" in one_line(capsys)


@pytest.mark.parametrize("text, seconds", [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), (" 3 s ", 3)])
def test_durations(text, seconds):
    assert duration(text) == seconds


def test_help_is_quick_and_needs_no_torch():
    code = "import sys, reslib.cli\ntry: reslib.cli.main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
    code += "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_output_that_has_no_sign_for_a_letter_degrades(tmp_path, monkeypatch):
    """As with PYTHONIOENCODING=ascii: at the end of an hour's work a plus-minus sign must not be an error."""
    bytes_out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_out, encoding="ascii"))
    assert main(["status", "--preset=smoke", f"--results={tmp_path / '±'}"]) == 0
    sys.stdout.flush()
    assert f"{tmp_path}/?/smoke".encode() in bytes_out.getvalue()


def test_cublas_is_told_before_anything_may_call_it(monkeypatch):
    """It reads its setting once: --deterministic of a later run in the process would come too late."""
    from reslib.numerics import CUBLAS

    monkeypatch.delenv(CUBLAS[0], raising=False)
    assert main(["nonsense"]) == 2
    assert os.environ[CUBLAS[0]] == CUBLAS[1]
