"""Folds of whole questions, for figures that must not be taken from what was fitted to."""

from collections.abc import Sequence

import numpy as np


def held_out_folds(clusters: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """The fold of each row, [rows], from 0: whole clusters, shuffled by the seed, in folds of about equal numbers."""
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) % folds)[index]
