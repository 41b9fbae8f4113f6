"""Losses that ship with svdctl."""
