"""Tests of training need torch."""

import pytest

pytest.importorskip("torch")
