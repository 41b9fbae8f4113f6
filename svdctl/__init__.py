"""Singular values of convolutional networks: read, bounded, controlled and certified."""
