"""Rebuilds `models/tiny`, the small Qwen2-Audio that the demo and the tests tune (`python -m models.recipe.build`).

espeak-ng (GPL-3) is imported by this package only: it is a tool that makes training audio, not a part of Attune.
"""
