"""The table of rules: how the gradient passes each operator."""

from nnc.gradient import arithmetic, linear, movement, window
from nnc.gradient.step import Rule

RULES: dict[str, Rule] = arithmetic.RULES | linear.RULES | movement.RULES | window.RULES
