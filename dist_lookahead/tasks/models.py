"""Image classifiers by name: small ones of our own, ResNets for 32x32 images, and those of torchvision."""

from collections import OrderedDict
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torchvision import models
from torchvision.models.resnet import BasicBlock

from dist_lookahead.tasks.choice import unknown_name

OWN_MODELS: dict[str, tuple[str, ...]] = {
    "mlp": ("width", "dropout"),
    "cnn": ("width", "dropout"),
    "cifar_resnet18": ("width",),
    "cifar_resnet34": ("width",),
}
"""The models of this module and the options that each of them takes."""


def build_model(
    name: str,
    *,
    channels: int,
    size: int,
    classes: int,
    width: int | None = None,
    dropout: float | None = None,
) -> nn.Module:
    """Build a freshly initialised classifier: (batch, channels, size, size) to (batch, classes) logits.

    Args:
        name: "mlp", "cnn", "cifar_resnet18", "cifar_resnet34", or any classifier in torchvision.models.
        channels: colour channels of the images; torchvision's classifiers take 3.
        size: height and width of the images.
        classes: number of classes, >= 1.
        width: hidden units (mlp, 128 if None), channels of the first stage (cnn 32, cifar_resnet 64), >= 1.
        dropout: probability of zeroing a hidden unit, in [0, 1); None: the model's own default (0 for mlp and
            cnn).

    Raises:
        ValueError: the name is unknown, an option has no effect on this model, or the images do not fit it.

    Example:
        >>> build_model("mlp", channels=1, size=8, classes=10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    check_model(name, channels=channels, width=width, dropout=dropout)
    match name:
        case "mlp":
            return mlp(channels * size**2, classes, width=width or 128, dropout=dropout or 0.0)
        case "cnn":
            return cnn(channels, classes, width=width or 32, dropout=dropout or 0.0)
        case "cifar_resnet18":
            return cifar_resnet(channels, classes, depths=(2, 2, 2, 2), width=width or 64)
        case "cifar_resnet34":
            return cifar_resnet(channels, classes, depths=(3, 4, 6, 3), width=width or 64)
        case _:
            return _torchvision_model(name, size=size, classes=classes, dropout=dropout)


def check_model(name: str, *, channels: int, width: int | None, dropout: float | None) -> None:
    """Refuse what can be known to be wrong before anything is built; arguments as in `build_model`.

    Raises:
        ValueError: as in `build_model`.
    """
    theirs = models.list_models(module=models)
    if name not in OWN_MODELS and name not in theirs:
        listed = f"{', '.join(OWN_MODELS)}, or any of the {len(theirs)} classifiers in torchvision.models"
        raise unknown_name("model", name, [*OWN_MODELS, *theirs], listed=listed)
    if width is not None and "width" not in OWN_MODELS.get(name, ()):
        raise _without_effect("width", width, name)
    if dropout is not None and "dropout" not in OWN_MODELS.get(name, ("dropout",)):  # theirs: seen when built
        raise _without_effect("dropout", dropout, name)
    if width is not None and width < 1:
        raise ValueError(f"width={width} must be at least 1")
    if dropout is not None and not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} must be in [0, 1)")
    if name not in OWN_MODELS and channels != 3:
        raise ValueError(f"model={name!r} takes images of 3 channels, not {channels}: choose {', '.join(OWN_MODELS)}")


def _without_effect(option: str, value: float | None, name: str) -> ValueError:
    taking = " or ".join(own for own, options in OWN_MODELS.items() if option in options)
    return ValueError(f"{option}={value} has no effect on model={name!r}: remove it, or choose {taking}")


def mlp(inputs: int, classes: int, *, width: int, dropout: float) -> nn.Sequential:
    """Flatten, then two hidden layers of `width` units."""
    hidden = (
        layer for fan_in in (inputs, width) for layer in (nn.Linear(fan_in, width), nn.ReLU(), nn.Dropout(dropout))
    )
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, classes))


def cnn(channels: int, classes: int, *, width: int, dropout: float) -> nn.Sequential:
    """Four 3x3 convolutions with BatchNorm, the image halved after two; then the mean over all places."""
    return nn.Sequential(
        *_convolution(channels, width),
        *_convolution(width, width),
        nn.MaxPool2d(2),
        *_convolution(width, 2 * width),
        *_convolution(2 * width, 2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(2 * width, classes),
    )


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def cifar_resnet(channels: int, classes: int, *, depths: tuple[int, ...], width: int) -> nn.Sequential:
    """ResNet of basic blocks whose stem is one 3x3 convolution of stride 1, without max-pooling.

    The stem of He et al. for CIFAR (arXiv 1512.03385, section 4.2) with the stages of their ImageNet
    networks, each of twice the width and half the image size of the one before: what "ResNet-18 on CIFAR-10"
    usually means.

    Args:
        channels: of the images.
        classes: number of classes.
        depths: basic blocks (two convolutions each) of each stage.
        width: channels of the first stage.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, width, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(inplace=True),
    )
    planes = width
    for stage, blocks in enumerate(depths):
        inputs, planes = planes, width * 2**stage
        first = _basic_block(inputs, planes, stride=1 if stage == 0 else 2)
        rest = (_basic_block(planes, planes, stride=1) for _ in range(blocks - 1))
        layers[f"layer{stage + 1}"] = nn.Sequential(first, *rest)
    layers |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(planes, classes)}
    model = nn.Sequential(layers)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _basic_block(inputs: int, planes: int, *, stride: int) -> BasicBlock:
    if stride == 1 and inputs == planes:
        return BasicBlock(inputs, planes)
    shortcut = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
    return BasicBlock(inputs, planes, stride, shortcut)


def _torchvision_model(name: str, *, size: int, classes: int, dropout: float | None) -> nn.Module:
    """Build a classifier of torchvision without pretrained weights, and see that the images fit it."""
    options: dict[str, object] = {"weights": None, "num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        # Without the auxiliary heads, whose logits in training mode would come in a tuple of their own.
        options |= {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):
        options["image_size"] = size
    if dropout is not None:
        options["dropout"] = dropout
    try:
        model = models.get_model(name, **options)
        _try_on_meta(model, torch.empty(1, 3, size, size, device="meta"))
    except TypeError as error:  # an option that the constructor does not know, and only dropout can be one
        raise _without_effect("dropout", dropout, name) from error
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"model={name!r} cannot take images of 3 x {size} x {size}: {error}") from error
    # Some constructors (ConvNeXt's) swallow options that they do not know.
    if dropout is not None and not any(isinstance(module, nn.Dropout) for module in model.modules()):
        raise _without_effect("dropout", dropout, name)
    return model


def _try_on_meta(model: nn.Module, images: Tensor) -> None:
    """Run the model on shapes alone: no arithmetic, no memory, no random numbers."""
    state = {name: tensor.to("meta") for name, tensor in chain(model.named_parameters(), model.named_buffers())}
    functional_call(model.eval(), state, (images,))
    model.train()
