"""Training a network and evaluating it: the flags, the loop, a long run's state, the card.

Nothing here searches: how candidates are trained and compared is in `search`.
"""
