"""Linear algebra in float64 on weights that may be large: Gram matrices, their eigenvectors, least squares."""

import numpy as np

# What is added to the diagonal of a Gram matrix of features, which is 1, so that they may be linearly dependent.
JITTER = 1e-11

# Values that are converted to float64 at a time: a large weight is never copied as a whole.
_BLOCK = 1 << 22


def principal(Y: np.ndarray, moment: np.ndarray | None, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` energies [n], descending, and left singular vectors [rows, n] of Y M^(1/2); all without it.

    From the smaller Gram matrix: what is lost of the energy is below 1e-15 of it, at a fraction of the time.
    """
    rows, columns = Y.shape
    if rows <= columns:
        return eigen(gram_of(Y, moment), count)
    root = np.eye(columns) if moment is None else square_root(moment)
    energies, vectors = eigen(root @ gram_of(Y.T, None) @ root, count)
    return energies, np.linalg.qr(times(Y, root @ vectors))[0]


def eigen(gram: np.ndarray, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, descending and at least 0, and eigenvectors; the first `count` take a third of the time of all."""
    from scipy.linalg import eigh

    last = len(gram) - 1
    first = 0 if count is None else len(gram) - count
    if first > len(gram) // 2:
        energies, vectors = eigh(gram, subset_by_index=[first, last], driver="evr", check_finite=False)
    else:
        energies, vectors = (part[..., first:] for part in np.linalg.eigh(gram))
    return np.maximum(energies[::-1], 0), vectors[:, ::-1]


def energies_of(Y: np.ndarray, moment: np.ndarray | None) -> np.ndarray:
    """Energies [min(rows, columns)], descending, of Y M^(1/2)."""
    if Y.shape[0] <= Y.shape[1]:
        gram = gram_of(Y, moment)
    else:
        root = np.eye(Y.shape[1]) if moment is None else square_root(moment)
        gram = root @ gram_of(Y.T, None) @ root
    return np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)


def gram_of(Y: np.ndarray, moment: np.ndarray | None) -> np.ndarray:
    """Y M Y^T in float64."""
    if moment is not None:
        Y = Y.astype(np.float64)
        return symmetric(Y @ moment @ Y.T)
    gram = np.zeros((len(Y), len(Y)))
    for columns in blocks_of(Y.shape[1], len(Y)):
        block = Y[:, columns].astype(np.float64)
        gram += block @ block.T
    return gram


def times(Y: np.ndarray, Z: np.ndarray) -> np.ndarray:
    """Y Z in float64."""
    if Y.dtype == Z.dtype == np.float64:
        return Y @ Z
    if Y.dtype != np.float64:
        return np.concatenate([Y[rows].astype(np.float64) @ Z for rows in blocks_of(len(Y), Y.shape[1])])
    return np.concatenate([Y @ Z[:, columns].astype(np.float64) for columns in blocks_of(Z.shape[1], len(Z))], axis=1)


def blocks_of(count: int, width: int) -> list[slice]:
    step = max(1, _BLOCK // max(1, width))
    return [slice(start, start + step) for start in range(0, count, step)]


def least_squares(gram: np.ndarray, cross: np.ndarray, ridge: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """cross @ inv(gram), and cross @ inv(L).T where L L^T = gram: its first n columns depend on n features only.

    `gram` is scaled to a unit diagonal, `ridge` added to that. It may be singular; features that are zero get zeros.
    """
    from scipy.linalg import solve_triangular

    diagonal = np.diagonal(gram)
    scale = np.divide(1, np.sqrt(diagonal), out=np.zeros(len(gram)), where=diagonal > 0)
    L = _cholesky(symmetric(gram) * scale * scale[:, None] + np.diag(np.where(scale > 0, ridge, 1)))
    fitted = solve_triangular(L, (cross * scale).T, lower=True, check_finite=False)
    return solve_triangular(L, fitted, lower=True, trans="T", check_finite=False).T * scale, fitted.T


def _cholesky(matrix: np.ndarray) -> np.ndarray:
    """The Cholesky factor of a matrix with unit diagonal, with as little added to that as rounding asks for."""
    for jitter in (JITTER, 1e-9, 1e-7, 1e-5, 1e-3):
        try:
            return np.linalg.cholesky(matrix + jitter * np.eye(len(matrix)))
        except np.linalg.LinAlgError:
            continue
    raise ValueError("the moment is not positive semidefinite")


def inverse(matrix: np.ndarray) -> np.ndarray:
    return least_squares(matrix, np.eye(len(matrix)))[0]


def positive_inverse(matrix: np.ndarray, added: float) -> np.ndarray:
    """The inverse of a positive semidefinite matrix with a positive number added to its diagonal.

    From Cholesky factors: a third of the time of a general inverse. A general one where rounding leaves it no factor.
    """
    from scipy.linalg.lapack import dpotrf, dpotri

    made = np.array(matrix, np.float64)
    made.flat[:: len(made) + 1] += added
    factor, failed = dpotrf(made.T, lower=1)
    if failed:
        return np.linalg.inv(made)
    lower = np.tril(dpotri(factor, lower=1, overwrite_c=1)[0])
    return np.ascontiguousarray((lower + np.tril(lower, -1).T).T)


def square_root(moment: np.ndarray) -> np.ndarray:
    """The symmetric S with S S = moment."""
    energies, vectors = np.linalg.eigh(moment)
    return (vectors * np.sqrt(np.maximum(energies, 0))) @ vectors.T


def symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2


def shares_lost(kept: np.ndarray, energy: float) -> np.ndarray:
    """1 and the shares of the energy that are not kept."""
    if energy <= 0:
        return np.zeros(len(kept) + 1)
    return np.concatenate([[1.0], np.clip(1 - kept / energy, 0, 1)])


def tail_shares(energies: np.ndarray) -> np.ndarray:
    """The share of the energies from 0, 1, ... on, [len + 1]."""
    total = energies.sum()
    tails = np.concatenate([energies[::-1].cumsum()[::-1], [0.0]])
    return tails / total if total else tails


def as_matrix(W: np.ndarray) -> np.ndarray:
    return W.reshape(len(W), -1)
