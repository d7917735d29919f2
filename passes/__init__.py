"""The rewrite passes."""
