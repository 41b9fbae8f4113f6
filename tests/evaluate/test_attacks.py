"""The attack engine against pyautoattack itself, against closed forms, and cut off at every batch."""

import io
import logging
import math
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from svdctl.data.streamed_images import streamed_images
from svdctl.errors import DataError, EvaluationError, ShapeError, UsageError
from svdctl.evaluate.attack.attack_batches import attack_batches, begin
from svdctl.evaluate.attack.attack_plan import plan
from svdctl.evaluate.attack.attack_state import MISCLASSIFIED, STANDS, AttackState, fingerprint, join, summary
from svdctl.evaluate.attack.attacked_network import AttackedNetwork
from svdctl.evaluate.attack_settings import AttackSettings
from svdctl.evaluate.inference import subset
from tests.evaluate.victims import Net, carry_on, direct, run, victim

FAST = AttackSettings(eps=0.24, attacks=("apgd-ce", "fab-t"), batch_size=3, seed=5)


@pytest.mark.parametrize(
    ("settings", "classes", "count"),
    [
        (AttackSettings(norm="L2", eps=0.4, seed=3, batch_size=3), 10, 8),
        (AttackSettings(norm="L2", eps=1.0, seed=3, attacks=("square", "apgd-t"), batch_size=3), 10, 8),
        (AttackSettings(norm="Linf", eps=0.06, seed=3, attacks=("square", "apgd-t"), batch_size=3), 10, 8),
        (AttackSettings(norm="L1", eps=5.0, seed=3, attacks=("square", "apgd-ce")), 5, 4),
        (AttackSettings(norm="L2", eps=0.3, seed=4, attacks=("fab", "fab-t", "apgd-dlr"), batch_size=3), 4, 8),
        (AttackSettings(norm="L2", eps=0.25, seed=4, attacks=("fab-t", "fab"), batch_size=2), 3, 5),
        (AttackSettings(norm="L2", eps=0.25, seed=4, attacks=("apgd-ce", "fab", "fab-t"), batch_size=3), 2, 7),
        (AttackSettings(norm="Linf", eps=0.1, seed=9, attacks="rand", batch_size=2), 4, 3),
        pytest.param(AttackSettings(norm="L1", eps=4.0, seed=2, batch_size=4), 10, 9, marks=pytest.mark.slow),
        pytest.param(AttackSettings(norm="L2", eps=0.25, seed=2), 10, 8, marks=pytest.mark.slow),
        pytest.param(AttackSettings(norm="Linf", eps=0.01, seed=2, batch_size=4), 10, 8, marks=pytest.mark.slow),
        pytest.param(
            AttackSettings(norm="L2", eps=0.2, seed=2, attacks="plus", batch_size=4), 5, 9, marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: f"{value.norm}-{value.attacks}" if isinstance(value, AttackSettings) else None,
)
def test_images_are_those_of_pyautoattack_bit_by_bit(settings: AttackSettings, classes: int, count: int) -> None:
    model, images, pixels, labels = victim(classes, count)
    state, adversarial = run(model, images, labels, settings)
    wanted, predictions = direct(model, pixels, labels, settings)
    assert torch.equal(adversarial, wanted)
    assert torch.equal(state.predictions, predictions)
    assert state.robust_accuracy() == float((predictions == labels).double().mean())
    assert (state.broken_by >= 0).any()
    assert state.finished


def test_float_images_and_bytes_are_the_same_and_repeat() -> None:
    model, images, pixels, labels = victim()
    settings = FAST.model_copy(update={"attacks": ("apgd-ce",)})
    first, second = run(model, images, labels, settings), run(model, pixels, labels, settings)
    assert torch.equal(first[1], second[1])
    other = run(model, images, labels, settings.model_copy(update={"seed": 6}))
    assert not torch.equal(first[1], other[1])


def test_cut_off_after_a_batch_and_taken_up_again_it_ends_the_same() -> None:
    model, images, _, labels = victim(10, 8)
    saved = []

    def save(state: AttackState) -> None:
        file = io.BytesIO()
        torch.save(state.model_dump(), file)
        saved.append(file.getvalue())

    settings = FAST.model_copy(update={"batch_size": 2, "attacks": ("apgd-ce", "apgd-t")})
    state = begin(model, images, labels, settings, fingerprint="mine")
    save(state)
    for _ in attack_batches(model, images, labels, settings, state):
        save(state)
    assert len(saved) > 6
    assert {0, 1} <= set(state.broken_by.tolist())
    for number in (0, 1, 3, 4, len(saved) - 2, len(saved) - 1):
        contents = saved[number]
        torch.manual_seed(number)  # a resumed process has other streams
        resumed = AttackState.model_validate(torch.load(io.BytesIO(contents), weights_only=True))
        steps = list(attack_batches(model, images, labels, settings, resumed))
        assert len(steps) == len(saved) - 1 - number
        for name, value in state.model_dump().items():
            same = torch.equal(getattr(resumed, name), value) if isinstance(value, Tensor) else True
            assert same, name
        assert summary(resumed, settings) == summary(state, settings)


def test_a_state_of_something_else_is_not_taken() -> None:
    model, images, _, labels = victim()
    state = begin(model, images, labels, FAST, fingerprint="mine")
    with pytest.raises(ValidationError, match="broken_by"):
        AttackState.model_validate({key: value for key, value in state.model_dump().items() if key != "broken_by"})
    spoiled: dict[str, Any] = {
        "fingerprint": None,
        "classes": 1,
        "at_once": 0,
        "attack": len(state.attacks) + 1,
        "batches_done": -1,
        "broken_by": torch.full((8,), len(state.attacks), dtype=torch.int8),
        "clean_predictions": state.clean_predictions + state.classes,
        "predictions": (state.predictions + 1) % state.classes,
        "distances": torch.full((8,), math.nan, dtype=torch.float64),
    }
    for name, value in spoiled.items():
        with pytest.raises(ValidationError):
            AttackState.model_validate({**state.model_dump(), name: value})
    for name in ("clean_predictions", "predictions", "broken_by", "distances"):
        for value in (getattr(state, name)[:-1], getattr(state, name).float(), getattr(state, name)[None]):
            with pytest.raises(ValidationError):
                AttackState.model_validate({**state.model_dump(), name: value})
    with pytest.raises(UsageError, match="8 images"):
        next(attack_batches(model, images[:4], labels[:4], FAST, state))


def test_fingerprint_tells_every_part_apart() -> None:
    base = AttackSettings()
    others = [
        base.model_copy(update=change)
        for change in (
            {"eps": 0.25},
            {"norm": "Linf"},
            {"seed": 1},
            {"batch_size": 7},
            {"examples": 9},
            {"protocol": "paper"},
            {"attacks": "plus"},
            {"attacks": ("apgd-ce",)},
        )
    ]
    prints = [fingerprint("w", "d", settings) for settings in (base, *others)]
    prints += [fingerprint("v", "d", base), fingerprint("w", "e", base)]
    assert len(set(prints)) == len(prints)
    assert fingerprint("w", "d", AttackSettings()) == prints[0]


def test_shards_join_and_mixed_or_unfinished_ones_do_not() -> None:
    model, images, _, labels = victim(10, 9, wrong=2)
    index = torch.arange(9)
    parts = [index[k::2] for k in range(2)]
    shards = []
    for part in parts:
        state = begin(model, images[part], labels[part], FAST, fingerprint="f")
        carry_on(model, images[part], labels[part], FAST, state)
        shards.append(state)
    whole = join(shards)
    assert len(whole) == 9
    assert whole.finished
    assert summary(whole, FAST)["robust_accuracy"] == sum(s.robust_accuracy() * len(s) for s in shards) / 9
    assert torch.equal(whole.broken_by, torch.cat([shard.broken_by for shard in shards]))
    with pytest.raises(EvaluationError, match="not finished"):
        join([shards[0], begin(model, images, labels, FAST, fingerprint="f")])
    shards[1].fingerprint = "g"
    with pytest.raises(EvaluationError, match="shard 2"):
        join(shards)


@pytest.mark.parametrize(
    ("norm", "dual"), [("L2", 2.0), ("Linf", 1.0), pytest.param("L1", float("inf"), marks=pytest.mark.slow)]
)
def test_linear_classifier_breaks_just_above_its_exact_distance_and_never_below(norm: str, dual: float) -> None:
    """Without clamping, the nearest point of another class is `gap / ||w_label - w_other||_dual` away."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(5, 192, generator=generator))
        model[1].bias.copy_(-model[1].weight.sum(1) / 2)
    pixels = 0.5 + 0.02 * torch.randn(12, 3, 8, 8, generator=generator)
    logits = model(pixels).detach().double()
    labels = logits.argmax(1)
    weight = model[1].weight.detach().double()
    gaps = logits.gather(1, labels[:, None]) - logits
    exact = gaps / torch.linalg.vector_norm(weight[labels][:, None] - weight[None], dual, dim=2)
    exact = exact.scatter(1, labels[:, None], torch.inf).min(1).values
    middle = exact.sort().values[6]
    for eps in (float(middle) * 1.02, float(middle) * 0.999):
        settings = AttackSettings(norm=norm, eps=eps, attacks=("apgd-ce", "apgd-t", "fab-t"), batch_size=12)
        state, adversarial = run(model, pixels, labels, settings)
        broken = state.broken_by != STANDS
        assert not broken[exact > eps].any()
        assert broken[exact < eps / 1.015].all()
        assert (state.distances[broken] >= exact[broken] * (1 - 1e-5)).all()
        assert float(adversarial.min()) > 0  # the closed form holds: no pixel met the border
        assert float(adversarial.max()) < 1
    assert 0 < int(broken.sum()) < 12


def test_no_more_passes_than_pyautoattack_makes() -> None:
    model, images, pixels, labels = victim(10, 8)
    shown: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: shown.append(len(inputs[0])))
    settings = FAST.model_copy(update={"attacks": ("apgd-ce", "apgd-t"), "batch_size": 4})
    run(model, images, labels, settings)
    ours = len(shown), sum(shown)
    shown.clear()
    direct(model, pixels, labels, settings)
    assert ours[0] <= 1.01 * len(shown)
    assert ours[1] <= 1.01 * sum(shown)


def test_streamed_images_are_read_batch_by_batch() -> None:
    model, images, _, labels = victim(10, 8)
    reads: list[int] = []

    def reader(rows: Tensor) -> Tensor:
        reads.append(len(rows))
        return images[rows]

    settings = FAST.model_copy(update={"attacks": ("apgd-ce",)})
    state = begin(model, streamed := streamed_images(reader, 8, (3, 8, 8)), labels, settings)
    found = [batch.adversarial for batch in attack_batches(model, streamed, labels, settings, state)]
    again = begin(model, images, labels, settings)
    wanted = [batch.adversarial for batch in attack_batches(model, images, labels, settings, again)]
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert max(reads) == settings.batch_size


def test_misclassified_images_are_not_attacked() -> None:
    model, images, pixels, labels = victim(10, 6, wrong=2)
    state = begin(model, images, labels, FAST)
    touched = torch.cat([batch.index for batch in attack_batches(model, images, labels, FAST, state)])
    assert not torch.isin(touched, torch.tensor([1, 2])).any()
    assert state.broken_by[1:3].tolist() == [MISCLASSIFIED] * 2
    assert state.distances[1:3].tolist() == [0, 0]
    assert torch.equal(state.predictions[1:3], model.eval()(pixels)[1:3].argmax(1))
    found = summary(state, FAST)
    assert found["clean_accuracy"] == pytest.approx(4 / 6)
    assert found["after_attack"]["fab-t"] == found["robust_accuracy"] == state.robust_accuracy()
    assert state.robust_accuracy(0.0) == found["clean_accuracy"]
    assert state.robust_accuracy(FAST.eps) <= state.robust_accuracy(0.1) <= found["clean_accuracy"]


def test_nothing_right_leaves_nothing_to_do() -> None:
    model, images, _, labels = victim(10, 3, wrong=0)
    labels = (labels + 1) % 10
    state, _ = run(model, images, labels, FAST)
    assert state.finished
    assert summary(state, FAST)["robust_accuracy"] == 0
    assert summary(state, FAST)["largest_distance"] == 0


@pytest.mark.parametrize(
    ("attacks", "classes", "shape", "runs", "left"),
    [
        ("standard", 10, (3, 8, 8), ("apgd-ce", "apgd-t", "fab-t", "square"), ()),
        ("standard", 4, (3, 8, 8), ("apgd-ce", "apgd-t", "fab-t", "square"), ()),
        ("standard", 3, (3, 8, 8), ("apgd-ce", "fab-t", "square"), ("apgd-t",)),
        ("plus", 2, (3, 8, 8), ("apgd-ce", "fab", "square", "fab-t"), ("apgd-dlr", "apgd-t")),
        ("plus", 3, (3, 4, 9), ("apgd-ce", "apgd-dlr", "fab", "fab-t"), ("square", "apgd-t")),
        ("rand", 2, (3, 8, 8), ("apgd-ce",), ("apgd-dlr",)),
    ],
)
def test_attacks_that_do_not_exist_are_left_out_by_name(
    attacks: str, classes: int, shape: tuple, runs: tuple, left: tuple
) -> None:
    found, left_out = plan(AttackSettings(attacks=attacks), classes, shape)
    assert found == runs
    assert tuple(sentence.split(":")[0] for sentence in left_out) == left


def test_a_list_of_which_nothing_can_run_is_an_error() -> None:
    with pytest.raises(UsageError, match="four classes"):
        plan(AttackSettings(attacks=("apgd-t",)), 3, (3, 8, 8))
    with pytest.raises(ShapeError):
        plan(AttackSettings(), 1, (3, 8, 8))


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 5, 9)])
def test_every_attack_of_the_plan_runs_on_small_and_oblong_images(shape: tuple) -> None:
    torch.manual_seed(0)
    features = int(torch.Size(shape).numel())
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, 2))
    images = torch.rand(3, *shape)
    labels = model(images).argmax(1)
    for norm in ("L1", "L2", "Linf"):
        settings = AttackSettings(norm=norm, eps={"L1": 9.0, "L2": 2.0, "Linf": 0.4}[norm], attacks="plus")
        state, _ = run(model, images, labels, settings)
        assert state.finished
        assert ("square" in state.attacks) == (norm == "Linf" or shape[1] >= 5)


def test_paper_protocol_attacks_normalised_images_and_says_so() -> None:
    model, images, pixels, labels = victim(10, 5)
    settings = FAST.model_copy(update={"protocol": "paper", "attacks": ("apgd-ce", "apgd-t")})
    normalised = model.normalize(pixels)
    state = begin(model, images, labels, settings)
    adversarial = normalised.clone()
    for batch in attack_batches(model, images, labels, settings, state):
        adversarial[batch.index[batch.broken]] = batch.adversarial
    rest = Net(10)
    rest.load_state_dict(model.state_dict())
    rest.normalize = nn.Identity()
    wanted, predictions = direct(rest, normalised, labels, settings)
    assert torch.equal(adversarial, wanted)
    assert torch.equal(state.predictions, predictions)
    found = summary(state, settings)
    assert found["protocol"] == "paper"
    assert any("protocol paper" in warning for warning in found["warnings"])
    assert found["largest_distance"] > 2 * settings.eps  # the clamp to [0, 1] alone moves normalised images far
    assert type(model.normalize).__name__ == "Normalize"


def test_paper_protocol_needs_the_normalisation_in_front() -> None:
    _, images, _, labels = victim()
    settings = AttackSettings(protocol="paper")
    with pytest.raises(UsageError, match="named normalize"):
        begin(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), images, labels, settings)

    class Late(Net):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(2 * pixels)

    with pytest.raises(UsageError, match="not its first"):
        begin(Late(10), images, labels, settings)


def test_the_callers_world_is_left_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    model, _, pixels, labels = victim()
    model.conv.weight.requires_grad_(False)
    model.bn.eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    stream, before = torch.get_rng_state(), pixels.clone()
    logger = logging.getLogger("auto-attack")
    handlers, trace = list(logger.handlers), sys.gettrace()

    def watch(*_: object) -> None:
        return None

    sys.settrace(watch)
    try:
        run(model, pixels[:3], labels[:3], FAST)
        assert sys.gettrace() is watch
    finally:
        sys.settrace(trace)
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(pixels, before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert (model.training, model.conv.training, model.bn.training) == (True, True, False)
    assert not model.conv.weight.requires_grad
    assert model.head.weight.requires_grad
    assert model.head.weight.grad is None
    assert logger.handlers == handlers
    assert capfd.readouterr() == ("", "")


def test_parametrised_weights_are_attacked_as_they_are() -> None:
    model, images, pixels, labels = victim(4, 4)
    nn.utils.parametrizations.orthogonal(model.head)
    labels = model.eval()(pixels).argmax(1)
    _, adversarial = run(model, images, labels, FAST)
    assert torch.equal(adversarial, direct(model, pixels, labels, FAST)[0])
    assert model.head.parametrizations.weight.original.requires_grad


class Small(Net):
    """A network whose memory holds `room` images."""

    room = 2

    def forward(self, pixels: Tensor) -> Tensor:
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError(f"{len(pixels)} images")
        return super().forward(pixels)


def test_parts_of_a_pass_give_the_gradients_of_the_whole_as_often_as_asked() -> None:
    """FAB walks back through one graph once for every class."""
    model, _, pixels, _ = victim(4, 5)
    network = AttackedNetwork(model, "pixels", pixels.device)
    gradients = []
    for at_once in (None, 2):
        network.at_once = at_once
        with network.frozen():
            x = network.inputs(pixels).requires_grad_()
            logits = network(x)
            gradients.append([torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)[0] for k in range(4)])
    assert torch.allclose(torch.stack(gradients[0]), torch.stack(gradients[1]), rtol=1e-4, atol=1e-6)


def test_out_of_memory_halves_the_passes_and_not_the_batches() -> None:
    model, images, _, labels = victim(4, 5)
    small = Small(4)
    small.load_state_dict(model.state_dict())
    settings = FAST.model_copy(update={"batch_size": 5, "attacks": ("apgd-t", "fab-t")})
    said: list[str] = []
    state, adversarial = run(small, images, labels, settings, log=said.append)
    wanted, expected = run(model, images, labels, settings)
    assert torch.equal(state.broken_by, wanted.broken_by)
    assert torch.allclose(adversarial, expected, atol=1e-3)
    assert (wanted.at_once, state.at_once) == (5, 2)
    assert [sentence.split()[-5] for sentence in said[:2]] == ["3", "2"]
    small.room = 0
    with pytest.raises(EvaluationError, match="one image"):
        run(small, images, labels, settings)


@pytest.mark.parametrize(
    ("images", "labels", "error", "match"),
    [
        (torch.rand(2, 3, 8, 8) * 2 - 1, torch.tensor([0, 1]), DataError, "normalise inside"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.long), torch.tensor([0, 1]), DataError, "int64"),
        (torch.rand(2, 3, 8, 8), torch.tensor([0]), DataError, "labels"),
        (torch.rand(0, 3, 8, 8), torch.tensor([], dtype=torch.long), DataError, "N > 0"),
        (torch.rand(2, 3, 8, 8), torch.tensor([0, 10]), DataError, "10 classes"),
    ],
)
def test_bad_data_is_named(images: Tensor, labels: Tensor, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        begin(Net(10), images, labels, AttackSettings())


def test_bad_networks_are_named() -> None:
    model, images, _, labels = victim()
    with pytest.raises(ShapeError, match="must return logits"):
        begin(nn.Sequential(nn.Conv2d(3, 10, 3)), images, labels, AttackSettings())
    model.head.bias.data[0] = torch.nan
    with pytest.raises(EvaluationError, match="not finite"):
        begin(model, images, labels, AttackSettings())


def test_examples_are_drawn_from_the_seed() -> None:
    chosen = subset(100, 20, 0)
    assert len(chosen.unique()) == 20
    assert torch.equal(chosen, chosen.sort().values)
    assert torch.equal(chosen, subset(100, 20, 0))
    assert not torch.equal(chosen, subset(100, 20, 1))
    assert torch.equal(subset(15, 20, 0), torch.arange(15))


def test_settings_refuse_what_cannot_be() -> None:
    for wrong in ({"attacks": ()}, {"attacks": ("fab", "fab")}, {"attacks": "strong"}, {"norm": "L0"}, {"eps": 0}):
        with pytest.raises(ValueError, match=r"attacks|norm|eps"):
            AttackSettings(**wrong)


@pytest.mark.cuda
@pytest.mark.long
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("norm", ["L2", "Linf"])
def test_cuda_agrees_with_the_cpu(norm: str) -> None:
    model, images, _, labels = victim(3, 16)
    settings = AttackSettings(norm=norm, eps={"L2": 0.15, "Linf": 0.01}[norm], attacks=("apgd-ce", "fab-t"))
    wanted, _ = run(model, images, labels, settings)
    state, _ = run(model.cuda(), images, labels, settings)
    assert (state.broken_by == wanted.broken_by).double().mean() > 0.9


def test_the_share_of_an_attack_that_is_done_grows_to_all_of_it() -> None:
    from svdctl.evaluate.attack.adversary import MostWork
    from svdctl.evaluate.attack.attack_metric import share_done

    def share(passes: int) -> float:
        return share_done(state, 2, [MostWork(100, 100), MostWork(5000, 0)], passes)

    predictions = torch.zeros(4, dtype=torch.int64)
    state = AttackState(
        fingerprint="",
        classes=10,
        attacks=("apgd-ce", "square"),
        left_out=(),
        warnings=(),
        clean_predictions=predictions,
        predictions=predictions.clone(),
        broken_by=torch.tensor([STANDS, STANDS, STANDS, MISCLASSIFIED], dtype=torch.int8),
        distances=torch.tensor([math.inf, math.inf, math.inf, 0.0], dtype=torch.float64),
        at_once=2,
    )
    # Three images: 100 steps forward and backward, then 5000 queries forward.
    whole = 3 * 300 + 3 * 5000
    assert share(0) == 0
    assert share(50) == pytest.approx(2 * 150 / whole)
    assert share(1000) == pytest.approx(2 * 300 / whole)
    state.broken_by[0], state.batches_done = 0, 1
    whole = 3 * 300 + 2 * 5000
    assert share(0) == pytest.approx(2 * 300 / whole)
    state.attack, state.batches_done = 1, 0
    assert share(0) == pytest.approx(900 / whole)
    state.attack = 2
    assert share(0) == 1


HOLDING = 1e-6
"""A radius within which every image of a victim holds out."""


@pytest.mark.parametrize(
    ("norm", "attacks"),
    [
        *((norm, ("apgd-ce", "apgd-dlr", "fab")) for norm in ("L1", "L2", "Linf")),
        *((norm, ("fab-t", "fab")) for norm in ("L2", "Linf")),
        ("Linf", "standard"),
        *(pytest.param(norm, ("square",), marks=pytest.mark.slow) for norm in ("L1", "L2", "Linf")),
        *(pytest.param(norm, "standard", marks=pytest.mark.slow) for norm in ("L1", "L2")),
        pytest.param("L1", ("fab-t", "fab"), marks=pytest.mark.slow),
    ],
)
def test_work_of_attacks_is_the_passes_that_they_make_where_an_image_holds_out(
    norm: str, attacks: str | tuple[str, ...]
) -> None:
    from svdctl.evaluate.attack.adversary import most_work

    model, images, _, labels = victim(3, 2)
    settings = AttackSettings(norm=norm, eps=HOLDING, attacks=attacks)
    state = begin(model, images, labels, settings)
    passes = backward = 0

    def count() -> None:
        nonlocal passes
        passes += 1

    def count_backward(*_: object) -> None:
        nonlocal backward
        backward += 1

    def watch(_: nn.Module, __: Any, logits: torch.Tensor) -> None:
        if logits.requires_grad:
            logits.register_hook(count_backward)

    model.register_forward_hook(watch)
    made: list[tuple[int, int]] = []
    for _ in attack_batches(model, images, labels, settings, state, on_pass=count):
        made.append((passes, backward))
        passes = backward = 0
    assert made == [(work.passes, work.backward) for work in most_work(settings, state.attacks, state.classes)]


def test_images_are_robust_only_after_an_attack_was_tried_on_them() -> None:
    from svdctl.evaluate.attack.attack_metric import outcome_so_far

    model, images, _, labels = victim(3, 8)
    labels = labels.clone()
    labels[:2] = (labels[:2] + 1) % 3
    settings = AttackSettings(norm="L2", eps=HOLDING, attacks=("apgd-ce",), batch_size=4)
    state = begin(model, images, labels, settings)
    right = int((state.broken_by == STANDS).sum())
    assert right > 4
    said = [outcome_so_far(state, settings)]
    said += [outcome_so_far(state, settings) for _ in attack_batches(model, images, labels, settings, state)]
    assert said == [
        f"of 8 images {right} still to be attacked",
        f"of 8 images 4 robust so far, {right - 4} still to be attacked",
        f"of 8 images {right} robust so far",
    ]
