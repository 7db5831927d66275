"""Synthetic degradations: operators at five levels, recipes, and the samples of the contrastive stage."""

from __future__ import annotations

from dri_iqa.degradations.chain import draw_recipe
from dri_iqa.degradations.recipe import Recipe, Step, apply_recipe, parse_recipe
from dri_iqa.degradations.registry import GROUPS, OPERATORS, SETS, TYPE_IDS
from dri_iqa.degradations.sample import FourCrops, degrade_clean
from dri_iqa.degradations.threads import pin_threads

__all__ = [
    "GROUPS",
    "OPERATORS",
    "SETS",
    "TYPE_IDS",
    "FourCrops",
    "Recipe",
    "Step",
    "apply_recipe",
    "degrade_clean",
    "draw_recipe",
    "parse_recipe",
    "pin_threads",
]
