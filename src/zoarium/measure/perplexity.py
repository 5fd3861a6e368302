"""Perplexity: how many tokens a language model hesitates between.

    perplexity = exp(L),    L = mean over tokens of -log p(token | tokens before it), in nats;    bits = L / log 2

Jelinek et al., "Perplexity, a measure of the difficulty of speech recognition tasks", 1977.
"""

from __future__ import annotations

import numpy as np

from zoarium._core.estimates import Estimates
from zoarium.data.dataset import Dataset
from zoarium.measure.performance import performance
from zoarium.measure.registry import measure
from zoarium.zoo.cohort import Cohort

NO_TOKENS = "defined for language, and these are no tokens"
QUANTITIES = ("train_perplexity", "test_perplexity", "bits_per_token")


@measure(
    "perplexity", scope="model", quantities=QUANTITIES,
    reference="Jelinek et al. 1977, 'Perplexity, a measure of the difficulty of speech recognition tasks'",
    cost="one forward pass over both splits",
)  # fmt: skip
def perplexity(cohort: Cohort, data: Dataset) -> dict[str, Estimates]:
    """Perplexity of language models on both splits, and the bits a token costs.

    Parameters
    ----------
    cohort : Cohort
        n language models.
    data : Dataset
        A language task.

    Returns
    -------
    dict of str to Estimates
        ``train_perplexity``, ``test_perplexity``: from 1 (certain and right); a uniform guess has the size of the
        vocabulary. ``bits_per_token``: of the test split. Standard errors follow from that of the loss over sequences.
        NaN with a reason for other tasks.

    Examples
    --------
    >>> import torch
    >>> from zoarium.data.dataset import Dataset, Split
    >>> from zoarium.nets import build
    >>> text = Split(torch.tensor([[0, 1, 2]]), torch.tensor([[1, 2, 0]]))
    >>> net = build("gpt2", {"model_dim": 4}, in_shape=(3,), n_outputs=3)
    >>> for p in net.parameters():
    ...     _ = torch.nn.init.zeros_(p)
    >>> got = perplexity(Cohort.from_modules([net]), Dataset("abc", text, text, "language", 3))
    >>> got["test_perplexity"].value.round(4).tolist()
    [3.0]
    """
    n = len(cohort)
    if data.task != "language":
        return dict.fromkeys(QUANTITIES, Estimates(np.full(n, np.nan), np.nan, 0, 0, [NO_TOKENS] * n))
    scores = performance(cohort, data)
    train, test = scores["train_loss"], scores["test_loss"]
    return {
        "train_perplexity": _perplexity(train),
        "test_perplexity": _perplexity(test),
        "bits_per_token": Estimates(test.value / np.log(2), test.stderr / np.log(2), test.samples, 0, test.reason),
    }


def _perplexity(loss: Estimates) -> Estimates:
    with np.errstate(over="ignore"):  # a loss of 710 nats has no perplexity below infinity
        value = np.exp(loss.value)
        return Estimates(value, value * loss.stderr, loss.samples, 0, loss.reason)
