"""What a run is made of: a recipe, chosen for a data set, and the settings of its options."""

from dataclasses import asdict, dataclass

CHANGEABLE = ("epochs", "batch_size", "embedding_size", "scale")  # of a recipe, by an option
LOSSES = ("softmax", "norm-softmax", "sphereface", "cosface", "arcface", "cm1")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that was chosen for a data set. What no option changes stands in a run's record.

    network, augmentation: keyword arguments of the script's ``Network`` and ``augment``.
    muon, sgd: keyword arguments of the two optimizers.
    learning_rates: the peaks. warm_up: the fraction of the steps in which the rates rise
        linearly; then they fall linearly to 0.
    margin_warm_up: the fraction in which the margin rises linearly. Given whole from the first
        step, a large one can turn the embeddings away from their centres (study/collapse.py).
    hardest: the fraction of the training images used in each middle epoch: those with the largest
        loss when last seen. full_epochs: how many epochs use all images at the start, and how
        many at the end.
    views: of test-time augmentation, as in :func:`experiment.evaluation.tta_logits`; empty for
        none.
    default_margins: the margin of each loss that has one.
    """

    dataset: str
    network: dict
    augmentation: dict
    learning_rates: dict[str, float]
    muon: dict
    sgd: dict
    warm_up: float
    margin_warm_up: float
    hardest: float
    full_epochs: list[int]
    views: list[list[float]]
    epochs: int
    batch_size: int
    embedding_size: int
    scale: float
    default_margins: dict[str, float]

    @property
    def hyperparameters(self) -> dict:
        """What no option changes, as it stands in a record and a checkpoint."""
        others = {"dataset", "default_margins", *CHANGEABLE}
        return {key: value for key, value in asdict(self).items() if key not in others}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is asked to do. Equal settings on one machine end with equal weights.

    stop_if_diverged: whether a training that fails raises Diverged; else it goes on, and its
        outcome says so. A loss that is not finite always ends it.
    """

    dataset: str
    recipe: str = "default"
    loss: str
    scale: float | None
    margin: float | None
    embedding_size: int
    epochs: int
    batch_size: int
    seed: int
    device: str
    precision: str
    processes: int = 1
    threads: int
    stop_if_diverged: bool = True


def margins(loss: str, margin: float | None, share: float = 1.0) -> dict:
    """ArcMarginProduct's keyword arguments for each of LOSSES; none for softmax, a linear layer.

    Args:
        share: of the margin, in [0, 1]; it is less than 1 while the margin rises.
    """
    value = margin or 0.0
    known: dict[str, dict[str, float]] = {
        "softmax": {},
        "norm-softmax": {"m": 0.0},
        "sphereface": {"m": 0.0, "m1": 1 + (value - 1) * share},
        "cosface": {"m": 0.0, "m3": value * share},
        "arcface": {"m": value * share},
        "cm1": {"m": 0.3 * share, "m3": 0.2 * share},
    }
    return known[loss]
