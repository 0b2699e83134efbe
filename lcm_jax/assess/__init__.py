"""Evaluation put together: a model, its captions and real images, a feature network, and the scores."""
