"""AutoAttack: seeded, verified, and resumed after every batch.

state = begin(model, images, labels, settings, fingerprint=...)
for batch in attack_batches(model, images, labels, settings, state):
    save(state.to_dict())
result = summary(state, settings)
"""

from svdctl.robustness.attack.engine import FinishedBatch, attack_batches, begin
from svdctl.robustness.attack.images import choose_examples
from svdctl.robustness.attack.result import AttackResult, summary
from svdctl.robustness.attack.state import AttackState, fingerprint, join

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
