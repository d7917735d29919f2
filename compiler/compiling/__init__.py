"""A compile from what is asked for (`job`) to a folder of results (`output`).

`compilation` is the flow; `library` keeps what was built, `emulation` times it;
`entries` are what a report says of it, and `lock` is everything that it depends on.
"""
