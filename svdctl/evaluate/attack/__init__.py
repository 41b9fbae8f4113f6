"""AutoAttack: seeded, verified, and resumed after every batch.

state = begin(model, images, labels, settings, fingerprint=...)
for batch in attack_batches(model, images, labels, settings, state):
    save(state.model_dump())
result = summary(state, settings)
"""
