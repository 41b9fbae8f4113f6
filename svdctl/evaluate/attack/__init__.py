"""AutoAttack: seeded, verified, and resumed after every batch.

state = begin(model, images, labels, settings, fingerprint=...)
for batch in attack_batches(model, images, labels, settings, state):
    save(state.model_dump())
result = summary(state, settings)
"""

from svdctl.evaluate.attack.attack_batches import FinishedBatch, attack_batches, begin, choose_examples
from svdctl.evaluate.attack.attack_state import AttackState, fingerprint, join, summary

__all__ = [
    "AttackState",
    "FinishedBatch",
    "attack_batches",
    "begin",
    "choose_examples",
    "fingerprint",
    "join",
    "summary",
]
