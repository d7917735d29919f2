"""A compile from what is asked for (`job`) to a folder of results (`output`).

`compilation` is the flow; `checkpoint` keeps what passes did, `library` what was built, `emulation` times it;
`evidence` and `entries` are what a report says of it, and `lock` everything that it depends on.
"""
