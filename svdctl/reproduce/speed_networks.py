"""Time of whole networks, full against TT."""

from functools import cached_property, partial
from itertools import chain, count

import torch
from lightning_fabric import Fabric
from torch import nn

from svdctl.config.control_config import NoControl
from svdctl.config.table_config import SpeedFigure, SpeedScale
from svdctl.config.train_config import TrainConfig
from svdctl.control import Controller
from svdctl.layers.shapes import input_sizes
from svdctl.models.build import build_model
from svdctl.reproduce.estimate import random_images
from svdctl.reproduce.plan import network_configs
from svdctl.reproduce.speed_layers import all_values, control
from svdctl.reproduce.speed_points import Point, Work
from svdctl.reproduce.static_figures import control_cost
from svdctl.reproduce.timing import in_rounds
from svdctl.train.trainer import Trainer


class Networks:
    """Whole networks, full and of each rank; built when they are first measured."""

    def __init__(self, figure: SpeedFigure, scale: SpeedScale, device: torch.device) -> None:
        self.figure, self.scale, self.device = figure, scale, device

    @cached_property
    def nets(self) -> dict[int, "_Network"]:
        """By rank, the full one as 0."""
        network = self.scale.network
        return {
            rank: _Network(config, network.batch, self.device, self.figure.max_sigma)
            for rank, config in network_configs(network).items()
        }

    def points(self, work: Work) -> list[Point]:
        """One kind of work on all of them, in turn."""
        times = in_rounds([partial(net.do, work) for net in self.nets.values()], self.scale, self.device)
        full, *others = zip(self.nets, times, strict=True)
        cost = self.nets[0].cost
        return [
            Point("network", rank, None, rank, 32, work, full[1], taken,
                  None if work == "training step" else cost / self.nets[rank].cost)
            for rank, taken in others
        ]  # fmt: skip


class _Network:
    """One whole network, ready for each kind of work."""

    def __init__(self, config: TrainConfig, batch: int, device: torch.device, max_sigma: float) -> None:
        config = config.model_copy(update={"batch_size": batch, "epochs": 1})
        fabric = Fabric(accelerator=device.type, devices=1)
        data = random_images(batch * 4, 32, 10)
        model = build_model(config, 10)
        self.cost = control_cost(model, 32)
        sizes = input_sizes(model, (3, 32, 32))
        self.layers = {
            name: size for name, size in sizes.items() if not isinstance(model.get_submodule(name), nn.Linear)
        }
        self.trainer = Trainer(config, model, fabric, data, data, Controller(model, NoControl(), None, sizes=sizes))
        self.model, self.max = model.train(), max_sigma
        self.totals = torch.zeros(5, dtype=torch.float64, device=device)
        # No end: how often a step is timed is not known before.
        self.batches = chain.from_iterable(self.trainer.batches.epoch(epoch) for epoch in count())

    def do(self, work: Work) -> None:
        """All values, one control pass over all convolutions, or one step."""
        if work == "training step":
            self.trainer.train_step(*next(self.batches), self.totals)
            return
        with torch.no_grad():
            for name, size in self.layers.items():
                layer = self.model.get_submodule(name)
                if work == "all values":
                    all_values(layer, size=size)
                else:
                    control(layer, max_sigma=self.max)
