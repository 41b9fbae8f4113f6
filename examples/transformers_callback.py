"""Train a small ResNet of transformers on digits by its Trainer, singular values at most 2. CPU, seconds."""

import tempfile

import torch
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import svdctl


def main() -> None:
    """Train, and print what is proved of the layers."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3)
    examples = [
        {"pixel_values": image / 16, "labels": int(label)} for image, label in zip(images, digits.target, strict=True)
    ]
    network = ResNetForImageClassification(
        ResNetConfig(
            num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10
        )
    )
    control = svdctl.integrations.transformers.Control(
        max_sigma=2.0, linear_max=4.0, batchnorm_max=10.0, every_steps=10
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=64, num_train_epochs=2, learning_rate=3e-3, use_cpu=True,
            report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        Trainer(network, arguments, train_dataset=examples, callbacks=[control]).train()
    # The maxima were proved when the training ended: `trainer.save_model()` would write these weights.
    print(control.controller.report())


if __name__ == "__main__":
    main()
