"""What is drawn of a search: its tables as they are read from the run folder, its plots, the report.

Nothing here trains or loads a network. Cells are drawn by `visualize.py`, the script, which calls these.
"""
