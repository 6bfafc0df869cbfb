"""Training a network and evaluating it: an epoch, a long run's state, the card, networks that only evaluate.

Nothing here searches: how candidates are trained and compared is in `search`.
"""
