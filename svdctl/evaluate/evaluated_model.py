"""A checkpoint made ready to be measured: its network, what it was trained on, and what identifies it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from svdctl.checkpoint.checkpoint_file import Checkpoint, network_of, read_checkpoint
from svdctl.checkpoint.model_factory import Misfit, load_model, load_model_leniently
from svdctl.checkpoint.paper_checkpoints import PAPER_IMAGE_SHAPE, open_paper_network
from svdctl.checkpoint.run_maxima import run_maxima
from svdctl.checkpoint.tensors import digest
from svdctl.checkpoint.weight_file import WeightFile, read_tensors
from svdctl.config.base import Config
from svdctl.config.data_config import Data
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.config.train_config import TrainConfig
from svdctl.data.images import ImageData
from svdctl.errors import CheckpointError, UsageError
from svdctl.models.external_architecture import External, is_network
from svdctl.plugins import grant_factory, granted_factory, is_factory, without_folder
from svdctl.registry import DATA
from svdctl.utils.content_hash import content_digest


@dataclass(frozen=True)
class EvaluatedModel:
    """A network with pixels in [0, 1] as input, and its origin."""

    model: nn.Module
    weights: str
    """SHA-256 of all parameters and buffers, and of what the network is."""
    network: dict[str, Any]
    """What the network is, for protocols."""
    data: Data | None
    """What it was trained on, as far as the file says."""
    classes: tuple[str, ...] | None
    image_shape: tuple[int, int, int] | None
    training: TrainConfig | None
    notices: tuple[str, ...] = field(default=())
    trained_on: Mapping[str, str] | None = None
    """Fingerprints of the parts of the data that it was trained on; None: not known."""
    other_data_until: int = 0
    """Last step that was trained on other data than those."""
    maxima: Mapping[str, float] | None = None
    """Of layers by name, of the run that trained them; each is used where it is proved. None: of no run of svdctl."""

    @property
    def follows_paper(self) -> bool:
        """Return whether it was trained by the paper's code, or by svdctl as the paper's code does (`init = paper`)."""
        return self.network["kind"] == "paper" or (self.training is not None and self.training.init == "paper")

    def check(self, test: ImageData, where: str) -> None:
        """Check that the network tells these images apart.

        Raises:
            CheckpointError: other classes, or images of another size.
        """
        if self.classes is not None and self.classes != test.classes:
            what = (
                f"{len(self.classes)} classes, and {where} has {len(test.classes)}"
                if len(self.classes) != len(test.classes)
                else f"other classes than {where} has ({', '.join(self.classes[:3])}, ...)"
            )
            raise CheckpointError(f"the network was trained on {what}; evaluate it on its own data (`data.kind`)")
        if self.image_shape is not None and self.image_shape != test.image_shape:
            raise CheckpointError(
                f"the network was trained on images of {self.image_shape}, and those of {where} are "
                f"{test.image_shape}; evaluate it on its own data (`data.kind`)"
            )


def open_evaluated_model(path: Path, config: EvaluateConfig) -> EvaluatedModel:
    """Read a checkpoint of svdctl, of the paper's code, or of the network of `network.model`; nothing is executed.

    Raises:
        CheckpointError: missing, damaged, or not of the network asked for.
        UsageError: `network.model` makes no network, or is missing for weights that do not tell theirs.
    """
    source = config.network
    if source.model is not None and is_factory(source.model):
        grant_factory(source.model)
    weights = read_tensors(path, key=source.key)
    if weights.format == "svdctl" and source.key in (None, "model"):
        checkpoint = read_checkpoint(weights.path)
        if source.model is None or is_network(checkpoint.config.model, source.model):
            return _own(checkpoint, weights.path, config)
    elif weights.format == "svdctl" and source.model is None:
        raise UsageError(
            f"{weights.path} is a checkpoint of svdctl, which holds one network: leave out "
            f"`network.key = {source.key}`, or put what stands there into a file of its own"
        )
    if source.model is not None:
        return _foreign(source.model, weights, config)
    if weights.format == "paper":
        return _paper(weights, config)
    raise UsageError(
        f"{path} holds weights but does not say of which network; add "
        "`network.model = module:factory`, torchvision:NAME or timm:NAME, and "
        "`network.mean` and `network.std` unless the network normalises its input itself"
    )


def _own(checkpoint: Checkpoint, path: Path, config: EvaluateConfig) -> EvaluatedModel:
    training, source = checkpoint.config, config.network
    model = network_of(checkpoint, path)
    of_others = {"architecture", "rank", "gouk_transforms", "mean", "std"}
    given = ", ".join(f"`network.{key}`" for key in source.model_dump(include=of_others, exclude_defaults=True))
    notices: tuple[str, ...] = ()
    if given:
        notices += (f"{given}: without effect, a checkpoint of svdctl says itself what it holds",)
    network: dict[str, Any] = {
        "kind": "svdctl",
        "model": _differing(training.model),
        "layer": _differing(training.layer),
    }
    if isinstance(training.model, External) and is_factory(training.model.network):
        made_by = granted_factory(training.model.network)
        if made_by != training.model.network:
            notices += (f"trained with {training.model.network}, evaluated with {made_by}, which its weights fit",)
        network["model"]["network"] = without_folder(training.model.network)
    return EvaluatedModel(
        model.eval(),
        identity(model, network),
        network,
        training.data,
        checkpoint.classes,
        checkpoint.image_shape,
        training,
        notices,
        checkpoint.data,
        _other_data_until(checkpoint),
        run_maxima(checkpoint, model).of_layers,
    )


def _other_data_until(checkpoint: Checkpoint) -> int:
    """Return the last step on other data; `best.pt` has no counters, and holds it among its metrics."""
    counters = checkpoint.training.get("counters")
    found = counters.get("other_data_until", 0) if isinstance(counters, Mapping) else 0
    return max(int(checkpoint.metrics.get("other_data_until", 0)), found if isinstance(found, int) else 0)


def _differing(section: Config) -> dict[str, Any]:
    """Return kind and what is not the default: fields that a later svdctl adds do not make it another network."""
    return {"kind": section.model_dump()["kind"], **section.model_dump(mode="json", exclude_defaults=True)}


def _paper(weights: WeightFile, config: EvaluateConfig) -> EvaluatedModel:
    source = config.network
    opened = open_paper_network(
        weights.tensors,
        where=str(weights.path),
        gouk_transforms=source.gouk_transforms,
        mean=source.mean,
        std=source.std,
        architecture=source.architecture,
        rank=source.rank,
    )
    found, model = opened.architecture, opened.model
    data = None if found.dataset is None else DATA.get(found.dataset).config()
    network = {"kind": "paper", "name": found.name, **{key: list(value) for key, value in opened.normalize.items()}}
    notices = (opened.told,)
    return EvaluatedModel(model, identity(model, network), network, data, None, PAPER_IMAGE_SHAPE, None, notices)


def _foreign(spec: str, weights: WeightFile, config: EvaluateConfig) -> EvaluatedModel:
    source = config.network
    misfit = Misfit((), ())
    if source.lenient:
        model, misfit = load_model_leniently(spec, weights, mean=source.mean, std=source.std)
        if misfit.unfilled:
            raise CheckpointError(
                f"{weights.path} does not fill {misfit.unfilled[0]!r} of {spec}, and a network with random numbers "
                "is not evaluated; check `network.model`"
            )
    else:
        model = load_model(spec, weights, mean=source.mean, std=source.std)
    network = {"kind": spec, "mean": source.mean, "std": source.std}
    given = "is given pixels in [0, 1] as they are"
    text = f"{spec} {given}; give `network.mean` and `network.std` if it was trained on others"
    notices = tuple(filter(None, (text if source.mean is None else "", misfit.told)))
    return EvaluatedModel(model, identity(model, network), network, None, None, None, None, notices)


def identity(model: nn.Module, network: Mapping[str, Any]) -> str:
    """Return SHA-256 over names, types, shapes and bytes of all tensors, and over the network's description."""
    return content_digest(f"{digest(model.state_dict())} {json.dumps(network, sort_keys=True)}")
