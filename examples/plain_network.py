"""Compress a network into tensor-train layers, then leave svdctl behind: plain torch, and ONNX if it is installed."""

import importlib.util
import tempfile
from pathlib import Path

import torch
from torch import nn

import svdctl

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 64, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(64, 64, 3, padding=1),
    svdctl.MinMax(),
    svdctl.SOC(64, 64),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(64, 10),
).eval()
for name, error in svdctl.tensorize_(model, rank=16, skip="0").items():
    print(f"layer {name}: relative error {error:.2f}")

images = torch.rand(4, 3, 16, 16)
plain = svdctl.to_plain(model, images)
print("error of the logits:", plain.meta["svdctl"]["error"])
untensorized = [type(model[int(place)]) for place in svdctl.untensorize_(model)]  # or ordinary layers in their places
assert untensorized == [nn.Conv2d]
assert not any(type(module).__module__.startswith("svdctl") for module in plain.modules())

if all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        batch = torch.export.Dim("batch")
        torch.onnx.export(plain, (images,), file, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {session.get_inputs()[0].name: images[:3].numpy()})
    difference = (torch.from_numpy(logits) - model(images[:3])).abs().max()
    print(f"onnxruntime: logits differ by at most {float(difference.detach()):.1e}")
    assert difference < 1e-4
