"""Sizes of the tiny models that stand for their families."""

LAYERS, HEADS, HEAD_DIM, CLASSES, VOCABULARY, TOKENS = 3, 4, 6, 5, 60, 7
WIDTH, NEURONS = HEADS * HEAD_DIM, 28
