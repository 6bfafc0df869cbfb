"""The search: the population, the predictor's part in it, candidates, finalists, what is written down.

Its script is `train_search.py`; from there downwards: `run` (a search under way), `paired_search` (which
pairs meet, who moves: `slow_fast`, `screening`, `evaluated`), `candidates` (training and comparing them),
`record`, `finalists`. How a network trains or what an image is, is elsewhere.
"""
