"""Images: reading files and class folders, sets as tensors on the device, augmentation there, large images.

Nothing here knows a network or a training.
"""
