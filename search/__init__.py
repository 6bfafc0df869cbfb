"""The search: the population, the predictor's part in it, candidates, finalists, what is written down.

Its script is `train_search.py`. How a network trains or what an image is, is elsewhere.
"""
