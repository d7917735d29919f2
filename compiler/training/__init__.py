"""Training a graph with torch: the graph as a module, the loop, and what both are told.

It takes graphs, data and options, and knows nothing of recipes. torch, an optional package, is imported only in the
modules of this folder that compute; `options` can be read without it.
"""
