"""Models as files: how they are read, completed and written, before and after they are a graph.

`wire` is the file without copies of its weights, `proto` its messages, `refusals` what nnc does not take; `importing`
brings what is left into the form of nnc.graph, with the `shapes` and types that `inference` finds and `folding` what
constants alone compute.
"""
