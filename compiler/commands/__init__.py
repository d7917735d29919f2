"""The commands of `nnc`, by what people do with them; nnc.cli lists them."""
