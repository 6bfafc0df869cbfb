"""Dense tasks: a found cell's network as the backbone of torchvision's detectors and segmentation heads.

The detectors, heads, losses and transforms are torchvision's own.
"""
