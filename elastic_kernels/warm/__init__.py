"""Starts that need not wait: kernels that are kept running without a user, and room that is kept free on machines.

``part`` and ``schedule`` are what a profile says of it, ``waiting`` makes the pods (pure), ``claim`` gives one to a user's kernel,
``refill`` keeps as many as there are to be, by a ``plan`` (pure); ``capacity`` is the room. What nobody will use any more is ended by
``cluster.leftovers``.
"""
