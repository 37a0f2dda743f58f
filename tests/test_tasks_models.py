"""Classifiers by name: shapes, gradients, sizes known from the literature, and refused options."""

import pytest
import torch
from torch import nn
from torchvision import models

from dist_lookahead.tasks.datasets import DATA_SETS
from dist_lookahead.tasks.models import OWN_MODELS, build_model


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("data", [name for name in DATA_SETS if name != "imagefolder"])
@pytest.mark.parametrize("name", OWN_MODELS)
def test_every_own_model_takes_every_small_data_set_and_trains_all_its_parameters(name: str, data: str):
    """8 x 8 grey digits are halved three times by the ResNets: a fourth halving would end in an error."""
    facts = DATA_SETS[data]
    torch.manual_seed(0)  # some seeds leave a narrow layer without a live unit
    model = build_model(name, channels=facts.channels, size=facts.size, classes=7, width=16)
    logits = model(torch.randn(3, facts.channels, facts.size, facts.size))
    assert logits.shape == (3, 7)
    logits.square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize(("name", "count"), [("cifar_resnet18", 11_173_962), ("cifar_resnet34", 21_282_122)])
def test_resnets_for_cifar_have_the_well_known_number_of_parameters(name: str, count: int):
    """The numbers of the usual CIFAR ResNets; another stem, stage or shortcut changes them."""
    assert parameters(build_model(name, channels=3, size=32, classes=10)) == count


def test_a_cifar_resnet_keeps_the_full_image_in_its_first_stage():
    """The ImageNet stem would hand 8 x 8 places to the first stage."""
    model = build_model("cifar_resnet18", channels=3, size=32, classes=10, width=4)
    first_stage = nn.Sequential(*list(model.children())[:4])
    assert first_stage(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 32, 32)


@pytest.mark.parametrize("name", ["mlp", "cnn", "cifar_resnet18"])
def test_width_scales_the_model_and_has_the_documented_default(name: str):
    default = {"mlp": 128, "cnn": 32, "cifar_resnet18": 64}[name]
    sizes = [
        parameters(build_model(name, channels=1, size=8, classes=10, width=width)) for width in (default // 2, default)
    ]
    assert sizes[0] < sizes[1] == parameters(build_model(name, channels=1, size=8, classes=10))


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_dropout_acts_in_training_only(name: str):
    model = build_model(name, channels=1, size=8, classes=10, dropout=0.5)
    for module in model.modules():  # batch statistics aside: they too differ between the modes
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = torch.randn(16, 1, 8, 8)
    assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


def test_the_global_generator_decides_the_weights():
    """The trainer seeds it: agents and reruns must start from the same weights."""
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(build_model("cifar_resnet18", channels=3, size=32, classes=10, width=4).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["fc.weight"], states[2]["fc.weight"])


def test_a_classifier_of_torchvision_is_torchvisions_own():
    """Trying the image size must change neither weights nor random numbers nor the mode of the model."""
    torch.manual_seed(0)
    model = build_model("mobilenet_v3_small", channels=3, size=32, classes=5)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    expected = models.get_model("mobilenet_v3_small", weights=None, num_classes=5)
    assert torch.equal(after, torch.get_rng_state())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in expected.state_dict().items())
    assert model.training
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_a_vision_transformer_is_sized_by_the_images():
    """Left at its default it would refuse everything but 224 x 224."""
    model = build_model("vit_b_32", channels=3, size=32, classes=5)
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 5)


def test_googlenet_gives_plain_logits_in_training():
    """With its auxiliary heads it would return a tuple, which no loss here can take."""
    model = build_model("googlenet", channels=3, size=32, classes=5)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_dropout_reaches_a_classifier_of_torchvision_that_has_it():
    model = build_model("squeezenet1_1", channels=3, size=32, classes=5, dropout=0.125)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.125]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet81", {}, r"model='resnet81' is unknown; did you mean 'resnet18'\? Allowed: mlp, cnn, cifar_"),
        (
            "resnet18",
            {"width": 32},
            "width=32 has no effect on model='resnet18'.*choose mlp or cnn or cifar_",
        ),
        ("resnet18", {"dropout": 0.1}, r"dropout=0.1 has no effect on model='resnet18'.*choose mlp or cnn$"),
        ("convnext_tiny", {"dropout": 0.1}, "dropout=0.1 has no effect on model='convnext_tiny'"),
        ("cifar_resnet18", {"dropout": 0.0}, "dropout=0.0 has no effect on model='cifar_resnet18'"),
        ("mlp", {"width": 0}, "width=0 must be at least 1"),
        ("mlp", {"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ("resnet18", {"channels": 1}, "takes images of 3 channels, not 1: choose mlp, cnn"),
        ("squeezenet1_1", {"size": 8}, "model='squeezenet1_1' cannot take images of 3 x 8 x 8: "),
        ("vit_b_32", {"size": 40}, "model='vit_b_32' cannot take images of 3 x 40 x 40: "),
    ],
)
def test_what_cannot_work_or_has_no_effect_is_refused(name: str, options: dict, message: str):
    """ConvNeXt's constructor swallows unknown options, so without a check its dropout would be ignored."""
    with pytest.raises(ValueError, match=message):
        build_model(name, **{"channels": 3, "size": 32, "classes": 10, **options})
