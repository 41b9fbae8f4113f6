"""Loggers that ship with svdctl."""
