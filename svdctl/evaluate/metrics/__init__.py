"""The metrics that ship with svdctl."""
