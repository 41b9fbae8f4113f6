"""AutoAttack: seeded, verified, and resumed after every batch.

state = begin(model, images, labels, settings, fingerprint=...)
for batch in attack_batches(model, images, labels, settings, state):
    save(state.to_dict())
result = summary(state, settings)
"""

from svdctl.evaluate.attack.attack_batches import FinishedBatch, attack_batches, begin
from svdctl.evaluate.attack.attack_result import AttackResult, summary
from svdctl.evaluate.attack.attack_state import AttackState, fingerprint, join
from svdctl.evaluate.attack.attacked_images import choose_examples

__all__ = [
    "AttackResult",
    "AttackState",
    "FinishedBatch",
    "attack_batches",
    "begin",
    "choose_examples",
    "fingerprint",
    "join",
    "summary",
]
