"""Images: reading the files, sets as tensors on the device, augmentation there, folders of large images.

Nothing here knows a network or a training.
"""
