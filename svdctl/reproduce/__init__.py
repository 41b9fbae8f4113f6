"""The paper's tables with one command: planned, shared between commands, resumable, laid out."""
