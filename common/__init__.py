"""What every script needs, whatever it trains: processes, flags, run folders, checkpoints, CPU kernels.

Nothing here knows a cell, a network or an image.
"""
