"""The rewrite passes."""

from nnc.rewrite import Pass

#: Every pass that a recipe can name.
PASSES: tuple[type[Pass], ...] = ()
