"""The networks for torch.hub: `torch.hub.load("path/to/checkout", "cifar_resnet20", source="local", weights="...")`.

Each entry takes `weights`, the path of a safetensors file (or of a run's folder, or of an exported one; none: fresh
weights of He et al.), `num_classes`, and the options of `reslib.models.build_model`. The network is in evaluation mode.
"""

dependencies = ["torch", "torchvision", "numpy", "pandas", "safetensors"]


def _entry(family: str, depth: int, imagenet: bool):
    name, classes = f"{family}{depth}", 1000 if imagenet else 10

    def entry(weights: str | None = None, num_classes: int = classes, **options):
        from reslib.export import load_weights
        from reslib.models import build_model

        model = build_model(name, num_classes, **options)
        if weights is not None:
            load_weights(model, weights, name)
        return model.eval()

    entry.__name__ = f"{'imagenet' if imagenet else 'cifar'}_{name}"
    entry.__doc__ = (
        f"{name} of He et al. (2015) for {'ImageNet (Table 1)' if imagenet else 'CIFAR-10 (section 4.2)'}: float "
        f"images (N, 3, {'224, 224' if imagenet else '32, 32'}) -> logits (N, num_classes)."
    )
    return entry


_CIFAR = {"resnet": (20, 32, 44, 56, 110, 1202), "plain": (20, 32, 44, 56, 110)}
_IMAGENET = {"resnet": (18, 34, 50, 101, 152), "plain": (18, 34)}
for _depths, _is_imagenet in ((_CIFAR, False), (_IMAGENET, True)):
    for _family, _values in _depths.items():
        for _depth in _values:
            _function = _entry(_family, _depth, _is_imagenet)
            globals()[_function.__name__] = _function
