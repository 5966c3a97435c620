"""`reslib status` and `reslib list`: states, speeds, hours left, the makespan, the text; the counts of networks."""

import itertools
import math
import re

import pytest
from fake_records import write_run

from reslib import complexity, gradient_plan, schedule_plan, speeds
from reslib.cli import main
from reslib.commands import status
from reslib.durations import in_words
from reslib.models import build_model
from reslib.presets import PRESETS, cifar_recipe, imagenet_recipe
from reslib.recipe import Recipe
from reslib.schedule_plan import Speed, State
from reslib.speeds import Measurement
from reslib.studies import figure1

QUICK = PRESETS["quick"]
LENGTH, STEP = QUICK.scale["iterations"], QUICK.scale["eval_every"]


def recipes(seeds=1):
    return figure1(QUICK, "cifar10", seeds)


@pytest.mark.parametrize("model", ["plain44", "resnet56", "resnet110"])
def test_cost_of_a_deep_net_is_that_of_the_whole_net(model):
    net = build_model(model)
    found = schedule_plan.network_cost(model, "A", "", 32, 10)
    assert found == (complexity.count(net, 32, True, 3), sum(p.numel() for p in net.parameters()))


@pytest.mark.parametrize(("model", "size"), [("resnet18", 224), ("resnet50", 96), ("plain18", 56)])
def test_cost_of_an_imagenet_net_is_that_at_full_size(model, size):
    net = build_model(model, 1000, "B")
    assert schedule_plan.network_cost(model, "B", "", size, 1000)[0] == complexity.count(net, size, True, 3)


def test_cost_of_a_recipe_knows_its_options_and_classes():
    plain = schedule_plan.cost(Recipe(model="resnet20"))
    assert schedule_plan.cost(Recipe(model="resnet20", shortcut="B")) > plain
    small = imagenet_recipe("resnet18", PRESETS["paper"], "imagenette")
    assert schedule_plan.cost(small.replace(dataset="imagenet")) - schedule_plan.cost(small) == 512 * 990


def test_makespan():
    assert schedule_plan.makespan([3, 3, 2, 2, 2], 2) == 7  # longest first: 3+2+2 and 3+2; the best would be 6
    assert schedule_plan.makespan([1, 2, 3], 2) == 3  # in whatever order they are given
    assert schedule_plan.makespan([5, 1, 1], 8) == 5
    assert schedule_plan.makespan([], 3) == 0
    jobs = [7, 4, 4, 3, 1]
    best = min(
        max(sum(j for j, where in zip(jobs, places, strict=True) if where == d) for d in range(3))
        for places in itertools.product(range(3), repeat=len(jobs))
    )
    assert best <= schedule_plan.makespan(jobs, 3) <= (4 / 3 - 1 / 9) * best  # Graham's bound


def test_speed_is_given_measured_or_scaled():
    recipe = cifar_recipe("resnet20", QUICK)
    adds = schedule_plan.cost(recipe)
    here = Measurement("resnet20", adds, 1000.0, "quick", "GPU", 1e6)
    there = Measurement("resnet20", adds, 500.0, "paper", "GPU", 1e6)
    big = Measurement("resnet1202", 100 * adds, 8.0, "quick", "GPU", 1e6)
    half = Measurement("plain20", adds // 2, 1600.0, "quick", "GPU", 1e6)

    def speed(found, given=None):
        return schedule_plan.speed_of(recipe, "quick", speeds.measured(found, "quick"), given or {})

    assert speed([here, there, big]) == Speed(1000.0, "measured")
    assert speed([there, big]) == Speed(500.0, "measured at paper")
    assert speed([here], {"resnet20": 7.0}) == Speed(7.0, "given")
    assert speed([big, half]) == Speed(pytest.approx(800, rel=1e-6), "scaled from plain20")
    assert math.isnan(speed([]).images_per_second)
    assert math.isnan(speed([Measurement("own", 0, 5.0, "quick", "GPU", 1.0)]).images_per_second)


def record(model, rate, preset="quick", **changes):
    """The speed of a run that makes `rate` multiply-adds per second."""
    recipe = cifar_recipe(model, QUICK, **changes)
    adds = schedule_plan.cost(recipe)
    return Measurement(recipe.run_name.split("-")[0], adds, rate / adds, preset, "GPU", 1e6)


def networks(*records):
    return speeds.measured(list(records), "quick")


def test_a_network_has_the_median_of_its_runs_and_of_two_the_faster():
    three = networks(*(record("resnet20", rate) for rate in (9e9, 1e9, 8e9)), record("resnet20", 5e9, "medium"))
    assert [(m.model, m.preset, pytest.approx(m.rate)) for m in three] == [("resnet20", "quick", 8e9)]
    two = networks(record("resnet20", 9e9, "medium"), record("resnet20", 3e9, "paper"))
    assert [(m.preset, pytest.approx(m.rate)) for m in two] == [("medium, paper", 9e9)]


def test_a_network_without_measurement_gets_the_median_of_those_near():
    """ResNet-32 lies between 20 and 44 layers; 110 layers are 3.7 times as much, 1202 are far away."""
    recipe = cifar_recipe("resnet32", QUICK)
    near = [record("plain20", 10e9), record("resnet44", 14e9), record("resnet20", 12e9)]
    far = [record("resnet1202", 90e9), record("resnet110", 70e9), record("resnet18", 80e9), record("nin", 1e9)]
    speed = schedule_plan.speed_of(recipe, "quick", networks(*near, *far), {})
    assert speed.images_per_second == pytest.approx(12e9 / schedule_plan.cost(recipe))
    assert speed.source == "scaled from resnet44 and 2 more"
    only_far = schedule_plan.speed_of(recipe, "quick", networks(*far), {})
    assert only_far.source == "scaled from resnet110"
    other_kind = schedule_plan.speed_of(cifar_recipe("dsn", QUICK), "quick", networks(*far[1:]), {})
    assert other_kind.source.startswith("scaled from nin")  # of no kind with a measurement: all of CIFAR-10 count


def test_speeds_are_not_scaled_between_cifar10_and_imagenet():
    imagenet = imagenet_recipe("resnet18", QUICK)
    adds = schedule_plan.cost(imagenet)
    large = networks(Measurement("resnet18", adds, 100.0, "quick", "GPU", 1e6))
    small = networks(record("resnet20", 9e9))
    for recipe, found, given in (
        (cifar_recipe("nin", QUICK), large, {}), (cifar_recipe("resnet20", QUICK), large, {}),
        (imagenet_recipe("plain34", QUICK), small, {}), (imagenet_recipe("plain34", QUICK), [], {"resnet20": 100.0}),
    ):  # fmt: skip
        speed = schedule_plan.speed_of(recipe, "quick", found, given)
        assert speed.source == "not measured" and math.isnan(speed.images_per_second)
    assert (
        schedule_plan.speed_of(cifar_recipe("nin", QUICK), "quick", large + small, {}).source == "scaled from resnet20"
    )


def test_the_gradients_study_is_counted(tmp_path):
    """36 networks of 8, 20 and 56 layers: 12 steps and the 4 passes that measure, of 32 images."""
    given = {
        f"{family}{depth}": speed for family in ("plain", "resnet") for depth, speed in ((8, 100), (20, 50), (56, 10))
    }
    count, hours = schedule_plan.gradients(QUICK, 0, [], given)
    assert count == 36 == len(gradient_plan.nets(QUICK, "cifar10"))
    assert 3600 * hours == pytest.approx(12 * (12 + 4) * 32 * (1 / 100 + 1 / 50 + 1 / 10))
    assert math.isnan(schedule_plan.gradients(QUICK, 0, [], {})[1])
    assert schedule_plan.gradients(QUICK, 3, [], {})[0] == 108
    write_run(tmp_path / "quick" / "runs", recipes()[0], speed=560.0)
    text = "\n".join(status.report(recipes(), QUICK, tmp_path))
    assert re.search(r"the gradients notebook follows 36 networks: [\d.]+ (s|min)", text)


def test_what_was_trained_beside_other_work_is_left_aside():
    def slow(*records):
        return [m.model for m in speeds.disturbed(networks(*records))]

    assert slow(record("plain20", 22.7e9), record("resnet20", 8.4e9)) == ["resnet20"]
    assert slow(record("plain20", 22.7e9), record("resnet20", 13e9)) == []
    assert slow(record("plain20", 22.7e9)) == slow() == []
    assert slow(record("plain20", 22.7e9), record("nin", 1e9), record("resnet110", 1e9)) == []  # no like near in size
    assert slow(record("resnet34", 40e9), record("resnet50", 12e9)) == []  # bottlenecks cost more per multiply-add
    assert slow(record("plain20", 9e9), record("resnet20", 8e9), record("resnet32", 40e9)) == []  # most are slow


def test_the_report_says_what_it_left_aside(tmp_path):
    plain20, resnet20, *_ = recipes()
    write_run(tmp_path / "quick" / "runs", plain20, speed=560.0)
    write_run(tmp_path / "medium" / "runs", cifar_recipe("resnet20", PRESETS["medium"]), speed=207.0)
    lines = status.report([plain20, resnet20, cifar_recipe("nin", QUICK)], QUICK, tmp_path)
    rows = {line.split()[0]: line for line in lines if line}
    assert "560  scaled from plain20" in rows["resnet20"] and "scaled from plain20  " in rows["nin"]
    assert [line for line in lines if line.startswith("left aside: resnet20 at medium, 207 images/s")]
    assert [line for line in lines if line.startswith("an estimate: 2 of 3 speeds are scaled")]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 s"), (0.0171, "<0.1 s"), (4.76e-05 * 3600, "0.2 s"), (9.96, "10 s"), (34, "34 s"), (99.4, "99 s"),
        (100, "1.7 min"), (3599, "60 min"), (90 * 60, "90 min"), (2 * 3600, "2.0 h"), (47.9 * 3600, "47.9 h"),
        (3 * 86_400, "3.0 d"), (101_112 * 3600, "4,213 d"), (math.nan, "?"),
    ],
)  # fmt: skip
def test_durations_are_in_the_unit_that_suits_them(seconds, text):
    assert in_words(seconds) == text


def test_hours_left():
    recipe, speed = cifar_recipe("resnet20", QUICK), Speed(128.0, "measured")
    assert schedule_plan.hours_left(recipe, State("missing"), speed) == pytest.approx(LENGTH / 3600)
    assert schedule_plan.hours_left(recipe, State("done", LENGTH), speed) == 0
    assert schedule_plan.hours_left(recipe, State("interrupted", 40, 10.0), speed) == pytest.approx(
        (LENGTH - 40) / 4 / 3600
    )
    given = Speed(128.0, "given")  # by --speed: for this machine from now on, whatever the run took so far
    assert schedule_plan.hours_left(recipe, State("interrupted", 40, 10.0), given) == (LENGTH - 40) / 3600


def test_states_of_runs(tmp_path):
    results = tmp_path
    runs_dir = results / "quick" / "runs"
    plain20, resnet20, plain56, resnet56 = recipes()
    write_run(runs_dir, plain20, speed=1000.0)
    write_run(runs_dir, resnet20, stop_at=STEP, speed=128.0)
    write_run(runs_dir, plain56, status="diverged", message="the loss of iteration 3 is not finite")
    write_run(runs_dir, cifar_recipe("resnet20", QUICK, seed=9))
    lines = status.report(recipes(), QUICK, results, gpus=2)
    text = "\n".join(lines)
    rows = {line.split()[0]: line for line in lines if line}
    assert rows["plain20"].endswith("done 0") and rows["plain56"].endswith("diverged 0")
    assert rows["resnet20"].endswith(f"interrupted 0 at {STEP}") and rows["resnet56"].endswith("missing 0")
    assert "4 runs: 1 done, 1 interrupted, 1 missing, 1 diverged" in text
    assert "1 further run folders are not in this plan" in text
    # plain-20 and ResNet-20 count the same; ResNet-56 is scaled, ResNet-20 goes on at a second per iteration
    assert "scaled from" in rows["resnet56"] and "an estimate" in text and "Some GPU" in text
    assert f"  {in_words(LENGTH - STEP)}  interrupted 0" in rows["resnet20"]
    run = write_run(runs_dir, resnet56)
    run.summary_file.write_text("{")
    assert "damaged 0" in "\n".join(status.report(recipes(), QUICK, results))


def test_a_locked_run_is_running(tmp_path):
    recipe = recipes()[0]
    run = write_run(tmp_path / "quick" / "runs", recipe, stop_at=STEP)
    assert schedule_plan.state_of(run).status == "interrupted"
    with run.lock():
        assert schedule_plan.state_of(run) == State("running", STEP, pytest.approx(STEP * 128 / 1000))


def test_a_crop_for_imagenet_leaves_the_networks_of_cifar_as_they_are():
    recipe = recipes()[0]
    assert schedule_plan.cost(recipe.replace(crop_size=64, scale_range=(64, 64))) == schedule_plan.cost(recipe)
    assert schedule_plan.cost(recipe.replace(model="maxout", crop_size=64, scale_range=(64, 64))) > 0


def test_unknown_speeds_are_said(tmp_path):
    *_, last, gradients = status.report(recipes(), QUICK, tmp_path, gpus=4)
    assert gradients.startswith("beside the runs: the gradients notebook follows") and gradients.endswith(": unknown")
    assert last == "left: unknown, as no speed of these 4 runs is measured; give --speed MODEL=IMAGES/S"
    write_run(tmp_path / "quick" / "runs", recipes()[0], speed=1000.0)
    own = recipes()[0].replace(model="own_models:Small")  # whose multiply-adds need no network of ours
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule_plan, "cost", lambda recipe: 0 if ":" in recipe.model else 10)
        lines = status.report([*recipes(), own], QUICK, tmp_path, gpus=4)
    place = next(i for i, line in enumerate(lines) if line.startswith("left: "))
    one, four = lines[place : place + 2]
    assert re.match(r"left: \S+ \S+ on one device, and unknown for [1-4] runs whose speed is not measured", one)
    assert re.match(r"on 4 devices: .*, of the [1-4] runs with a known speed", four)


def test_it_says_measured_only_of_what_is(tmp_path):
    """With --speed alone nothing is; beside records the given ones are named."""
    text = "\n".join(status.report(recipes(), QUICK, tmp_path, {"plain20": 1000.0}, gpus=4))
    assert "on 4 devices" in text and "speeds measured on" not in text
    assert "no speed is measured: all rests on what --speed gives (plain20)" in text
    write_run(tmp_path / "quick" / "runs", recipes()[1], speed=500.0)
    text = "\n".join(status.report(recipes(), QUICK, tmp_path, {"plain20": 1000.0}))
    assert "speeds measured on Some GPU, evaluations included, but for what --speed gives (plain20)" in text
    text = "\n".join(status.report(recipes(), QUICK, tmp_path))
    assert "speeds measured on Some GPU, evaluations included\n" in text and "--speed" not in text


def test_the_papers_schedule_on_1_8_and_64_devices(tmp_path, capsys, monkeypatch):
    """Every makespan lies between what cannot be beaten and what longest-first never exceeds."""
    monkeypatch.delenv("RESLIB_DATA", raising=False)
    arguments = ["status", "--preset=paper", f"--results={tmp_path}", "--speed=resnet20=20000,resnet18=2000"]
    assert main([*arguments, "--gpus", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    number = r"([\d,.]+) d\b"
    days = {int(n): float(d.replace(",", "")) for n, d in re.findall(rf"on (\d+) devices: {number}", "\n".join(lines))}
    (whole,) = re.findall(rf"left: {number} on one device", "\n".join(lines))
    (longest,) = re.findall(rf"longest takes {number}", "\n".join(lines))
    whole, longest = (float(text.replace(",", "")) for text in (whole, longest))
    assert sorted(days) == [8, 64] and "resnet152" in "\n".join(lines)
    for count, value in days.items():
        bound = max(whole / count, longest)
        assert 0.99 * bound <= value <= 1.01 * (whole / count + longest * (1 - 1 / count))
    assert main([*arguments, "--gpus", "2"]) == 0
    assert re.findall(r"on (\d+) devices", capsys.readouterr().out) == ["2"]
    assert main([*arguments, "--gpus", "1"]) == 0
    out = capsys.readouterr().out
    assert "on one device" in out and " devices:" not in out


def test_paper_without_imagenet_plans_no_run_on_anything_smaller(tmp_path, capsys, monkeypatch):
    """At paper nothing stands in for ImageNet; a rehearsal with fewer iterations takes what there is."""
    monkeypatch.delenv("RESLIB_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where data is looked for
    monkeypatch.setattr(status, "report", lambda recipes, *rest: sorted({r.dataset for r in recipes}))

    def planned(preset):
        assert main(["status", "--preset", preset, "--results", str(tmp_path)]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("synth", "image", "`"))]

    for preset in ("paper", "paper+lr=0.05"):
        imagenet, synthetic, note = planned(preset)
        assert (imagenet, synthetic) == ("imagenet", "synthetic")
        assert re.match(rf"`reslib reproduce` leaves out \d+ of these .+ is found: no imagenet under '{tmp_path}", note)
    assert planned("paper+iterations=300") == planned("medium") == ["synthetic", "synthetic-imagenet"]


def test_seeds_and_settings_are_named(tmp_path):
    two = [cifar_recipe("resnet20", QUICK, seed=s, **c) for c in ({}, {"shortcut": "B"}) for s in (0, 1, 2, 4)]
    lines = status.report(two, QUICK, tmp_path)
    assert any(line.startswith("resnet20 [shortcut=B]") and line.endswith("missing 0-2, 4") for line in lines)


def test_command(tmp_path, capsys):
    arguments = ["status", "--preset", "smoke", "--results", str(tmp_path)]
    assert main([*arguments, "--speed", "resnet20=100", "--gpus", "2"]) == 0
    assert "22 runs" in capsys.readouterr().out
    for bad in ("resnet20", "resnet20=fast", "resnet20=-1", "resnet21=5", "resnet20=1e-300", "resnet20=inf"):
        assert main([*arguments, "--speed", bad]) == 2
    assert main([*arguments, "--gpus", "-1"]) == 2
    assert main([*arguments, "--preset", "huge"]) == 2
    assert capsys.readouterr().err.count("\n") == 8


def test_list(capsys):
    assert main(["list", "studies"]) == 0 and main(["list", "presets"]) == 0 and main(["list", "data"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("cifar10_table", "medium", "imagenette"))
    assert main(["list", "modles"]) == 2


def test_list_of_models(capsys):
    assert main(["list", "models"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["resnet1202"][2:] == [
        "19,421,274",
        f"{schedule_plan.network_cost('resnet1202', None, '', 32, 10)[0]:,}",
    ]
    assert rows["resnet20"][2] == rows["plain20"][2] == "269,722"
    assert rows["resnet50"][2] == "25,557,032"  # torchvision's


def test_a_given_speed_of_an_imagenet_net_counts_images_of_its_size():
    given, preset = {"resnet34": 1000.0}, PRESETS["paper"]
    speed = schedule_plan.speed_of(imagenet_recipe("plain34", preset), "paper", [], given)
    assert speed.source == "scaled from resnet34"
    assert speed.images_per_second == pytest.approx(1000, rel=0.01)  # the same but for the shortcuts
    scaled = schedule_plan.speed_of(imagenet_recipe("plain34", QUICK), "quick", [], given)
    assert scaled.images_per_second == pytest.approx(1000, rel=0.01)  # said of the preset at hand
