"""Temperature scaling (Guo et al. 2017): one factor on the logits, fitted on data that the figures do not use."""

from torch import Tensor

from svdctl.evaluate.calibration import checked, row_blocks

_NEWTON_STEPS = 200


def fit_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Return the temperature T that minimises the negative log likelihood of `logits / T`; None without a best one.

    The likelihood is convex in 1/T. It has no finite minimum when every label has its row's largest logit (T would
    go to 0), or when labels have no more than their rows' mean logit on average (T would go to infinity).
    """
    logits, labels = checked(logits, labels)
    gaps = logits.double() - logits.gather(1, labels[:, None]).double()
    # Relative to the label's logit, in units of their own spread: the search starts near 1 for any network.
    squares = sum(float((rows - rows.mean(1, keepdim=True)).square().sum()) for rows in row_blocks(gaps))
    if float(gaps.max(1).values.mean()) <= 0 or float(gaps.mean()) >= 0:
        return None
    spread = (squares / gaps.numel()) ** 0.5
    return spread / _inverse_temperature(gaps.div_(spread))


def _inverse_temperature(gaps: Tensor) -> float:
    """Return the root b > 0 of the likelihood's slope `mean E_softmax(b gaps)[gaps]`, which grows through 0."""

    def slope_and_curvature(b: float) -> tuple[float, float]:
        slope = curvature = 0.0
        for rows in row_blocks(gaps):
            probabilities = (b * rows).softmax(1)
            mean = (probabilities * rows).sum(1, keepdim=True)
            slope += float(mean.sum())
            curvature += float((probabilities * (rows - mean).square()).sum())
        return slope / len(gaps), curvature / len(gaps)

    low, high = 0.0, 1.0
    while slope_and_curvature(high)[0] < 0:
        low, high = high, 2 * high
    b = (low + high) / 2
    for _ in range(_NEWTON_STEPS):
        slope, curvature = slope_and_curvature(b)
        low, high = (b, high) if slope < 0 else (low, b)
        newton = b - slope / curvature if curvature > 0 else low
        # Bisection where Newton's step would leave the bracket.
        after = newton if low < newton < high else (low + high) / 2
        if abs(after - b) <= 1e-14 * b:
            break
        b = after
    return b
