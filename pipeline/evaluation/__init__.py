"""How good is it? Extractors and their pool, scores of a model against real images, the curve in training, several
shapes; whether samples show what they were told, by judges.

The measures themselves are in `metrics/`; which figures may stand side by side is `past/comparable.py`; what an
evaluation reads and leaves, `stages/evaluate.py`.
"""
