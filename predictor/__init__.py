"""The parts of the paired predictor: covariance, observations, hyperparameters, posterior.

From below: `kernel`, `observations`, `fitting`, `posterior`. `pair_predictor.py` puts them together.
"""
