"""The 19 corruptions of CIFAR-C for images of any size: batched, seeded by each image's content, uint8 in and out."""
