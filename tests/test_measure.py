"""Evaluation and exact batch-norm statistics against direct computation."""

import pytest
import torch
import torch.nn.functional as F
from own_models import Small
from training import QUIET, silent, tiny

from reslib import data
from reslib.data.memory import MemoryBatches
from reslib.data.sets import ImageSet
from reslib.measure import error_and_loss, exact_bn_error, exact_statistics, whole_images
from reslib.networks import load_network
from reslib.runs import Run
from reslib.train import train

CPU = torch.device("cpu")


def batches_of(recipe):
    return data.batches_for(recipe, data.load(recipe.dataset), CPU)


@pytest.mark.parametrize("test_size", [64, 501, 1000])
def test_every_image_counts_once(test_size):
    batches, seen = batches_of(tiny(test_size=test_size)), []
    model = Small()

    def watched():
        for x, y in batches.eval_batches("test"):
            seen.append(x)
            yield x, y

    error, loss = error_and_loss(model, watched(), CPU)
    images = torch.cat(seen)
    assert len(images) == test_size == len(torch.unique(images.flatten(1), dim=0))
    model.eval()
    with torch.no_grad():
        logits = model(batches.whole(batches.sets["test"].images))
    labels = batches.sets["test"].labels
    assert error == pytest.approx((logits.argmax(1) != labels).double().mean().item())
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


@pytest.mark.parametrize("world", [2, 3])
def test_shares_of_several_processes_make_the_whole(world):
    batches, model = batches_of(tiny(test_size=1000)), Small()
    whole = error_and_loss(model, batches.eval_batches("test"), CPU)
    totals = []
    for rank in range(world):
        error_and_loss(model, batches.eval_batches("test", 100, rank, world), CPU, reduce=totals.append)
    wrong, loss, count, left = torch.stack(totals).sum(0).tolist()
    assert count == 1000 and left == 0
    assert (wrong / count, loss / count) == pytest.approx(whole)


def test_evaluation_leaves_the_model_as_it_was():
    batches = batches_of(tiny())
    for mode in (True, False):
        model = Small(dropout=0.5).train(mode)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        error_and_loss(model, batches.eval_batches("test"), CPU)
        exact_bn_error(model, batches, CPU, "fp32", 40)
        assert model.training is mode and model.norm.momentum == 0.1
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_exact_statistics_are_the_averages_over_the_training_images():
    batches = batches_of(tiny(train_size=60))
    model = Small(dropout=0.5)
    with torch.no_grad():
        maps = model.conv(batches.whole(batches.sets["train"].images))  # (60, 8, H, W)
    parts = maps.split(20)
    variance = torch.stack([p.transpose(0, 1).flatten(1).var(1, unbiased=True) for p in parts]).mean(0)
    with exact_statistics(model, batches.eval_batches("train", 20), CPU):
        torch.testing.assert_close(model.norm.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.norm.running_var, variance, rtol=1e-4, atol=1e-5)
        assert not model.dropout.training
    assert model.norm.running_mean.abs().sum() == 0


def test_the_count_of_batches_is_not_read_from_the_device(monkeypatch):
    """torch's own cumulative average reads it at every call of every layer, and a GPU is waited for."""
    batches, model = batches_of(tiny(train_size=60)), Small()

    class Unread(torch.Tensor):
        def __float__(self):
            raise AssertionError("read")

    model.norm.num_batches_tracked = model.norm.num_batches_tracked.as_subclass(Unread)
    with exact_statistics(model, batches.eval_batches("train", 20), CPU):
        assert model.norm.momentum == pytest.approx(1 / 3)


def test_exact_statistics_of_a_deep_net_normalise_every_layer():
    from reslib.models import build_model

    batches, model = batches_of(tiny(train_size=50)), build_model("resnet8")
    outputs = []
    model.layer3[0].bn2.register_forward_hook(lambda m, i, o: outputs.append(o.clone()))
    with exact_statistics(model, batches.eval_batches("train", 50), CPU):
        model.eval()
        outputs.clear()
        model(batches.whole(batches.sets["train"].images))
    assert outputs[0].mean((0, 2, 3)).abs().max() < 1e-3
    assert (outputs[0].std((0, 2, 3)) - 1).abs().max() < 1e-2


def test_a_net_without_batch_norm_has_no_exact_error():
    assert exact_bn_error(torch.nn.Flatten(), None, CPU, "fp32", 10) is None


@pytest.mark.parametrize("images", [400, 1000])
def test_exact_statistics_of_a_set_sorted_by_class_are_those_of_the_set(images):
    """As of class folders: within a batch of one class there would be no variance at all."""
    labels = torch.arange(10).repeat_interleave(100)
    pixels = (25 * labels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 32, 32, 3).contiguous()
    ordered = ImageSet(pixels, labels)
    source = data.DataSource("synthetic", ordered, ordered, list("abcdefghij"), "0" * 16, "made here")
    batches = MemoryBatches(tiny(train_size=0, test_size=0), source, CPU)
    found = list(whole_images(batches, images))
    assert sum(len(y) for _, y in found) == images // min(500, images) * min(500, images)
    assert all(y.bincount(minlength=10).min() > 0.5 * len(y) / 10 for _, y in found)
    norm = torch.nn.BatchNorm2d(3)
    with exact_statistics(norm, whole_images(batches, images), CPU):
        assert norm.running_var == pytest.approx(batches.whole(pixels).var((0, 2, 3)), rel=0.08)
    if images == len(labels):
        assert torch.cat([x[:, 0, 0, 0] for x, _ in found]).sort()[0] == pytest.approx(
            batches.whole(pixels)[:, 0, 0, 0]
        )


def test_the_summary_holds_the_errors_of_the_stored_weights(tmp_path):
    recipe = tiny(test_size=200, iterations=30)
    summary = train(recipe, tmp_path, execution=QUIET, say=silent)
    model, _ = load_network(Run(tmp_path, recipe).path)
    batches = batches_of(recipe)
    assert error_and_loss(model, batches.eval_batches("test"), CPU)[0] == pytest.approx(summary["test_error"])
    exact = exact_bn_error(model, batches, CPU, "fp32", 30)
    assert exact == pytest.approx(summary["exact_bn_test_error"])
