"""What is drawn of a run: the report and its plots. Cells are drawn by `visualize.py`, which calls these.

Nothing here trains or loads a network.
"""
