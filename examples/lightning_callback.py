"""Train on digits with Lightning, singular values at most 1; the best checkpoint is proved in best.pt. CPU, seconds."""

import tempfile

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn

import svdctl


class Digits(lightning.LightningModule):
    """A convolutional network of 8 x 8 digits."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(512, 10)),
        )

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("accuracy", (self.network(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main() -> None:
    """Train, and print what is proved of the network and of the best checkpoint."""
    lightning.seed_everything(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    data = torch.utils.data.TensorDataset(images, labels)
    train, held_out = torch.utils.data.random_split(data, [1437, 360])

    with tempfile.TemporaryDirectory() as folder:
        best = lightning.pytorch.callbacks.ModelCheckpoint(folder, monitor="accuracy", mode="max")
        control = svdctl.integrations.lightning.Control(max_sigma=1.0, linear_max=4.0, every_steps=10)
        trainer = lightning.Trainer(
            max_epochs=3, accelerator="cpu", callbacks=[control, best], logger=False, enable_progress_bar=False
        )
        trainer.fit(
            Digits(), torch.utils.data.DataLoader(train, 64, shuffle=True), torch.utils.data.DataLoader(held_out, 360)
        )
        print(f"accuracy of the best checkpoint: {float(best.best_model_score):.3f}")
        # The same weights, sealed: for inference, certificates and `svdctl inspect-spectrum`.
        network = Digits.load_from_checkpoint(f"{folder}/best.pt").network
        for name, layer in network.named_children():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                print(f"layer {name}: singular values at most {svdctl.spectral_norm_bound(layer).upper:.4f}")


if __name__ == "__main__":
    main()
