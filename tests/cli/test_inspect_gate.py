"""What `svdctl inspect-spectrum` says of a file without a network, and what its gate lets pass."""

import itertools
import json
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from svdctl.checkpoint.checkpoint_file import Checkpoint, write_checkpoint
from svdctl.cli.app import main
from svdctl.config.train_config import TrainConfig
from svdctl.layers.ops.sott_ops import Sott
from svdctl.layers.ops.standard_ops import Standard
from svdctl.layers.ops.tt_ops import TT, Parametrize
from svdctl.layers.soc import SOC
from svdctl.layers.sott import SOTT
from svdctl.layers.tt import TTConv2d
from svdctl.models.build import build_model
from svdctl.models.lipconvnet_architecture import LipConv
from svdctl.models.wrn_architecture import Wrn
from tests.cli.flags import after_opening
from tests.dense import dense_values

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(capsys, monkeypatch) -> Invoke:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["svdctl", "inspect-spectrum", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), out, after_opening(err)

    return call


@pytest.fixture
def rows(invoke: Invoke) -> Callable[..., dict[str, dict[str, Any]]]:
    def call(*arguments: object) -> dict[str, dict[str, Any]]:
        _, out, err = invoke(*arguments, "--format", "json")
        assert out, err
        return {row["name"]: row for row in json.loads(out)["files"][0]["layers"]}

    return call


def kernel(*shape: int, norm: float = 0.5) -> Tensor:
    """Random entries, so small that no layer with them is above `norm`."""
    found = torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))
    return found * (norm / float(found.flatten(2).norm(dim=(0, 1)).sum() if found.ndim > 2 else found.norm()))


SMALL = {"conv.weight": kernel(4, 4, 3, 3), "conv.bias": torch.ones(4), "fc.weight": kernel(5, 4)}
HUGE = torch.full((4, 4), 1e3)


def state(model: nn.Module) -> dict[str, Tensor]:
    return state_of(model.state_dict())


def state_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"x.{key}": tensor for key, tensor in tensors.items()}


def quiet(model: nn.Module) -> nn.Module:
    """All numbers small, so that nothing but a missing proof can hold it back."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.01)
    return model


def test_a_gate_passes_what_is_proved(invoke: Invoke, tmp_path: Path) -> None:
    others = {"n.weight": torch.ones(3), "n.running_var": torch.ones(3), "n.running_mean": torch.zeros(3)}
    counter = {"n.num_batches_tracked": torch.tensor(7), "step": torch.tensor(3)}
    torch.save(SMALL | others | counter, tmp_path / "a.pt")
    code, _, err = invoke(tmp_path / "a.pt", "--max", 0.5)
    assert code == 0
    assert "2 of 2 layers proved" in err
    assert invoke(tmp_path / "a.pt", "--max", 0.01)[0] == 1


def quantised(tensor: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in files
        return torch.quantize_per_tensor(tensor, 10.0, 0, torch.qint8)


NOT_PROVED: dict[str, tuple[dict[str, Any], str]] = {
    "sparse": ({"x.weight": HUGE.to_sparse()}, "x.weight"),
    "quantised": ({"x.weight": quantised(HUGE)}, "x.weight"),
    "integers": ({"x.weight": torch.full((4, 4), 100, dtype=torch.int8)}, "x"),
    "complex": ({"x.weight": HUGE.to(torch.complex64)}, "x"),
    "layer norm": ({"x.weight": torch.full((4,), 1e6)}, "x"),
    "layer norm of two axes": ({"x.norm1.weight": torch.full((4, 4), 0.1)}, "x.norm1"),
    "embedding": ({"token_emb.weight": HUGE}, "token_emb"),
    "one NaN": ({"x.weight": torch.full((1, 1, 1, 1), math.nan)}, "x"),
    "one number": ({"logit_scale": torch.tensor(1e6)}, "logit_scale"),
    "another name": ({"x.kernel": torch.full((1, 1, 4, 4), 1e3)}, "x.kernel"),
    "a kernel called bias": ({"x.weight": kernel(3, 3), "x.bias": torch.full((3, 3, 3, 3), 1e3)}, "x.bias"),
    "a kernel among statistics": (
        {"x.running_var": torch.ones(3), "x.running_mean": torch.full((3, 3), 1e3), "x.weight": torch.ones(3)}, "x",
    ),
    "a kernel that counts": (
        {"x.weight": kernel(3, 3), "x.num_batches_tracked": torch.full((3, 3), 1e3)}, "x.num_batches_tracked",
    ),
    "wide statistics": ({"x.mean": torch.zeros(4, 4), "x.std": torch.full((4, 4), 1e3)}, "x.mean"),
    "recurrent": (state(nn.LSTM(2, 2)), "x.weight_hh_l0"),
    "six axes": ({"x.weight": torch.ones(1, 1, 1, 1, 1, 2)}, "x"),
    "new spectral_norm": (state(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))), "x"),
    "new weight_norm": (state(quiet(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))), "x"),
    "orthogonal": (state(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))), "x"),
    "orthogonal frames": (state(quiet(TTConv2d(6, 6, 3, rank=2, frames="parametrize"))), "x"),
    "a factor of its own": (state(SOC(4, 4)), "x"),
    "a factor of its core": (state(SOTT(6, 6, rank=4)), "x"),
    "a gain": ({"x.weight": kernel(4, 4, 3, 3), "x.gain": torch.ones(4, 1, 1, 1)}, "x"),
    "pruning": ({"x.weight_orig": kernel(4, 4), "x.weight_mask": torch.ones(4, 4)}, "x"),
    "a mask of another shape": ({"x.weight_orig": kernel(4, 4), "x.weight_mask": torch.ones(4)}, "x"),
    "weight_bar": (
        {"x.weight_bar": kernel(4, 4), "x.weight_u": torch.ones(4) / 2, "x.weight_v": torch.ones(4) / 2}, "x",
    ),
    "4 bits": ({"x.weight": torch.zeros(4, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, "x.weight"),
    "an adapter": (
        {"x.base_layer.weight": kernel(4, 4), "x.lora_A.default.weight": kernel(2, 4),
         "x.lora_B.default.weight": kernel(4, 2)}, "x.base_layer",
    ),
    "a scale": ({"x.weight": kernel(4, 4), "x.weight_scale": 100.0}, "x"),
    "scales": ({"x.weight": kernel(3, 3, 3, 3), "x.scales": [100.0] * 3}, "x"),
    "nested scales": ({"x.weight": kernel(3, 3, 3, 3), "x.quantiser": {"scales": [[100.0]]}}, "x"),
    "a shift": ({"x.weight": kernel(4, 4), "x.shift": 7}, "x"),
    "a number of numpy's": ({"x.weight": kernel(4, 4), "x.gain": np.float64(100)}, "x"),
    "bytes": ({"x.weight": kernel(4, 4), "x._extra_state": b"100"}, "x"),
    "a state": ({"x.weight": kernel(4, 4), "x._extra_state": {"gain": 100}}, "x"),
    "a text": ({"x.weight": kernel(4, 4), "x.rule": "times 100"}, "x"),
    "a number below": ({"x.weight": kernel(4, 4), "x.out.gain": 100.0}, "x"),
    "a number beside BatchNorm": ({"x.running_var": torch.ones(3), "x.weight": torch.ones(3), "x.gain": 9.0}, "x"),
    "a number above": ({"x.inner.weight": kernel(4, 4), "x.gain": 100.0}, "x.gain"),
    "numbers above": ({"x.inner.weight": kernel(4, 4), "x.gains": [2, 3]}, "x.gains"),
    "bytes above": ({"x.inner.weight": kernel(4, 4), "x._extra_state": b"100"}, "x._extra_state"),
    "a weight of one integer": ({"x.weight": torch.tensor(100)}, "x"),
    "three axes": (state(quiet(nn.Conv1d(2, 2, 3))), "x"),
    "layer norm of three axes": (state(quiet(nn.LayerNorm((2, 4, 4), bias=False))), "x"),
    "bilinear": (state(quiet(nn.Bilinear(2, 3, 4))), "x"),
    "something below": ({"x.weight": kernel(4, 4), "x.fake_quant.scale": torch.tensor(0.1)}, "x"),
}  # fmt: skip


@pytest.mark.parametrize(("added", "name"), NOT_PROVED.values(), ids=NOT_PROVED)
def test_a_gate_names_what_is_not_proved(
    added: dict[str, Any], name: str, invoke: Invoke, rows: Callable[..., Any], tmp_path: Path
) -> None:
    for number, contents in enumerate((SMALL | added, added)):
        path = tmp_path / f"{number}.pt"
        torch.save(contents, path)
        code, _, err = invoke(path, "--max", 1e7)
        assert code == 1
        assert f"not proved: {name}, " in err
    verdicts = {row["name"]: row["gate"] for row in rows(tmp_path / "0.pt", "--max", 1e7).values()}
    assert (verdicts["conv"], verdicts["fc"], verdicts[name]) == ("proved", "proved", "not proved")
    left = [part for part in verdicts if verdicts[part] == "not proved"]
    code, out, err = invoke(tmp_path / "0.pt", "--max", 1e7, *(word for part in left for word in ("--except", part)))
    assert code == 0
    for part in left:
        assert f" {part}, " in err
        assert f"  {part}: " in out


def test_a_gate_reads_an_array_of_numpy_as_a_matrix(invoke: Invoke, tmp_path: Path) -> None:
    torch.save(SMALL | {"x.weight": np.full((4, 4), 1e3)}, tmp_path / "a.pt")
    assert invoke(tmp_path / "a.pt", "--max", 4.1e3)[0] == 0
    code, _, err = invoke(tmp_path / "a.pt", "--max", 3.9e3)
    assert code == 1
    assert "x" in err.splitlines()[-1]


NORMS = (
    "norm", "norms.0", "block.norm1.inner", "x.layer_norm", "layernorm", "LayerNorm", "RMSNorm_0", "postnorm", "ln_1",
    "mlp.lnf", "preLN", "layer_normalization_3", "groupNorm", "rms", "attn_ln.0",
)  # fmt: skip


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 2, 2), (2, 2, 2, 2, 2)])
def test_a_weight_that_is_called_a_norm_is_not_proved(shape: tuple[int, ...], invoke: Invoke, tmp_path: Path) -> None:
    weights = {f"{number}.{name}.weight": kernel(*shape) for number, name in enumerate(NORMS)}
    torch.save(SMALL | weights, tmp_path / "a.pt")
    code, _, err = invoke(tmp_path / "a.pt", "--max", 1)
    assert code == 1
    for number, name in enumerate(NORMS):
        assert f"not proved: {number}.{name}, a norm layer by its name" in err
    # A LayerNorm's bias has the axes of its weight, so that one of one axis tells a matrix or a kernel.
    biases = {name.replace("weight", "bias"): torch.ones(shape[0]) for name in weights}
    torch.save(SMALL | weights | biases, tmp_path / "a.pt")
    assert invoke(tmp_path / "a.pt", "--max", 1)[0] == 0


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3, 3)])
def test_what_is_told_by_its_shape_alone_is_covered_and_named(
    shape: tuple[int, ...], invoke: Invoke, rows: Callable[..., Any], tmp_path: Path
) -> None:
    """No file tells `Linear(4, 4, bias=False)` from `LayerNorm((4, 4), bias=False)`."""
    names = ["linear", "normal_head", "online", "formal.0", "arms.fc"]
    contents = {f"{name}.weight": kernel(*shape) for name in names}
    torch.save(contents | {"fc.weight": kernel(4, 4), "fc.bias": torch.ones(4)}, tmp_path / "a.pt")
    code, out, err = invoke(tmp_path / "a.pt", "--max", 1)
    assert code == 0, err
    for text in (out, err):
        assert "shape alone, as they have no bias: linear, normal_head, online and 2 more; LayerNorm" in text
        assert "--model" in text
    told = {name: row["by_shape"] for name, row in rows(tmp_path / "a.pt", "--max", 1).items()}
    assert told == dict.fromkeys(names, True) | {"fc": False}


def test_texts_counters_and_nothing_hold_nothing_back(invoke: Invoke, tmp_path: Path) -> None:
    others = {"epoch": 3, "arch": "small", "conv.weight_scale": None, "fc.extra": {}, "done": True, "n.step": 3}
    torch.save(SMALL | others, tmp_path / "a.pt")
    code, _, err = invoke(tmp_path / "a.pt", "--max", 0.5)
    assert code == 0, err


def test_an_exception_is_named_and_excuses_no_figure(invoke: Invoke, tmp_path: Path) -> None:
    torch.save(SMALL | {"norm.weight": torch.ones(4), "big.weight": HUGE}, tmp_path / "a.pt")
    assert invoke(tmp_path / "a.pt", "--max", 1e4)[0] == 1
    assert invoke(tmp_path / "a.pt", "--max", 1e4, "--except", "n*")[0] == 0
    code, _, err = invoke(tmp_path / "a.pt", "--max", 1, "--except", "*")
    assert code == 1
    assert "big reaches 4000, above 1" in err
    code, _, err = invoke(tmp_path / "a.pt", "--max", 1, "--except", "nomr")
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "--except nomr: no layer" in err
    code, _, err = invoke(tmp_path / "a.pt", "--except", "norm")
    assert code == 2
    assert "--max" in err


def test_batchnorm_is_held_against_its_own_maximum_only(invoke: Invoke, tmp_path: Path) -> None:
    norm = {"n.weight": torch.full((3,), 4.0), "n.bias": torch.ones(3), "n.running_var": torch.full((3,), 0.25)}
    torch.save(SMALL | norm, tmp_path / "a.pt")
    assert invoke(tmp_path / "a.pt", "--max", 1)[0] == 0
    assert "gain 8" in invoke(tmp_path / "a.pt", "--max", 1)[1]
    assert invoke(tmp_path / "a.pt", "--batchnorm-max", 8.1)[0] == 0
    code, _, err = invoke(tmp_path / "a.pt", "--max", 1, "--batchnorm-max", 7.9)
    assert code == 1
    assert "not proved: n, " in err
    # Its eps is stored nowhere: within 31.7 by torch's, 400 by a smaller one.
    torch.save(SMALL | norm | {"n.running_var": torch.full((3,), 1e-4)}, tmp_path / "b.pt")
    assert invoke(tmp_path / "b.pt", "--batchnorm-max", 400.1)[0] == 0
    assert "eps" in invoke(tmp_path / "b.pt", "--batchnorm-max", 399)[2]


PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "upscaler": ({"backbone": SMALL, "upscaler": {"x.weight": HUGE}}, "upscaler.x reaches 4000"),
    "scheduled": ({"backbone": SMALL, "rescheduled_net": {"x.weight": HUGE}}, "rescheduled_net.x reaches 4000"),
    "a scaler with weights": ({"backbone": SMALL, "scaler": {"x.weight": HUGE}}, "scaler.x reaches 4000"),
    "loops": ({"backbone": SMALL, "loops": [{"x.weight": HUGE}]}, "loops.0.x reaches 4000"),
    "another set": ({"model": SMALL, "discriminator": {"x.weight": HUGE}}, "not proved: discriminator, another set"),
    "a tensor beside": ({"model": SMALL, "head": HUGE}, "not proved: head, another set"),
    "an array beside": ({"model": SMALL, "head": {"w": np.ones((3, 3))}}, "not proved: head, another set"),
    "called an optimiser": ({"model": SMALL, "optimizer": {"x.weight": HUGE}}, "not proved: optimizer, a state"),
    "inside": ({"model": {"a": SMALL, "optim": {"x.weight": HUGE}}}, "not proved: model.optim, a state"),
    "random": ({"model": SMALL, "random": {"w": torch.full((8,), 100.0)}}, "not proved: random, a state of training"),
    "rng": ({"model": SMALL, "rng": {"w": torch.full((8,), 100.0)}}, "not proved: rng, a state of training"),
    "scaler": ({"model": SMALL, "scaler": {"scale": torch.full((8,), 100.0)}}, "not proved: scaler, a state of"),
    "callbacks": ({"model": SMALL, "callbacks": {"w": torch.full((8,), 100.0)}}, "not proved: callbacks, a state of"),
    "scheduler": ({"model": SMALL, "scheduler": [torch.full((8,), 100.0)]}, "not proved: scheduler, a state of"),
    "one number of a loop": ({"backbone": SMALL, "loop": {"gain": torch.tensor(9.0)}}, "not proved: loop, a state of"),
    "built like an optimiser": (
        {"model": SMALL, "o": {"state": {0: {"w": HUGE}}, "param_groups": [{"params": [0]}]}},
        "not proved: o, the state of an optimiser",
    ),
    "groups with weights": (
        {"model": SMALL, "o": {"state": {}, "param_groups": [{"params": [HUGE]}]}},
        "not proved: o, the state of an optimiser",
    ),
    "a number of one entry": ({"model": SMALL, "logit_scale": torch.tensor(100.0)}, "not proved: logit_scale, another"),
    "sixteen bytes": (
        {"model": SMALL, "codes": torch.full((16,), 100, dtype=torch.uint8)},
        "not proved: codes, another set",
    ),
    "an array at random": ({"model": SMALL, "random": [np.ones(3)]}, "not proved: random, a state of training"),
    "integers": ({"model": SMALL, "codes": torch.tensor([100, 3])}, "not proved: codes, another set"),
    "a kernel of one entry": ({"model": SMALL, "w": torch.full((1, 1, 1, 1), 9.0)}, "not proved: w, another set"),
}


@pytest.mark.parametrize(("contents", "told"), PARTS.values(), ids=PARTS)
def test_no_part_of_a_file_is_dropped_in_silence(
    contents: dict[str, Any], told: str, invoke: Invoke, tmp_path: Path
) -> None:
    torch.save(contents, tmp_path / "a.pt")
    code, out, err = invoke(tmp_path / "a.pt", "--max", 1)
    assert code == 1
    assert told in err
    assert told.split()[-3 if "reaches" in told else 2].rstrip(",") in out


def test_two_parts_of_one_name_are_refused(invoke: Invoke, tmp_path: Path) -> None:
    torch.save({"model": {"x.weight": HUGE}, b"model": SMALL}, tmp_path / "a.pt")
    code, _, err = invoke(tmp_path / "a.pt", "--max", 1)
    assert code == 2
    assert "two entries of the name 'model'" in err


def test_states_of_training_are_named_and_hold_nothing_back(invoke: Invoke, tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.Adam(quiet(model).parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    quiet(model)
    rng = {"cpu": torch.get_rng_state(), "python": (3, (1, 2), None)}
    training = {
        "trainer": {"optimizer": optimizer.state_dict(), "step": 3},
        "optimizers": [optimizer.state_dict()], "second": optimizer.state_dict(), "scaler": {"scale": torch.ones(())},
        "rng": rng, "epoch": 3, "lr_scheduler": {"_last_lr": [torch.ones(())], "last_epoch": 3},
        "cuda_rng_state": torch.zeros(16, dtype=torch.uint8), "steps": torch.tensor(3),
        "numpy_rng": ("MT19937", np.ones(4)),
        "callbacks": {"Best": {"best_model_score": torch.tensor(0.5), "best_k_models": {"a": torch.tensor(0.5)}}},
    }  # fmt: skip
    for name in ("state_dict", "backbone"):
        torch.save({name: model.state_dict()} | training, tmp_path / "a.pt")
        # Without a known name for the weights these two are entries like any other.
        flags = ("--except", "numpy_rng*", "--except", "cuda_rng_state") if name == "backbone" else ()
        code, out, err = invoke(tmp_path / "a.pt", "--max", 1, *flags)
        assert code == 0, err
        for part in ("optimizers", "second"):
            assert f"{part}, left out: the state of an optimiser" in out
        assert "rng, left out: a state of training" in out
        assert "trainer" in out


def test_figures_beside_the_weights_are_named_and_hold_nothing_back(invoke: Invoke, tmp_path: Path) -> None:
    figures = {name: torch.tensor(0.9) for name in ("best_acc", "val_loss", "bestAcc1", "lr", "epoch_time")}
    figures["miou"] = torch.tensor([0.9])
    torch.save({"model": SMALL} | figures, tmp_path / "a.pt")
    code, out, err = invoke(tmp_path / "a.pt", "--max", 1)
    assert code == 0, err
    for name in figures:
        assert f"{name}, left out: a figure of training, by its name" in out


@pytest.mark.parametrize("name", ["logit_scale", "temperature", "loss_scale", "best_gain", "score_weight", "best"])
def test_another_number_beside_the_weights_is_held(name: str, invoke: Invoke, tmp_path: Path) -> None:
    for contents in ({"model": SMALL, name: torch.tensor(0.9)}, SMALL | {name: torch.tensor(0.9)}):
        torch.save(contents, tmp_path / "a.pt")
        code, _, err = invoke(tmp_path / "a.pt", "--max", 1)
        assert code == 1
        assert f"not proved: {name}, " in err
    # In the network's own dict a number is a parameter, whatever it is called; so are several numbers beside it.
    others = (torch.ones(2), torch.ones(1, 1, 1, 1))
    for contents in (SMALL | {"map": others[1]}, *({"model": SMALL, "best_acc": other} for other in others)):
        torch.save(contents, tmp_path / "a.pt")
        assert invoke(tmp_path / "a.pt", "--max", 1)[0] == 1


def test_the_set_that_is_asked_for_stands_alone(invoke: Invoke, tmp_path: Path) -> None:
    torch.save({"model": SMALL, "ema": {"x.weight": HUGE}}, tmp_path / "a.pt")
    code, _, err = invoke(tmp_path / "a.pt", "--max", 1)
    assert code == 1
    assert "--key" in err
    assert invoke(tmp_path / "a.pt", "--max", 1, "--key", "model")[0] == 0
    assert invoke(tmp_path / "a.pt", "--max", 1, "--key", "ema")[0] == 1


FP8 = torch.float8_e4m3fn


def scales() -> dict[str, tuple[dict[str, Tensor], Tensor]]:
    """Names of scales, the tensors of a layer, and the weight that they make."""
    weight = (torch.randn(300, 200, generator=torch.Generator().manual_seed(0)) * 50).clamp(-400, 400).to(FP8)
    blocks = torch.rand(3, 2, generator=torch.Generator().manual_seed(1)) / 100
    wide = blocks.double().repeat_interleave(128, 0).repeat_interleave(128, 1)[:300, :200]
    few, one = weight[:40, :30], torch.tensor([0.01])
    by_row = torch.rand(40, 1, generator=torch.Generator().manual_seed(2)) / 100
    kernels = weight[:4, :27].reshape(4, 3, 3, 3)
    return {
        "blocks": ({"weight_scale_inv": blocks, "weight": weight}, weight.double() * wide),
        "one": ({"scale_weight": one, "weight": few}, few.double() * one.double()),
        "no axis": ({"weight_scale": one[0], "weight": few}, few.double() * one.double()),
        "rows": ({"weight_scale": by_row, "weight": few}, few.double() * by_row.double()),
        "rows without an axis": ({"weight_scale": by_row[:, 0], "weight": few}, few.double() * by_row.double()),
        "of a kernel": ({"scale_weight": one, "weight": kernels}, kernels.double() * one.double()),
    }


@pytest.mark.parametrize("case", scales())
def test_fp8_weights_are_scaled(case: str, rows: Callable[..., Any], invoke: Invoke, tmp_path: Path) -> None:
    tensors, weight = scales()[case]
    save_file({f"x.{name}": tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "a.safetensors")
    row = rows(tmp_path / "a.safetensors", "--tolerance", 1e-4)["x"]
    wanted = float(torch.linalg.matrix_norm(weight, 2)) if weight.ndim == 2 else symbol_norm(weight)
    assert row["bound_lower"] <= wanted * (1 + 1e-9)
    assert wanted * (1 - 1e-9) <= row["bound_upper"] <= wanted * 1.001
    assert "FP8" in row["note"]
    assert invoke(tmp_path / "a.safetensors", "--max", wanted * 1.01)[0] == 0
    assert invoke(tmp_path / "a.safetensors", "--max", wanted * 0.99)[0] == 1


def symbol_norm(weight: Tensor) -> float:
    """Largest singular value of the symbol of a kernel `(O, I, kh, kw)` on a fine grid of frequencies."""
    symbols = torch.fft.fft2(weight.double(), s=(64, 64)).permute(2, 3, 0, 1)
    return float(torch.linalg.matrix_norm(symbols, 2).max())


COMPANIONS: dict[str, tuple[dict[str, Tensor], str]] = {
    "gptq": (
        {"x.qweight": torch.ones(1, 4, dtype=torch.int32), "x.qzeros": torch.ones(1, 1, dtype=torch.int32),
         "x.scales": torch.ones(1, 4), "x.g_idx": torch.zeros(8, dtype=torch.int32)}, "GPTQ",
    ),
    "bitsandbytes, 4 bits": (
        {"x.weight": torch.ones(8, 1, dtype=torch.uint8), "x.weight.absmax": torch.ones(1),
         "x.weight.quant_map": torch.ones(16),
         "x.weight.quant_state.bitsandbytes__nf4": torch.ones(8, dtype=torch.uint8)}, "bitsandbytes",
    ),
    "bitsandbytes, 8 bits": (
        {"x.weight": torch.ones(4, 4, dtype=torch.int8), "x.SCB": torch.ones(4)}, "bitsandbytes",
    ),
    "SCB beside floats": ({"x.weight": kernel(4, 4), "x.SCB": torch.ones(4)}, "bitsandbytes"),
    "input scale": (
        {"x.weight": torch.ones(4, 4).to(FP8), "x.weight_scale": torch.ones(1), "x.input_scale": torch.ones(1)},
        "input_scale",
    ),
    "compressed-tensors": (
        {"x.weight_packed": torch.ones(4, 1, dtype=torch.int32), "x.weight_scale": torch.ones(4, 1),
         "x.weight_shape": torch.tensor([4, 8])}, "compressed-tensors",
    ),
    "MLX": (
        {"x.weight": torch.ones(4, 1, dtype=torch.uint32), "x.scales": torch.ones(4, 1), "x.biases": torch.ones(4, 1)},
        "MLX",
    ),
    "another shape of scale": (
        {"x.weight": torch.ones(300, 200).to(FP8), "x.weight_scale_inv": torch.ones(5, 4)}, "(5, 4)",
    ),
    "two scales": (
        {"x.weight": torch.ones(4, 4).to(FP8), "x.weight_scale": torch.ones(1), "x.scale_weight": torch.ones(1)},
        "scale_weight",
    ),
    "a scale of floats": ({"x.weight": kernel(4, 4), "x.weight_scale": torch.ones(1)}, "float32"),
    "a scale of integers": (
        {"x.weight": torch.ones(4, 4, dtype=torch.int8), "x.weight_scale": torch.ones(4, 1)}, "a quantiser",
    ),
    "quanto": ({"x.weight._data": torch.ones(4, 4, dtype=torch.int8), "x.weight._scale": torch.ones(4, 1)}, "quanto"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "told"), COMPANIONS.values(), ids=COMPANIONS)
def test_companions_of_quantisers_are_refused_by_name(
    tensors: dict[str, Tensor], told: str, rows: Callable[..., Any], invoke: Invoke, tmp_path: Path
) -> None:
    save_file(SMALL | tensors, tmp_path / "a.safetensors")
    found = {name: row for name, row in rows(tmp_path / "a.safetensors").items() if name.startswith("x")}
    assert all(row["bound_upper"] is None for row in found.values())
    assert any(told in row["note"] for row in found.values())
    assert invoke(tmp_path / "a.safetensors", "--max", 1e9)[0] == 1


def test_a_scale_in_metadata_is_named(invoke: Invoke, tmp_path: Path) -> None:
    for metadata, code in (({"format": "pt", "title": "small"}, 0), ({"weight_scale": "100"}, 1)):
        save_file(SMALL, tmp_path / "a.safetensors", metadata)
        found, _, err = invoke(tmp_path / "a.safetensors", "--max", 1)
        assert found == code
        assert ("not proved: weight_scale, it stands in the file's metadata" in err) == bool(code)


@pytest.mark.parametrize("shape", [(5, 3, 4), (5, 3, 3, 3), (4, 2, 1, 3), (3, 2, 2, 3, 1)])
def test_kernels_of_mlx_are_permuted(shape: tuple[int, ...], rows: Callable[..., Any], tmp_path: Path) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    stored = {"x.weight": weight.movedim(1, -1).contiguous(), "fc.weight": kernel(3, 4)}
    save_file({"x.weight": weight, "fc.weight": kernel(3, 4)}, tmp_path / "torch.safetensors", {"format": "pt"})
    save_file(stored, tmp_path / "mlx.safetensors", {"format": "mlx"})
    save_file(stored, tmp_path / "flax.safetensors", {"format": "flax"})
    mlx, torchs = (rows(tmp_path / f"{name}.safetensors", "--input-size", 4) for name in ("mlx", "torch"))
    for name in ("x", "fc"):
        for key in ("shape", "bound_upper", "largest_circular", "smallest_nonzero"):
            assert mlx[name][key] == torchs[name][key]
    other = rows(tmp_path / "flax.safetensors")
    assert other["x.weight"]["bound_upper"] is None
    assert "flax" in other["x.weight"]["note"]
    assert other["fc"]["bound_upper"] == torchs["fc"]["bound_upper"]


def test_a_network_is_filled_with_permuted_kernels(rows: Callable[..., Any], tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "nets_for_mlx.py").write_text("from torch import nn\n\n\ndef build(): return nn.Conv2d(3, 4, 3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    conv = nn.Conv2d(3, 4, 3)
    stored = {"weight": conv.weight.detach().movedim(1, -1).contiguous(), "bias": conv.bias.detach()}
    save_file(stored, tmp_path / "a.safetensors", {"format": "mlx"})
    row = rows(tmp_path / "a.safetensors", "--model", "nets_for_mlx:build", "--input-size", "3x8x8")[""]
    wanted = symbol_norm(conv.weight.detach())
    assert wanted * (1 - 1e-6) <= row["bound_upper"] <= wanted * 1.03


SHAPES = [(6, 1, 3), (6, 1, 3, 3), (4, 2, 3), (4, 4, 1, 1), (6, 2, 2, 2), (2, 3, 1, 3)]


@pytest.mark.parametrize("mlx", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_bounds_of_a_bare_kernel_hold_for_every_use_of_it(
    shape: tuple[int, ...], mlx: bool, rows: Callable[..., Any], tmp_path: Path
) -> None:
    """Against dense matrices: every stride, dilation and number of groups, of convolutions and their transposes."""
    generator = torch.Generator().manual_seed(len(shape))
    weight = torch.randn(shape, generator=generator, dtype=torch.float64) * torch.rand(shape[0], generator=generator)[
        (..., *(None,) * (len(shape) - 1))
    ].to(torch.float64)
    if mlx:
        save_file({"x.weight": weight.movedim(1, -1).contiguous()}, tmp_path / "a.pt", {"format": "mlx"})
    else:
        torch.save({"x.weight": weight}, tmp_path / "a.pt")
    row = rows(tmp_path / "a.pt")["x"]
    axes, first = len(shape) - 2, shape[0]
    conv_type = (nn.Conv1d, nn.Conv2d)[axes - 1]
    transposed_type = (nn.ConvTranspose1d, nn.ConvTranspose2d)[axes - 1]
    norms = []
    for stride, dilation in itertools.product((1, 2, 3), (1, 2)):
        for groups in (g for g in range(1, first + 1) if first % g == 0):
            settings = {"stride": stride, "dilation": dilation, "groups": groups, "bias": False}
            conv = conv_type(shape[1] * groups, first, shape[2:], padding=2, **settings).double()
            layers: list[nn.Module] = [conv]
            with torch.no_grad():
                conv.weight.copy_(weight)
                # torch stores `(I, O / g, *k)`, MLX `(O, *k, I / g)`.
                back = transposed_type(first, shape[1] * groups, shape[2:], padding=1, **settings).double()
                back.weight.copy_(weight)
                if mlx:
                    back = transposed_type(shape[1] * groups, first, shape[2:], padding=1, **settings).double()
                    parts = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
                    back.weight.copy_(parts)
                layers.append(back)
            for layer in layers:
                size = 6 if axes == 2 else 12
                channels = layer.in_channels
                norms.append(float(dense_values(layer, (channels, *(size,) * axes))[0]))
    assert row["bound_lower"] > 0
    assert row["bound_lower"] <= min(norms) * (1 + 1e-12)
    assert max(norms) <= row["bound_upper"]


def test_a_depthwise_kernel_reaches_what_it_reaches(rows: Callable[..., Any], invoke: Invoke, tmp_path: Path) -> None:
    weight = torch.full((9, 1, 1, 1), 0.3)
    torch.save({"x.weight": weight}, tmp_path / "a.pt")
    row = rows(tmp_path / "a.pt")["x"]
    assert row["bound_lower"] == pytest.approx(0.3, rel=1e-6)  # with 9 groups
    assert row["bound_upper"] >= 0.9  # with one
    assert "may reach" in invoke(tmp_path / "a.pt", "--max", 0.5)[2]
    assert "reaches 0.3" in invoke(tmp_path / "a.pt", "--max", 0.2)[2]


@pytest.mark.parametrize("paper", [False, True])
def test_tt_layers_of_nearly_dependent_frames_are_proved(
    paper: bool, rows: Callable[..., Any], invoke: Invoke, tmp_path: Path
) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        frames = [torch.randn(8, 1).expand(8, 2) + 1e-6 * torch.randn(8, 2) for _ in range(2)]
        core = torch.randn(2, 2, 3, 3) * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])[:, :, None, None]
        names = {"x.core": core, "x.frame_in": frames[0], "x.frame_out": frames[1]}
        if paper:
            names = {"x.K2": core.permute(1, 2, 3, 0).contiguous(), "x.K1": frames[0], "x.K3": frames[1].T.contiguous()}
        torch.save(names, tmp_path / "a.pt")
        whole = torch.einsum("ob,bahw,ia->oihw", frames[1].double(), core.double(), frames[0].double())
        wanted = symbol_norm(whole)
        row = rows(tmp_path / "a.pt")["x"]
        assert wanted * (1 - 1e-9) <= row["bound_upper"] <= wanted * 1.03
        assert row["bound_lower"] <= wanted
        assert invoke(tmp_path / "a.pt", "--max", wanted * (1 - 1e-7))[0] == 1
        assert invoke(tmp_path / "a.pt", "--max", wanted * 1.001)[0] == 0


NETS = """
import torch
from torch import nn
import torch.nn.functional as F
from torchvision.ops import FrozenBatchNorm2d


class Own(nn.Linear):
    def forward(self, x):
        return F.linear(x, F.normalize(self.weight, dim=1), self.bias)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.mix = nn.Parameter(torch.full((3, 3), 1e3))

    def forward(self, x):
        return torch.einsum("ij,njhw->nihw", self.mix, self.conv(x))


class BatchNorm(nn.Conv2d):
    pass


class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.full((3, 3), 100, dtype=torch.int8))

    def forward(self, x):
        return torch.einsum("ij,njhw->nihw", self.codes.float(), x)


def plain(): return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
def norm(): return nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3))
def frozen(): return nn.Sequential(nn.Conv2d(3, 3, 1), FrozenBatchNorm2d(3))
def block(): return nn.Sequential(nn.Conv2d(3, 3, 1), Block())
def own(): return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), Own(3 * 16, 2))
class Rooted(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 3, 1), Whole())
        self.gain = nn.Parameter(torch.ones(1))


def whole(): return nn.Sequential(nn.Conv2d(3, 3, 1), Whole())
def rooted(): return Rooted()
def called(): return nn.Sequential(nn.Conv2d(3, 3, 1), BatchNorm(3, 3, 1))
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("plain", ""),
        ("norm", "not proved: 1, "),
        ("frozen", "not proved: 1, "),
        ("block", "not proved: 1, "),
        ("whole", "not proved: 1, "),
        ("rooted", "not proved: (top), "),
        ("own", "not proved: 2, "),
        ("called", "1 reaches"),
    ],
)
def test_the_gate_covers_all_of_a_network(name: str, told: str, invoke: Invoke, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "nets_for_the_gate.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nets_for_the_gate", raising=False)
    import nets_for_the_gate

    model = getattr(nets_for_the_gate, name)()
    with torch.no_grad():
        model[0].weight.mul_(0.1)
        if name == "called":
            model[1].weight.fill_(5)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    flags = ("--model", f"nets_for_the_gate:{name}", "--input-size", "3x4x4", "--max", 2)
    code, _, err = invoke(tmp_path / "a.pt", *flags)
    assert code == bool(told), err
    assert told in err
    if "not proved" in told:
        code, out, err = invoke(tmp_path / "a.pt", *flags, "--except", told.split()[2].rstrip(","))
        assert code == (name == "rooted")  # of which something else is left
        assert "excepted by --except" in out
        assert "excepted: " in err


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (Wrn(depth=10, width=1), Standard()),
        (Wrn(depth=10, width=1), TT(rank=8, frames=Parametrize())),
        (LipConv(block_size=1, in_channels=4), Sott(rank=4)),
    ],
)
def test_the_gate_passes_networks_of_svdctl(model: Any, layer: Any, invoke: Invoke, tmp_path: Path) -> None:
    config = TrainConfig(model=model, layer=layer)
    network = build_model(config, 10)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(0.1)
            if isinstance(module, TTConv2d):
                module.core.mul_(0.1)
    contents = Checkpoint(config, tuple("0123456789"), (3, 32, 32), network.state_dict(), {}, {})
    write_checkpoint(tmp_path / "last.pt", contents)
    code, _, err = invoke(tmp_path / "last.pt", "--max", 2, "--accuracy", "fast", "--tolerance", 0.3)
    assert code == 0, err
    assert invoke(tmp_path / "last.pt", "--max", 1e-3, "--accuracy", "fast", "--tolerance", 0.3)[0] == 1
    if isinstance(layer, Standard):
        torch.save(torch.load(tmp_path / "last.pt") | {"upscaler": {"x.weight": HUGE}}, tmp_path / "last.pt")
        code, _, err = invoke(tmp_path / "last.pt", "--max", 2, "--accuracy", "fast", "--tolerance", 0.3)
        assert code == 1
        assert "not proved: upscaler" in err


def test_a_tt_layer_whose_rounding_is_above_the_maximum_is_not_proved(invoke: Invoke, tmp_path: Path) -> None:
    # (2^60 + 1 - 2^60, ...): the norm is 1, and the product in float64 cancels to 0.
    frame_in = torch.zeros(3, 3)
    frame_in[0] = torch.tensor([2.0**60, 1.0, 2.0**60])
    core = torch.tensor([1.0, 1.0, -1.0])[None, :, None, None]
    torch.save({"l.core": core, "l.frame_in": frame_in, "l.frame_out": torch.ones(1, 1)}, tmp_path / "a.pt")
    code, out, _ = invoke(tmp_path / "a.pt", "--max", "0.5")
    assert code == 1, out


def test_a_frame_stored_in_unknown_parts_says_nothing_of_the_other(
    rows: Callable[..., Any], invoke: Invoke, tmp_path: Path
) -> None:
    parts = "l.parametrizations.frame_in"
    tensors = {"conv.weight": kernel(2, 2, 3, 3), "l.core": torch.eye(2)[:, :, None, None]}
    tensors["l.frame_out"] = 100 * torch.eye(3, 2)
    tensors |= {f"{parts}.original0": torch.eye(3, 2), f"{parts}.original1": torch.eye(3, 2)}
    torch.save(tensors | {f"{parts}.0.gate": torch.ones(1)}, tmp_path / "a.pt")
    assert "bound" not in rows(tmp_path / "a.pt")["l"]
    assert invoke(tmp_path / "a.pt", "--max", "2")[0] == 1
