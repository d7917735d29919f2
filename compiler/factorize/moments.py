"""Second moments of what a layer reads, of its patches or of its channels alone, and the energy of its outputs."""

import numpy as np

from nnc.factorize.linear import as_matrix, square_root, symmetric

# What is added to the diagonal of a moment, relative to its mean: directions that no input excites get an order.
_RIDGE = 1e-10


def kinds(W: np.ndarray, moment: np.ndarray | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The moment, made positive, as one of channels alone or as one of patches; the other is None."""
    if not np.isfinite(W).all() or not (moment is None or np.isfinite(moment).all()):
        raise ValueError("the weight or the moment is not finite")
    if moment is None:
        return None, None
    if moment.shape == (W[0].size, W[0].size):
        return None, _regularized(moment)
    if moment.shape == (W.shape[1], W.shape[1]):
        return _regularized(moment), None
    raise ValueError(f"a moment {list(moment.shape)} fits neither the patches nor the channels of {list(W.shape)}")


def _regularized(moment: np.ndarray) -> np.ndarray:
    """The moment, symmetric and positive; all zeros become the identity: what is never excited is all alike."""
    moment = symmetric(np.asarray(moment, np.float64))
    mean = np.trace(moment) / len(moment)
    return moment + np.eye(len(moment)) * (_RIDGE * mean if mean > 0 else 1.0)


def whitened(W: np.ndarray, channels: np.ndarray | None) -> np.ndarray:
    """W, whose plain norm is then its output energy for a moment of the channels."""
    return W if channels is None else along_channels(W, square_root(channels))


def unwhitened(A: np.ndarray, channels: np.ndarray | None) -> np.ndarray:
    """A [r, C, ...] to use before whitening, from one to use behind it."""
    return A if channels is None else along_channels(A, np.linalg.inv(square_root(channels)))


def marginal_moment(moment: np.ndarray, count: int) -> np.ndarray:
    """The moment [count, count] of the leading one of two indices, averaged over the other."""
    other = len(moment) // count
    return np.einsum("ajbj->ab", moment.reshape(count, other, count, other)) / other


def along_channels(W: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.tensordot(W.astype(np.float64), matrix, (1, 0)), -1, 1)


def output_energy(W: np.ndarray, moment: np.ndarray | None = None) -> float:
    """E ||W x||^2 for a moment of the patches or of the channels; ||W||^2 without one."""
    flat = as_matrix(W).astype(np.float64)
    if moment is None:
        return float(np.vdot(flat, flat))
    whole = moment.shape == (W[0].size, W[0].size)
    weighted = flat @ moment if whole else as_matrix(along_channels(W, moment))
    return max(0.0, float(np.vdot(weighted, flat)))
