"""Train an orthogonal network on digits, make it plain torch, and run it in onnxruntime. CPU, seconds."""

import tempfile
from pathlib import Path

import onnxruntime
import torch
from sklearn.datasets import load_digits
from torch import nn

import svdctl


def main() -> tuple[float, float]:
    """Return the accuracy on 297 digits, and how far the logits of onnxruntime are from those of the network."""
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), svdctl.MinMax(), nn.Conv2d(16, 32, 3, stride=2, padding=1), svdctl.MinMax()),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )
    made = svdctl.orthogonalize_(network)
    print("orthogonal:", made.replaced, "as before:", made.skipped)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(100):
        chosen = torch.arange(step * 128, (step + 1) * 128) % 1500
        loss = nn.functional.cross_entropy(8 * network(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    test = images[1500:]
    accuracy = float((network(test).argmax(1) == labels[1500:]).float().mean())
    print(f"accuracy {accuracy:.3f}; Lipschitz constant at most {svdctl.lipschitz_bound(network, (1, 8, 8)).value:.6f}")

    plain = svdctl.to_plain(network, test[:2])
    print("relative error of the plain network:", plain.meta["svdctl"]["error"])
    exported = torch.onnx.export(
        plain, (test[:2],), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
    )
    with tempfile.TemporaryDirectory() as folder:
        exported.save(Path(folder) / "digits.onnx")
        session = onnxruntime.InferenceSession(Path(folder) / "digits.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: test.numpy()})
    apart = float((torch.from_numpy(logits) - network(test)).detach().norm() / network(test).detach().norm())
    print("relative difference of onnxruntime:", apart)
    return accuracy, apart


if __name__ == "__main__":
    main()
