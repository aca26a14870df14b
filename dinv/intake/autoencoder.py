"""Whether the model's autoencoder loses what tells classes apart."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from dinv.intake.finding import Finding
from dinv.intake.labels import Probabilities

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Loss:
    """Cross-validated accuracy of one kind of classifier on originals, and on reconstructions of these.

    Attributes:
        originals, reconstructions: accuracies, 0 to 1.
        p_value: of McNemar's exact test that both are right equally often.
    """

    originals: float
    reconstructions: float
    p_value: float

    @property
    def lost(self) -> float:
        """Accuracy that is lost; negative if reconstructions are told apart better."""
        return self.originals - self.reconstructions


def loss_of(before: Probabilities, after: Probabilities, labels: NDArray[np.int64]) -> Loss:
    """Compare out-of-fold probabilities [N, M] of the same N pictures."""
    right, still = before.argmax(1) == labels, after.argmax(1) == labels
    only_before, only_after = int((right & ~still).sum()), int((still & ~right).sum())
    either = only_before + only_after
    p_value = binomtest(only_before, either).pvalue if either else 1.0
    return Loss(float(right.mean()), float(still.mean()), float(p_value))


def autoencoder_findings(loss: Loss, limit: float) -> list[Finding]:
    """One, if more accuracy than `limit` is lost, and not by chance."""
    if loss.lost <= limit or loss.p_value > SIGNIFICANT:
        return []
    note = f"{loss.originals:.1%} right on originals, {loss.reconstructions:.1%} on reconstructions"
    return [Finding("autoencoder", round(loss.lost, 4), note=note)]
