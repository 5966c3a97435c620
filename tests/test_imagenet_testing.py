"""ImageNet testing against slow, obvious references: crops one by one, sliding windows in a loop, sorting by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.models import resnet18
from torchvision.transforms import functional as TF

from reslib import evaluate
from reslib.data.folders import index_folder
from reslib.data.imagenet import FolderBatches
from reslib.errors import UserError
from reslib.evaluate import (
    Views,
    centre_crop_logits,
    ensemble,
    evaluate_views,
    merge_views,
    multi_scale_scores,
    resize,
    ten_crop_scores,
    top_k_errors,
)
from reslib.recipe import Recipe


class TinyNet(nn.Module):
    """Stride 8, ReLU maps, global pooling and fc: a ResNet as far as testing is concerned."""

    def __init__(self, classes=6):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 4, 1), nn.ReLU()
        )
        self.fc = nn.Linear(16, classes)
        nn.init.normal_(self.fc.weight, std=2)

    def features(self, x):
        return self.body(x)

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class Torchvision(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.net = resnet18(num_classes=7)
        self.fc = self.net.fc

    def features(self, x):
        n = self.net
        return n.layer4(n.layer3(n.layer2(n.layer1(n.maxpool(n.relu(n.bn1(n.conv1(x))))))))

    def forward(self, x):
        return self.net(x)


def images(count=3, height=40, width=52):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def recipe(**changes) -> Recipe:
    return Recipe(**({"dataset": "imagenette", "crop_size": 32, "scale_range": (34, 60)} | changes))


def folder(root):
    """Six validation images of two shapes, the fifth unreadable."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 1), ("val", 3)):
        for c in ("n01", "n02"):
            (root / split / c).mkdir(parents=True)
            for i in range(count):
                coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                coarse.resize([(48, 40), (40, 56), (48, 40)][i], Image.Resampling.BICUBIC).save(
                    root / split / c / f"{i}.png"
                )
    (root / "val" / "n02" / "1.png").write_bytes(b"not an image")
    train, test = index_folder(root)
    return SimpleNamespace(train=train, test=test)


# --- Views of tensors ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_centre_crop_matches_torchvision():
    model = TinyNet().eval()
    for height, width in ((40, 52), (41, 33), (35, 38)):
        x = images(2, height, width)
        torch.testing.assert_close(centre_crop_logits(model, x, 32), model(TF.center_crop(x, [32, 32])))


@torch.no_grad()
def test_ten_crop_matches_torchvision_one_by_one():
    model = TinyNet().eval()
    for height, width in ((40, 52), (41, 33)):
        x = images(3, height, width)
        expected = torch.zeros(3, 6)
        for row in range(3):
            for view in TF.five_crop(x[row], [32, 32]):  # the mirror images of these, not crops of the mirror image
                expected[row] += (model(view[None]).softmax(1)[0] + model(TF.hflip(view)[None]).softmax(1)[0]) / 10
        torch.testing.assert_close(ten_crop_scores(model, x, 32), expected)


def test_image_smaller_than_the_crop_is_refused():
    with pytest.raises(UserError, match="30x40 pixels are smaller than the crop 32"):
        ten_crop_scores(TinyNet().eval(), images(1, 30, 40), 32)


@torch.no_grad()
@pytest.mark.parametrize("flip", [True, False])
def test_multi_scale_matches_a_loop_over_windows(flip):
    """The map at every scale, cut window by window: mean of the window, fc, softmax; then the average."""
    model, x, sizes = TinyNet().eval(), images(2), (24, 32, 45, 64)
    window = 4  # of the map that the 32-pixel crop of training gives
    expected = torch.zeros(2, 6)
    for size in sizes:
        scaled = torch.stack([TF.resize(image, size, antialias=True) for image in x])
        for view in (scaled, scaled.flip(3)) if flip else (scaled,):
            maps, scores = model.features(view), []
            height, width = maps.shape[2:]
            for top in range(max(1, height - window + 1)):
                for left in range(max(1, width - window + 1)):
                    part = maps[:, :, top : top + window, left : left + window]
                    scores.append(model.fc(part.mean((2, 3))).softmax(1))
            expected += sum(scores) / len(scores) / (len(sizes) * (2 if flip else 1))
    torch.testing.assert_close(multi_scale_scores(model, x, sizes, 32, flip), expected)


@torch.no_grad()
def test_one_scale_of_the_training_crop_is_the_ordinary_network():
    model, x = Torchvision().eval(), images(2, 64, 64)
    torch.testing.assert_close(multi_scale_scores(model, x, [64], 64, flip=False), model(x).softmax(1))
    torch.testing.assert_close(
        multi_scale_scores(model, x, [64], 64), (model(x).softmax(1) + model(x.flip(3)).softmax(1)) / 2
    )


def test_resize_matches_pillow():
    picture = torch.randint(0, 256, (1, 3, 10, 14), generator=torch.Generator().manual_seed(0)).float()
    picture = F.interpolate(picture, (40, 56), mode="bicubic").clamp(0, 255).round()
    pillow = Image.fromarray(picture[0].permute(1, 2, 0).byte().numpy())
    for shorter in (24, 33, 70):
        expected = np.asarray(TF.resize(pillow, shorter)).astype(np.float32)
        assert np.abs(resize(picture, shorter)[0].permute(1, 2, 0).numpy() - expected).max() <= 1.01


# --- Errors and ensembles --------------------------------------------------------------------------------------------


def test_top_k_errors_by_sorting():
    scores = torch.randn(200, 9, generator=torch.Generator().manual_seed(4))
    labels = torch.arange(200) % 9
    errors = top_k_errors(scores, labels, (1, 3, 5, 9))
    for k, error in errors.items():
        wrong = sum(int(label) not in np.argsort(-row)[:k] for row, label in zip(scores.numpy(), labels, strict=True))
        assert error == wrong / 200
    assert errors[9] == 0 < errors[5] < errors[3] < errors[1]


def test_top_k_errors_rank_ties_by_class_and_refuse_nonsense():
    equal = torch.zeros(4, 4)
    assert top_k_errors(equal, torch.arange(4), (1, 2)) == {1: 0.75, 2: 0.5}
    with pytest.raises(UserError, match="1 of 4 images have non-finite scores"):
        equal[2, 1] = float("nan")
        top_k_errors(equal, torch.arange(4), (1,))
    with pytest.raises(UserError, match="top-5 error with 4 classes"):
        top_k_errors(torch.zeros(4, 4), torch.arange(4))
    with pytest.raises(UserError, match="no images"):
        top_k_errors(torch.zeros(0, 4), torch.zeros(0).long(), (1,))


def test_ensemble_is_the_mean_of_scores():
    scores = [torch.rand(5, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    torch.testing.assert_close(ensemble(scores), (scores[0] + scores[1] + scores[2]) / 3)
    with pytest.raises(UserError, match="equal shape"):
        ensemble([scores[0], scores[1][:4]])
    with pytest.raises(UserError, match="equal shape"):
        ensemble([])


# --- Whole sets ------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("how", ["centre", "ten-crop", "multi-scale"])
def test_evaluate_views_matches_one_image_at_a_time(how, tmp_path):
    """Images of two shapes in batches, against Pillow and torchvision for each alone; the broken one is left out."""
    source = folder(tmp_path)
    batches = FolderBatches(recipe(), source, "cpu", workers=0)
    model = TinyNet().train()
    views = evaluate_views(model, batches, how, sizes=(32, 48), batch_size=2)
    assert model.training and views.index.tolist() == [0, 1, 2, 3, 5] and views.labels.tolist() == [0, 0, 0, 1, 1]
    assert list(views.skipped) == ["val/n02/1.png"]
    model.eval()
    for row, i in enumerate(views.index.tolist()):
        image = TF.to_tensor(Image.open(tmp_path / source.test.name(i))) - batches.mean[:, None, None]
        resized = TF.resize(image, 37, antialias=True)  # 256 / 224 of 32
        if how == "centre":
            expected = model(TF.center_crop(resized, [32, 32])[None]).softmax(1)[0]
        elif how == "ten-crop":
            crops = torch.stack(TF.five_crop(resized, [32, 32]))
            expected = model(torch.cat([crops, crops.flip(3)])).softmax(1).mean(0)
        else:
            expected = multi_scale_scores(model, image[None], (32, 48), 32)[0]
        torch.testing.assert_close(views.scores[row], expected, rtol=1e-4, atol=1e-4)


def test_few_images_wait_for_others_of_their_shape(monkeypatch):
    """Every image is given once, in batches of one shape, and never more than the limit are held."""
    monkeypatch.setattr(evaluate, "WAITING", 9)
    shapes = [(4 + i % 7, 5, 3) if i % 3 else (9, 9, 3) for i in range(60)]
    taken, given = [], []

    def images():
        for i, shape in enumerate(shapes):
            assert len(taken) - sum(map(len, given)) < 9
            taken.append(i)
            yield i, torch.full(shape, i, dtype=torch.uint8), i % 4

    for index, pixels, labels in evaluate._by_shape(images(), 3):
        assert len(index) <= 3 and tuple(pixels.shape[1:]) == shapes[index[0]]
        assert (pixels[:, 0, 0, 0] == index).all() and (labels == index % 4).all()
        given.append(index.tolist())
    assert sorted(sum(given, [])) == list(range(60)) and max(map(len, given)) == 3


@pytest.mark.parametrize("world", [2, 3])
def test_processes_count_each_image_once(world, tmp_path):
    source = folder(tmp_path)
    model = TinyNet().eval()
    whole = evaluate_views(model, FolderBatches(recipe(), source, "cpu", workers=0), "ten-crop")
    shares = [
        evaluate_views(model, FolderBatches(recipe(), source, "cpu", workers=0), "ten-crop", rank=r, world=world)
        for r in range(world)
    ]
    merged = merge_views(shares)
    assert merged.index.tolist() == whole.index.tolist() and merged.skipped == whole.skipped
    torch.testing.assert_close(merged.scores, whole.scores)
    assert merged.errors((1, 2)) == top_k_errors(whole.scores, whole.labels, (1, 2))
    with pytest.raises(UserError, match="tested twice"):
        merge_views([*shares, shares[0]])


def test_centre_agrees_with_the_trainers_evaluation():
    """On images in memory: the error of `evaluate_views` equals that of `eval_batches`."""
    generator = torch.Generator().manual_seed(5)
    sets = [
        SimpleNamespace(
            images=torch.randint(0, 256, (n, 44, 44, 3), generator=generator).byte(), labels=torch.arange(n) % 6
        )
        for n in (6, 30)
    ]
    batches = FolderBatches(recipe(test_size=20), SimpleNamespace(train=sets[0], test=sets[1]), "cpu")
    model = TinyNet().eval()
    views = evaluate_views(model, batches, "centre", batch_size=7)
    with torch.no_grad():
        logits, labels = zip(*[(model(x), y) for x, y in batches.eval_batches("test", 7)], strict=True)
    assert isinstance(views, Views) and len(views.labels) == 20
    torch.testing.assert_close(views.scores, torch.cat(logits).softmax(1), rtol=1e-3, atol=1e-3)
    assert (views.labels == torch.cat(labels)).all()


def test_unknown_way_of_testing_names_the_allowed_ones():
    with pytest.raises(UserError, match="how 'tencrop' is unknown: allowed are centre, ten-crop, multi-scale"):
        evaluate_views(TinyNet(), None, "tencrop")
