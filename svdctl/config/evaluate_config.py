"""What `eval-robust` measures, of which checkpoints, on which data, and where it puts the results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from svdctl.config.base import Config
from svdctl.config.data_config import Data
from svdctl.config.variants import sections
from svdctl.registry import METRICS

if TYPE_CHECKING:
    Settings = dict[str, Config]
else:
    Settings = sections(METRICS)
PerChannel = Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
"""One number for all channels, or three."""


DEFAULT_CHECKPOINTS = (Path("runs"),)
"""Where trainings of svdctl put their runs."""


class NetworkSource(Config):
    """What a file does not say itself about its network; svdctl's checkpoints need nothing of it."""

    model: str | None = None
    """Network of the weights, module:function or torchvision:NAME or timm:NAME."""
    lenient: bool = False
    """Leave out what the network of `model` has no place for, as further heads, and name it."""
    mean: PerChannel | None = None
    """Mean of each channel of the pixels in [0, 1], by which the network normalises its input: 1 or 3 numbers."""
    std: Annotated[tuple[PositiveFloat, ...], Field(min_length=1, max_length=3)] | None = None
    """Standard deviation of each channel: as many numbers as there are means."""
    key: str | None = None
    """Which weights of a file that has several sets of them, as `ema`."""
    architecture: str | None = None
    """Network of a checkpoint of the paper's code, as wrn16-10; one of another network is refused. Absent: any."""
    rank: PositiveInt | None = None
    """Rank of the TT layers of a checkpoint of the paper's code; one of another rank is refused. Absent: any."""
    gouk_transforms: bool = False
    """The checkpoint of the paper's code was trained with mean and standard deviation 0.5. Its file does not tell."""

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("`network.mean` and `network.std` belong together; give both or neither")
        if self.mean is not None and self.std is not None and {len(self.mean), len(self.std)} not in ({1}, {3}):
            given = f"{len(self.mean)} and {len(self.std)} are given"
            raise ValueError(
                f"`network.mean` and `network.std` take 3 numbers each, one for each channel, or 1 for all; {given}"
            )
        return self


class Shard(Config):
    """One of `count` equal parts of the images under attack."""

    index: PositiveInt
    """Which part, from 1."""
    count: PositiveInt
    """Parts in all."""

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.index > self.count:
            raise ValueError(f"`shard = {self.index}/{self.count}`: there is no such shard; they are 1 to {self.count}")
        return self

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class EvaluateConfig(Config):
    """Everything that one call of `eval-robust` is asked."""

    checkpoints: Annotated[tuple[Path, ...], Field(min_length=1)] = DEFAULT_CHECKPOINTS
    """Files, run folders, or folders that hold them."""
    which: Literal["last", "best", "all"] = "last"
    """Which checkpoints of a run folder."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1, default_factory=METRICS.builtin_kinds)]
    """In the order in which they are measured and shown; absent: those that ship with svdctl."""
    data: Data | None = None
    """Data to evaluate on; absent: those that the checkpoint names."""
    dataset_root: Path | None = None
    """Folder of CIFAR. Absent: where the checkpoint's training found it."""
    network: NetworkSource = NetworkSource()
    settings: Settings = Field(default_factory=dict)
    """Of metrics, by their kinds; absent: their defaults."""
    batch_size: PositiveInt | None = None
    """Images at once, halved when memory runs out. Absent: 250; fewer of images above 64 x 64, 20 of 224 x 224.
    AutoAttack's random draws depend on it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 3407
    """Seed of attacks, of corruptions and of which images are taken where not all are."""
    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto"
    """What to compute on: auto is a GPU where there is one, gpu is CUDA or MPS."""
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"
    """Floating point of 32 bits, or autocast to 16: bfloat16 (bf16-mixed) or float16 (16-mixed)."""
    capture: Literal["auto", "off"] = "auto"
    """Replay passes of networks under attack as CUDA graphs, which saves the time of Python. `auto`: those that are
    made often and read nothing back; `off`: never."""
    out_dir: Path | None = None
    """Folder for all results, in folders that end in the hash of the weights; absent: eval-<its name>/ beside each
    checkpoint, and report.md in the one folder given, else in the current folder."""
    force: bool = False
    """Measure again what was measured before."""
    shard: Shard | None = None
    merge_shards: bool = False
    """Join the parts, when all are finished, to the accuracy over all images."""
    cifar_c_res: Path | None = None
    """Folder for a picture and a table of each checkpoint's accuracy under corruptions."""
    autoattacks_res: Path | None = None
    """Folder for a text and a table of each checkpoint's accuracy under attack."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        faults = []
        if self.shard is not None and self.merge_shards:
            faults.append("`shard` attacks one part and `merge_shards` joins all; give one of them")
        if (self.shard is not None or self.merge_shards) and self.metrics != ("autoattacks",):
            faults.append(
                "shards are for attacks; add `metrics = autoattacks`, or leave `shard` and `merge_shards` out"
            )
        twice = sorted({metric for metric in self.metrics if self.metrics.count(metric) > 1})
        if twice:
            faults.append(f"`metrics` has {', '.join(twice)} twice; name each once")
        if faults:
            raise ValueError("\n".join(faults))
        return self
