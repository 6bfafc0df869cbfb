"""The choice of hyperparameters: highest posterior density (Rasmussen and Williams 2006, section 5.4.1)."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.linalg.lapack import dpotri

from predictor.kernel import OTHERS, Kernel
from predictor.observations import Observations

SMALLEST, LARGEST = -10.0, 4.0  # bounds of the hyperparameters' logarithms
NOTHING = -20.0  # the lower one where there may be no drift at all


class Fitting:
    """The marginal likelihood of observations as a function of the hyperparameters."""

    def __init__(self, kernel: Kernel, seen: Observations) -> None:
        self.kernel, self.seen, self.observed = kernel, seen, seen.matrix()
        blocks = kernel.features.blocks(seen.rows)
        products = [block @ block.T for block in blocks]
        halves = [np.diag(product) / 2 for product in products]
        self.products = np.stack(products)
        self.distances = np.stack(
            [np.maximum(halves[k][:, None] + halves[k][None] - products[k], 0) for k in kernel.interacting]
        )
        self.apart = np.abs(seen.times[:, None] - seen.times[None])
        self.earlier = np.minimum(seen.times[:, None], seen.times[None])

    def maximise(self, start: np.ndarray, steps: int) -> tuple[np.ndarray, float]:
        """Hyperparameters of highest posterior density, climbed from `start`, and minus its logarithm."""
        from scipy.optimize import minimize  # here: it takes long to import, and --help needs none of it

        bounds = [(SMALLEST, LARGEST)] * (len(start) - len(OTHERS))
        bounds += [(NOTHING if name in ("walk", "fade") else SMALLEST, LARGEST) for name in OTHERS]
        found = minimize(
            self.objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": steps}
        )
        return np.asarray(found.x), float(found.fun)

    def objective(self, logs: np.ndarray) -> tuple[float, np.ndarray]:
        """Minus the log marginal likelihood and log prior, and the gradient (ibid., equation 5.9)."""
        seen, linear, last = self.seen, self.kernel.linear, -len(OTHERS)
        weights, others = np.exp(logs), self.kernel.others(logs)
        decay = weights[linear] * np.exp(-np.tensordot(weights[linear + 1 : last], self.distances, axes=1))
        qualities = np.tensordot(weights[:linear], self.products, axes=1) + decay
        qualities[np.diag_indices(len(qualities))] += others["own"]
        fading = np.exp(-others["fade"] * self.apart)
        signal = (self.observed @ (self.observed @ qualities).T) * fading
        covariance = signal + seen.shared(seen, others)
        covariance[np.diag_indices(len(seen))] += seen.noise(others)
        factor = cholesky(covariance, lower=True)
        solved = cho_solve((factor, True), seen.targets)
        inverse = dpotri(factor, lower=1)[0]
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        offset = (logs - self.kernel.centre) / self.kernel.spread
        value = 0.5 * seen.targets @ solved + np.log(np.diag(factor)).sum() + 0.5 * offset @ offset
        slope = inverse - np.outer(solved, solved)  # twice the derivative by the covariance
        back = self.observed.T @ (self.observed.T @ (slope * fading)).T
        shaped = back * decay
        own = np.diag(slope)
        of_others = {
            "own": np.trace(back),
            "noise": own[~seen.mean].sum() + own[seen.mean].sum() / 4,
            "level": own[seen.mean].sum(),
            "walk": (slope * self.earlier)[np.ix_(seen.mean, seen.mean)].sum(),
            "fade": -(slope * signal * self.apart).sum(),
            "age": seen.ages @ slope @ seen.ages,
        }
        gradient = np.concatenate(
            [
                weights[:linear] * np.tensordot(self.products, back),
                [shaped.sum()],
                -weights[linear + 1 : last] * np.tensordot(self.distances, shaped),
                [others[name] * of_others[name] for name in OTHERS],
            ]
        )
        return value, 0.5 * gradient + offset / self.kernel.spread
