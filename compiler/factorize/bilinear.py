"""Alternating least squares on two factors, shared by `spatial` and `tucker`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nnc.factorize.linear import as_matrix, energies_of, inverse, least_squares, principal, shares_lost
from nnc.factorize.moments import marginal_moment


@dataclass(frozen=True)
class Bilinear:
    """W [K, a, j] ~ sum over r of B[k, r, j] A[r, a], in the norm of a moment [(a, j), (a, j)] or of the identity.

    With P[(r, j), (a, j')] = A[r, a] (j == j') this is W ~ B P as matrices.
    """

    W: np.ndarray
    moment: np.ndarray | None
    outer_rank: int | None = None
    """Of B as a matrix [K, (r, j)]; None: any."""

    @property
    def tall(self) -> np.ndarray:
        """W as a matrix [(K, j), a]."""
        return self.W.swapaxes(1, 2).reshape(-1, self.W.shape[1])

    @cached_property
    def weighted(self) -> np.ndarray:
        """W M, [K, a, j]."""
        return self.W if self.moment is None else (self.W.reshape(len(self.W), -1) @ self.moment).reshape(self.W.shape)

    @cached_property
    def marginal(self) -> np.ndarray | None:
        """The moment [a, a] of one j, averaged over all."""
        return None if self.moment is None else marginal_moment(self.moment, self.W.shape[1])

    def start(self) -> np.ndarray:
        """A [min(K j, a), a], the best rows first, for W whitened by the marginal moment."""
        energies, U = principal(self.tall, self.marginal)
        A = U.T @ self.tall
        A[energies <= energies[0] * 1e-24] = 0  # the rank of W is lower: what is left is rounding
        return A

    def solve(self, A: np.ndarray, sweeps: int) -> tuple[np.ndarray, np.ndarray]:
        """A and the best B for it, after at most `sweeps`; the last is one that gains less than 1e-3 of the error."""
        B, lost = self._outer(A)
        for _ in range(sweeps):
            next_A = self._inner(A, B)
            next_B, next_lost = self._outer(next_A)
            gained = lost - next_lost
            if gained <= 0:
                break
            A, B, lost = next_A, next_B, next_lost
            if gained < 1e-3 * lost:
                break
        return self._normalized(A, B)

    def _normalized(self, A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same product, with outputs of energy 1 for every row of A, so that the size of B tells what matters."""
        energies = np.einsum("ra,ra->r", A if self.marginal is None else A @ self.marginal, A)
        scale = np.sqrt(np.where(energies > 0, energies, 1))
        return A / scale[:, None], B * scale[:, None]

    def errors(self, A: np.ndarray) -> np.ndarray:
        """The errors [len(A) + 1] with the first 0, 1, ... rows of A and the best B."""
        _, fitted = self._regression(A)
        return shares_lost((fitted**2).sum(axis=(0, 2)).cumsum(), self._energy())

    def errors_of_ranks(self, A: np.ndarray, ranks: Sequence[int]) -> np.ndarray:
        """The errors [len(ranks), K + 1] with the first `ranks` rows of A and the best B of rank 0..K."""
        _, fitted = self._regression(A)
        energies = [energies_of(as_matrix(fitted[:, :rank]), None) for rank in ranks]
        kept = [np.pad(each.cumsum(), (0, len(self.W) - len(each)), "edge") for each in energies]
        return np.stack([shares_lost(each, self._energy()) for each in kept])

    def _energy(self) -> float:
        return float(np.vdot(self.weighted, self.W))

    def _outer(self, A: np.ndarray) -> tuple[np.ndarray, float]:
        """The best B [K, r, j] for A, and the energy that is lost with it."""
        B, fitted = self._regression(A)
        if self.outer_rank is not None:
            U = principal(as_matrix(fitted), None)[1][:, : self.outer_rank]
            B, fitted = (np.tensordot(U, U.T @ as_matrix(each), 1).reshape(B.shape) for each in (B, fitted))
        return B, self._energy() - float(np.vdot(fitted, fitted))

    def _regression(self, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best B [K, r, j] of any rank, and B in an orthonormal basis of what A computes."""
        (K, _, j), r = self.W.shape, len(A)
        if self.moment is None:  # every j by itself
            found = least_squares(A @ A.T, self.tall @ A.T)
            B, fitted = (each.reshape(K, j, r).swapaxes(1, 2) for each in found)
            return B, fitted
        features = self._features(A)
        cross = self.W.reshape(K, -1) @ features.reshape(r * j, -1).T
        gram = np.tensordot(features, A, (1, 1)).swapaxes(1, 2)  # as A @ features, but one product of large matrices
        B, fitted = (each.reshape(K, r, j) for each in least_squares(gram.reshape(r * j, -1), cross))
        return B, fitted

    def _features(self, A: np.ndarray) -> np.ndarray:
        """P M, [(r, j), a, j]."""
        assert self.moment is not None
        _, a, j = self.W.shape
        return (A @ self.moment.reshape(a, -1)).reshape(len(A) * j, a, j)

    def _inner(self, A: np.ndarray, B: np.ndarray) -> np.ndarray:
        """A better A for B, by some conjugate gradients from A."""
        j, r = self.W.shape[2], len(A)
        right = np.tensordot(B, self.weighted, ([0, 2], [0, 2]))
        gram = (as_matrix(B).T @ as_matrix(B)).reshape(r, j, r * j)
        diagonal = np.einsum("rjsj->rs", gram.reshape(r, j, r, j))
        assert self.marginal is not None
        # Steps along what no input excites would be rounding, magnified.
        ridge = np.eye(len(self.marginal)) * (1e-6 * np.trace(self.marginal) / len(self.marginal))
        left, across = inverse(diagonal), inverse(self.marginal + ridge)
        return _conjugate_gradients(
            lambda X: np.tensordot(gram, self._features(X), ([1, 2], [2, 0])), right, A, lambda X: left @ X @ across
        )


def _conjugate_gradients(
    normal: Callable[[np.ndarray], np.ndarray],
    right: np.ndarray,
    X: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
    steps: int = 6,
) -> np.ndarray:
    """X after some steps towards normal(X) == right; each lowers the quadratic error."""
    residual = right - normal(X)
    direction = preconditioned = precondition(residual)
    slope = first = np.vdot(residual, preconditioned)
    for _ in range(steps):
        image = normal(direction)
        curvature = np.vdot(direction, image)
        if not (curvature > 0 and slope > 1e-6 * first):
            break
        X = X + slope / curvature * direction
        residual = residual - slope / curvature * image
        preconditioned = precondition(residual)
        slope, before = np.vdot(residual, preconditioned), slope
        direction = preconditioned + slope / before * direction
    return X
