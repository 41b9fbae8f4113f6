"""Spectra of layers and networks, as a person or a program wants them: the public functions and their results."""
