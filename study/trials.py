"""The trials that chose the settings of the default recipes; study/tuning.py runs them.

START: what a search began with. TRIALS: a trial's name → the trial that it changes, its changes
(of a dictionary only the named keys), and with how many seeds it is run.
"""

from typing import Any

from experiment.recipe import Recipe

START = {
    "mnist": Recipe(
        dataset="MNIST",
        network={"widths": [32, 64, 128], "residual": False, "bn_momentum": 0.4},
        augmentation={"degrees": 15, "scale": 0.15, "shear": 0.15, "shift": 0.07, "full": 0.6},
        learning_rates={"filters": 0.08, "others": 0.05, "head": 0.2, "linear head": 0.02},
        muon={"momentum": 0.6, "weight_decay": 0, "ns_steps": 3},
        sgd={"momentum": 0.85, "nesterov": True},
        warm_up=0.1,
        margin_warm_up=0.1,
        hardest=0.3,
        full_epochs=[2, 2],
        views=[],
        epochs=20,
        batch_size=500,
        embedding_size=128,
        scale=8.0,
        default_margins={"arcface": 0.1, "cosface": 0.1, "sphereface": 1.1},
    ),
    "cifar10": Recipe(
        dataset="CIFAR-10",
        network={"widths": [64, 256, 256], "residual": True, "bn_momentum": 0.4},
        augmentation={"shift": 3, "hidden": 5, "sizes": [20, 24, 28, 32], "light": 0.0},
        learning_rates={"filters": 0.24, "others": 0.4, "head": 1.0, "linear head": 0.04},
        muon={"momentum": 0.6, "weight_decay": 0, "ns_steps": 3},
        sgd={"momentum": 0.85, "nesterov": True},
        warm_up=0.1,
        margin_warm_up=0.1,
        hardest=0.5,
        full_epochs=[2, 2],
        views=[[0, 0.25], [1, 0.125], [-1, 0.125]],
        epochs=20,
        batch_size=2000,
        embedding_size=256,
        scale=6.0,
        default_margins={"arcface": 0.1, "cosface": 0.1, "sphereface": 1.1},
    ),
}

TRIALS: dict[str, dict[str, tuple[str, dict[str, Any], int]]] = {
    "mnist": {
        "start": ("", {}, 3),
        "m = 0": ("start", {"default_margins": {"arcface": 0.0}}, 2),
        "m = 0.2": ("start", {"default_margins": {"arcface": 0.2}}, 2),
        "m = 0.3": ("start", {"default_margins": {"arcface": 0.3}}, 2),
        "m = 0.5": ("start", {"default_margins": {"arcface": 0.5}}, 2),
        "s = 4": ("start", {"scale": 4.0}, 3),
        "s = 16": ("start", {"scale": 16.0}, 2),
        "all images": ("start", {"hardest": 1.0, "epochs": 9}, 2),
        "hardest half": ("start", {"hardest": 0.5, "epochs": 14}, 2),
        "hardest fifth": ("start", {"hardest": 0.2, "epochs": 28}, 2),
        "no fading": ("start", {"augmentation": {"full": 1.0}}, 2),
        "short warm-up": ("start", {"warm_up": 0.02}, 2),
        "30 epochs": ("start", {"epochs": 30}, 2),
    },
    "cifar10": {
        "start": ("", {}, 1),
        "three convolutions, to 28 px": (
            "start",
            {
                "augmentation": {"sizes": [16, 20, 24, 28], "light": 0.15},
                "hardest": 0.35,
                "full_epochs": [2, 1],
            },
            1,
        ),
        "two convolutions, to 32 px": (
            "three convolutions, to 28 px",
            {
                "network": {"residual": False},
                "augmentation": {"sizes": [16, 20, 24, 28, 32]},
                "epochs": 22,
            },
            2,
        ),
        "s = 4": ("two convolutions, to 32 px", {"scale": 4.0}, 1),
        "batches of 1,000": (
            "two convolutions, to 32 px",
            {
                "batch_size": 1000,
                "learning_rates": {"filters": 0.17, "others": 0.28, "head": 0.7},
            },
            1,
        ),
        "rates × 1.5": (
            "two convolutions, to 32 px",
            {"learning_rates": {"filters": 0.36, "others": 0.6, "head": 1.5}},
            1,
        ),
        "rates × 0.7": (
            "two convolutions, to 32 px",
            {"learning_rates": {"filters": 0.17, "others": 0.28, "head": 0.7}},
            1,
        ),
        "no hidden square": ("two convolutions, to 32 px", {"augmentation": {"hidden": 0}}, 1),
        "no change of light": ("two convolutions, to 32 px", {"augmentation": {"light": 0.0}}, 1),
        "hardest half": ("two convolutions, to 32 px", {"hardest": 0.5, "epochs": 17}, 1),
        "short warm-up": ("two convolutions, to 32 px", {"warm_up": 0.02}, 2),
        "half at 32 px": (
            "two convolutions, to 32 px",
            {"augmentation": {"sizes": [16, 24, 32, 32]}, "epochs": 19},
            1,
        ),
        "as airbench94": (
            "two convolutions, to 32 px",
            {
                "augmentation": {"shift": 2, "hidden": 0, "sizes": [32], "light": 0.0},
                "hardest": 1.0,
                "epochs": 8,
                "full_epochs": [8, 0],
            },
            1,
        ),
        "two convolutions, to 28 px": (
            "two convolutions, to 32 px",
            {"augmentation": {"sizes": [16, 20, 24, 28]}, "epochs": 26},
            1,
        ),
    },
}
