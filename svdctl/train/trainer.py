"""A network in training: its steps, its state, and how good it is; the same on a CPU, one GPU or many."""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from pydantic import TypeAdapter
from torch import Tensor, nn

from svdctl.certificates import Certifier
from svdctl.config.train_config import TrainConfig
from svdctl.control.control_report import Report
from svdctl.control.controller import Controller
from svdctl.data.batches import Batch, Batches, derived_seed
from svdctl.data.images import ImageData
from svdctl.distributed.group import Group
from svdctl.errors import DivergenceError, ShapeError
from svdctl.layers.layer_ops import find_ops, layers_of_types
from svdctl.layers.shapes import input_sizes
from svdctl.layers.stiefel import MAX_DEFECT, frame_error
from svdctl.models.architecture import is_shipped
from svdctl.models.build import build_optimizer
from svdctl.registry import LOSSES
from svdctl.spectral.bounds import TOLERANCE, Bracket
from svdctl.train.captured_step import CapturedSteps, why_not_captured
from svdctl.train.divergence import ways_out
from svdctl.train.loss import Loss, LossBatch
from svdctl.train.validation import Accuracy, evaluate
from svdctl.train.weight_average import WeightAverage
from svdctl.utils.progress import Advance, Reporter

T = TypeVar("T")
WIDE = 0.05
"""Tolerance of the brackets that are drawn: their lower ends are mostly within 1 % of the norm."""


@dataclass
class Counters:
    """Where a training stands."""

    step: int = 0
    best_accuracy: float = -1.0
    """Of the network in `best.pt`: certified where there are certificates, else plain."""
    best_plain_accuracy: float = -1.0
    """Its plain accuracy, which decides between equals."""
    best_step: int = 0
    best_weights: str = ""
    """SHA-256 of its weights; empty: not known, or none was picked."""
    epoch_finished: bool = True
    """Whether the epoch that `step` is in, or ends, is evaluated, recorded and, where due, in `best.pt`."""
    other_data_until: int = 0
    """Step up to which the run was trained on data that have changed since; 0: they have not."""
    other_data: str = ""
    """What has changed in them."""
    unknown_data_until: int = 0
    """Step up to which it is not known on which data it was trained; 0: all is known."""
    step_lines: int = 0
    """Lines about steps and proofs that the log was given."""
    departures: int = 0
    """How often the run went on with other data, for another number of epochs, or from an earlier checkpoint than its
    last one."""
    extensions: tuple[tuple[int, int], ...] = ()
    """Where its number of epochs was changed: after which step, and what it was before; also where no step was made
    until the next change."""


EPOCH, SINCE_RECORD = 0, 1
"""Rows of `Trainer.totals`."""


@dataclass
class Trainer:
    """A model in training: everything that a checkpoint has to hold, and the steps that change it."""

    config: TrainConfig
    model: nn.Module
    fabric: Fabric
    train_data: ImageData
    evaluation_data: ImageData
    controller: Controller
    counters: Counters = field(default_factory=Counters)
    notice: Callable[[str], None] = lambda text: None
    """Is given sentences that the user should read."""
    part: Callable[[str], AbstractContextManager[Advance]] = Reporter().part
    """Shows what may take long while its body runs, and is told how far that is."""

    def __post_init__(self) -> None:
        device = self.fabric.device
        self.group = Group.of(self.fabric)
        self.train_data = self.train_data.to(device)
        self.evaluation_data = self.evaluation_data.to(device)
        self.batches = Batches(
            self.train_data,
            self.config.batch_size,
            self.config.seed,
            self.config.augment,
            self.fabric.global_rank,
            self.fabric.world_size,
            self.config.accumulate or 1,
        )
        channels_last = self.config.hardware.channels_last
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(device).to(memory_format=self._layout)
        # The raw optimiser is kept: frames carry its momentum along, and checkpoints hold its state.
        self.optimizer = build_optimizer(self.config.optimizer, self.model)
        self.controller.optimizer = self.optimizer
        self._scheduled_steps = self.config.epochs * self.batches.steps_per_epoch
        self.total_steps = min(self._scheduled_steps, self.config.max_steps or self._scheduled_steps)
        self._captured: CapturedSteps | None = None
        if why_not_captured(self.config.hardware, device, self.fabric.world_size, self.config.schedule) is None:
            self._captured = CapturedSteps(self._step_on_device, device, self.notice)
        if device.type == "cuda":
            self._keep_rates_in_tensors()  # whether steps are captured or not, so that they are the same
        runnable: Any = self._compiled() if self.config.hardware.compile else self.model
        self.runnable, self.stepper = self.fabric.setup(runnable, self.optimizer)
        self._average = None if self.config.ema is None else WeightAverage(self.model, self.config.ema.decay)
        self.judged = self.model if self._average is None else self._average.network
        """The network that is sealed, evaluated, certified and saved: that of the average, where there is one."""
        self._judge = None if self._average is None else self.controller.for_copy(self.judged)
        self._first_work = "compiling the network" if self.config.hardware.compile else None
        """What the first step does besides; None: nothing that takes long, or it is made."""
        self._refreshed_at: int | None = None
        """Step of which `judged` has the average."""
        self._loss: Loss = LOSSES.get(self.config.loss.kind)
        self.epochs: list[dict[str, Any]] = []
        """The lines of the log about the epochs so far."""
        self.step_digests: list[str] = []
        """`line_digest` of each line about steps and proofs that the log was given."""
        self._computed: dict[str, tuple[list[int], Any]] = {}
        """What was computed of the weights since the last step, with the counters of their changes."""
        # Added to step by step, so that they do not depend on when they are read.
        self.totals = torch.zeros(2, 5, dtype=torch.float64, device=device)
        """Of (loss, penalty, correct, images, steps that were not finite): of the epoch, and since the last record."""
        self._set_rate()
        self._set_maximum(self.counters.step)
        self.start_epoch()

    def _keep_rates_in_tensors(self) -> None:
        """Let each step read its learning rate from a tensor (0-d, float32) on the device, as a CUDA graph has to."""
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(group["lr"], dtype=torch.float32, device=self.fabric.device)
            if "capturable" in group:
                # Adam refuses to be recorded otherwise; its fused kernel is the same.
                group["capturable"] = True
        self.optimizer._warned_capturable_if_run_uncaptured = True  # nor eager steps a warning

    def _compiled(self) -> Any:
        """Return the network, compiled when it is first run; what depends on shapes is chosen before."""
        sizes = input_sizes(self.model, self.train_data.image_shape)
        layers = [self.model.get_submodule(name) for name in sizes]
        images = math.ceil(self.config.batch_size / self.fabric.world_size / (self.config.accumulate or 1))
        for ops, places in layers_of_types(layers):
            found = [list(sizes.values())[place] for place in places]
            ops.before_compiling_([layers[place] for place in places], found, batch=images)
        return torch.compile(self.model)

    @property
    def judge(self) -> Controller:
        """Return the controller of `judged`."""
        return self._judge or self.controller

    @property
    def rate(self) -> float:
        """Return the learning rate of the next step."""
        lr = self.config.optimizer.lr
        return lr * self.config.schedule.lr_factor(self.counters.step, self._scheduled_steps, lr)

    @property
    def momentum(self) -> float:
        """Return the momentum of the next step; of Adam the first of its betas."""
        defaults = self.optimizer.defaults
        momentum: float = defaults["betas"][0] if "betas" in defaults else defaults["momentum"]
        return self.config.schedule.momentum(self.counters.step, self._scheduled_steps, momentum)

    def _set_rate(self) -> None:
        if self._average is not None:
            self._average.set_step(self.counters.step)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.rate)
            else:
                group["lr"] = self.rate
            if "betas" in group:
                group["betas"] = (self.momentum, group["betas"][1])
            else:
                group["momentum"] = self.momentum

    @property
    def max_scale(self) -> float | None:
        """Return what the maxima are multiplied by in the last step, and until the next; None: nothing moves them."""
        return self._scale_after(self.counters.step)

    def _scale_after(self, step: int) -> float | None:
        control = self.config.control
        if getattr(control, "max_sigma_start", None) is None:
            return None
        return control.maximum_scale(step, self.batches.steps_per_epoch)

    def _set_maximum(self, step: int) -> None:
        """Give layers the maximum that they have in a step, counted from 1, and until the next one."""
        scale = self._scale_after(step)
        if scale is not None:
            for controller in dict.fromkeys((self.controller, self.judge)):
                controller.scale_maxima(scale)

    def start_epoch(self) -> None:
        """Set the sums over an epoch's steps to zero."""
        self.totals.zero_()
        self.train_time = 0.0
        """Seconds of the epoch's steps."""
        self.control_time = 0.0
        """Seconds of control among them."""
        self.proof_time = 0.0
        """Seconds of proofs among them."""

    def train_step(self, batch: Batch) -> None:
        """Make one step, and add (loss, penalty, correct, images, steps that were not finite) to `totals`.

        Nothing waits for the device, but a control that has to. On a CUDA device the step is a replay where it can be.
        """
        self._computed.clear()
        controller, step = self.controller, self.counters.step + 1
        self._set_maximum(step)
        before = controller.control_seconds
        if not is_shipped(self.config.model):
            # It may draw, as dropout does; each process its own numbers.
            torch.manual_seed(derived_seed(self.config.seed, "network", step, self.fabric.global_rank))
        first, self._first_work = self._first_work, None
        try:
            with nullcontext() if first is None else self.part(first):
                if self._captured is None:
                    self._step_on_device(batch)
                else:
                    capture = controller.why_not_captured(step) is None
                    self._captured.run(batch, controller.due(step), capture=capture)
        except (ShapeError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]  # public, not declared
            self.counters.step = step
            raise self._lost("weights were not finite, or too large to be controlled,") from error
        self.control_time += controller.control_seconds - before
        controller.steps = self.counters.step = step
        self.counters.epoch_finished = False
        self._set_rate()

    def _step_on_device(self, batch: Batch) -> None:
        """Do the work of the next step; what is counted on the host stays as it is, so that it can be captured."""
        batches, world, step = self.batches, self.fabric.world_size, self.counters.step
        # Gradients are averaged over processes, whose shares may differ: this average is the mean over all images.
        share = (len(batch) if world == 1 else batches.count(step % batches.steps_per_epoch)) / world
        *others, last = batch.parts()
        try:
            for part in others:
                with self._without_messages():
                    self._add_gradients(part, share)
            self._add_gradients(last, share, penalized=len(batch))
            self._clip_gradients()
            self.stepper.step()
        finally:
            self.stepper.zero_grad(set_to_none=True)
        if self.controller.reads_back(step + 1) and self.config.control.every_steps > 1:
            with self.part("controlling singular values") as advance, self.controller.reporting(advance):
                self.controller.apply_(step + 1)
        else:
            self.controller.apply_(step + 1)
        if self._average is not None:
            self._average.update_()

    def _without_messages(self) -> AbstractContextManager[None]:
        """Return a context in which gradients are added up in each process on its own."""
        if self.fabric.world_size == 1:
            return nullcontext()
        context: AbstractContextManager[None] = self.fabric.no_backward_sync(self.runnable)
        return context

    def _add_gradients(self, part: Batch, share: float, *, penalized: int | None = None) -> None:
        """Add the gradients of a part of a batch, and what is counted of it to `totals`.

        Args:
            part: of the batch.
            share: what its sum of losses is divided by.
            penalized: images that the penalty counts for in `totals`; None: it is left to another part.
        """
        images, labels = self.batches.pixels(part), part.own_labels
        logits = self.runnable(images.contiguous(memory_format=self._layout))
        given = LossBatch(logits, labels, images, self.runnable)
        loss = self._loss.value(given, self.config.loss)
        if part.mix is not None:
            loss = _mixed(
                part.mix, loss, self._loss.value(replace(given, labels=part.partner_labels), self.config.loss)
            )
        loss = loss / share
        penalty = self.controller.penalty() if penalized is not None and self.controller.has_penalty else None
        total = loss if penalty is None else loss + penalty
        self.fabric.backward(total)
        with torch.no_grad():
            found = logits.argmax(1)
            right = (found == labels).sum().to(loss.dtype)
            if part.mix is not None:
                right = _mixed(part.mix, right, (found == part.partner_labels).sum().to(loss.dtype))
            # Sums in float64 do not round counts, and losses no more than they are rounded already.
            added = torch.stack(
                [
                    loss.detach() * share,
                    torch.zeros_like(loss) if penalty is None else penalty.detach() * (penalized or 0),
                    right,
                    torch.full_like(loss, len(labels)),
                    (~torch.isfinite(total.detach())).to(loss.dtype),
                ]
            )
            self.totals += added

    def _clip_gradients(self) -> None:
        """Scale the gradient of all parameters down to `optimizer.clip_norm`; nothing waits for the device."""
        most = self.config.optimizer.clip_norm
        if most is None:
            return
        # Not by Fabric, which does not unscale for fused optimisers; torch's scaler does.
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), most)

    def prove(self) -> dict[str, Bracket]:
        """Prove all layers to be within their maxima, in all processes; returns what was proved, by layer."""
        before = self.controller.proof_seconds
        with self.part("proving the maxima") as advance, self.controller.reporting(advance):
            found = self.controller.prove()
        self.proof_time += self.controller.proof_seconds - before
        return found

    def seal(self, *, scheduled: bool = True) -> dict[str, Bracket]:
        """Make the bounds of `judged` hold by proof, in all processes; returns what was proved, once for a state.

        Weights that are averaged are sealed at the same steps as those that are not, so that an average changes nothing
        of a training, and never the average itself. Brackets are sharp where they are logged or printed.

        Args:
            scheduled: whether this is a step at which a run seals whatever happens to it.
        """
        sharp = self._is_sharp

        def sealed(controller: Controller) -> dict[str, Bracket]:
            # What a seal off the schedule scales is undone, or done again when the run goes on.
            counting = nullcontext() if scheduled else controller.uncounted()
            with counting, self.part("proving bounds") as advance, controller.reporting(advance):
                return controller.seal(sharp=sharp)

        if self._average is not None:
            if scheduled:
                self._of_this_state("raw seal", self.model, lambda: sealed(self.controller))
            if self._refreshed_at != self.counters.step:
                self._average.refresh_()
                self._refreshed_at = self.counters.step
        return self._of_this_state("seal", self.judged, lambda: sealed(self.judge))

    @property
    def _is_sharp(self) -> bool:
        """Return whether brackets are within 0.5 %: at the last step, and where the configuration asks for it."""
        return self.config.log.singular_values or self.counters.step >= self.total_steps

    def report(self) -> Report:
        """Return largest value and bound of each layer, sharp where `seal` is; called in all processes."""
        sealed = self.seal()
        tolerance = TOLERANCE if self._is_sharp else WIDE

        def reported() -> Report:
            with self.part("finding the largest singular values") as advance, self.judge.reporting(advance):
                return self.judge.report(sealed, tolerance=tolerance)

        return self._of_this_state("report", self.judged, reported)

    def _certifier(self, image_shape: tuple[int, ...]) -> Certifier:
        def certifier() -> Certifier:
            with self.part("proving the network's Lipschitz constant"):
                maxima = {name: self.judge.maximum(name) for name in self.judge.layers}
                known = {name: maximum for name, maximum in maxima.items() if maximum is not None}
                return Certifier(self.judged, image_shape, maxima=known)

        return self._of_this_state("certifier", self.judged, certifier)

    def _of_this_state(self, what: str, network: nn.Module, compute: Callable[[], T]) -> T:
        """Return what was computed of a network's weights as they are; computed now unless it was.

        torch counts the changes of a tensor in place.
        """
        state = [value._version for value in network.state_dict().values()]
        if what not in self._computed or self._computed[what][0] != state:
            found = compute()
            # A seal may change the weights.
            self._computed[what] = [value._version for value in network.state_dict().values()], found
        result: T = self._computed[what][1]
        return result

    def evaluate(self, data: ImageData) -> Accuracy:
        """Return how good the network is on a data set.

        Raises:
            ShapeError: certificates of a network with an operation that has no rule.
        """
        certifier = self._certifier(data.image_shape) if self.config.certificate is not None else None
        with self.part("evaluating" if certifier is None else "certifying") as advance:
            return evaluate(
                self.judged,
                data.to(self.fabric.device),
                self.fabric,
                batch_size=2 * self.config.batch_size,
                memory_format=self._layout,
                certifier=certifier,
                advance=advance,
            )

    def frame_deviation(self) -> float | None:
        """Return the largest `||U^T U - I||_2` over all frames; None without frames."""
        layers = ((find_ops(layer), layer) for layer in self.judged.modules())
        frames = [frame for ops, layer in layers if ops is not None for frame in ops.frames(layer)]
        errors = [frame_error(frame.double()) for frame in frames]
        return float(torch.stack(errors).max()) if errors else None

    @property
    def epoch(self) -> int:
        """Return the epoch of the last step, counted from 0."""
        return min(max(self.counters.step - 1, 0) // self.batches.steps_per_epoch, self.config.epochs - 1)

    @property
    def at_epoch_end(self) -> bool:
        """Return whether the last step was its epoch's last, or the run's."""
        step = self.counters.step
        return step % self.batches.steps_per_epoch == 0 or step >= self.total_steps

    def read(self, totals: Tensor, epoch: int) -> dict[str, float]:
        """Return means of `totals` `(5,)` over its images.

        Raises:
            DivergenceError: when a loss was not finite, or a weight is not.
        """
        loss, penalty, correct, count, broken = self.group.summed_(totals.clone()).tolist()
        if broken or not self._is_finite():
            raise self._lost(f"{'loss was' if broken else 'weights were'} not finite")
        count = max(count, 1.0)
        return {
            "epoch": epoch + 1,
            "epochs": self.config.epochs,
            "loss": loss / count,
            "orthogonal_loss": penalty / count,
            "acc": correct / count,
            "lr": self.rate,
        }

    def check_frames(self) -> None:
        """Let QR retract frames for the rest of the run if products have left one too far from orthonormal.

        It is called at steps that do not depend on a clock, so that a resumed run does the same.
        """
        controller = self.controller
        if controller.frame_residual is None or controller.retracts_by_qr:
            return
        residual = float(controller.frame_residual)
        controller.frame_residual.zero_()
        if residual > MAX_DEFECT:
            controller.retract_by_qr()
            self._captured = None
            self.notice(
                f"frames were {residual:.1e} from orthonormal after a retraction by products, up to step "
                f"{self.counters.step}; from now on they are retracted by QR, and steps run eagerly"
            )

    def _lost(self, what: str) -> DivergenceError:
        return DivergenceError(f"the {what} in or just before step {self.counters.step}; {ways_out(self.config)}")

    def _is_finite(self) -> bool:
        """Return whether weights and statistics are finite; losses show a gradient that is not one step later."""
        state = [value for value in self.model.state_dict().values() if value.is_floating_point() and value.numel()]
        largest = torch._foreach_norm(state, float("inf"))
        return bool(torch.isfinite(torch.stack([value.float() for value in largest])).all())

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs besides the weights; called in all processes."""
        totals = self.totals.new_zeros(self.fabric.world_size, *self.totals.shape)
        totals[self.fabric.global_rank] = self.totals
        optimizer = self.optimizer.state_dict()
        groups = [{**group, "lr": self.rate} for group in optimizer["param_groups"]]
        return {
            "optimizer": {**optimizer, "param_groups": groups},
            "schedule": {"last_epoch": self.counters.step},
            **self._averaged_state(),
            "controller": self.controller.state_dict(),
            "counters": dict(vars(self.counters)),
            "epoch": {
                "totals": self.group.summed_(totals).cpu(),
                "train_time": self.train_time,
                "clipping_time": self.control_time,
                "proof_time": self.proof_time,
            },
            "epochs": [dict(line) for line in self.epochs],
            "step_digests": [*self.step_digests],
            "steps_per_epoch": self.batches.steps_per_epoch,
            # Of 16-mixed on a GPU: the scale of the loss.
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def _averaged_state(self) -> dict[str, Any]:
        """Return the weights in training, and what of their average is not in the network that is saved."""
        if self._average is None:
            return {}
        return {"raw": dict(self.model.state_dict()), "ema": self._average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`.

        Raises:
            RuntimeError, KeyError, ValueError, TypeError, AttributeError: it is not one of this training.
        """
        counters = vars(Counters(**state["counters"]))  # a name that it does not know is an error here
        # Pydantic takes a dictionary for a dataclass in the strict mode of JSON alone.
        self.counters = TypeAdapter(Counters).validate_json(json.dumps(counters), strict=True)
        if state["schedule"]["last_epoch"] != self.counters.step:
            raise ValueError("its schedule is not at its step")
        saved, own = state["optimizer"], self.optimizer.state_dict()["param_groups"]
        # Settings are those of this run, whose rate may lie in a tensor; what is saved are means and counts.
        groups = [{**mine, "params": group["params"]} for mine, group in zip(own, saved["param_groups"], strict=True)]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        if self._average is not None:
            # The network was given what is saved as `model`.
            self._average.load_state_dict(state["ema"], dict(self.model.state_dict()))
            self.model.load_state_dict(state["raw"])
        self._set_rate()
        self._set_maximum(self.counters.step)
        self.controller.load_state_dict(state["controller"])
        if self.controller.retracts_by_qr:
            self._captured = None
        if state.get("precision"):
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.epochs = [dict(line) for line in state["epochs"]]
        self.step_digests = [*state["step_digests"]]
        # Each process goes on with its own sums; where their number has changed, the first one has them all.
        totals, rank = state["epoch"]["totals"], self.fabric.global_rank
        if len(totals) != self.fabric.world_size:
            totals, rank = torch.stack([totals.sum(0), torch.zeros_like(totals[0])]), min(rank, 1)
        self.totals.copy_(totals[rank])
        self.train_time = float(state["epoch"]["train_time"])
        self.control_time = float(state["epoch"]["clipping_time"])
        self.proof_time = float(state["epoch"].get("proof_time", 0.0))  # older versions had none


def _mixed(share: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """Return `share` of the one and the rest of the other (all 0-d)."""
    return others + share * (own - others)
