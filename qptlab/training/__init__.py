"""Training: the loss, the loop, the stream of samples, the background trainer and its run folder.

May import: `evaluation`, `sampling`, `models` and below.
"""
