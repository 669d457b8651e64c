"""A kernel behind a gateway, for programs: what starts one, talks to it and ends it, in an environment that has no gateway.

Needs nothing of this library's gateway side, and besides Python only tornado, and for ``client`` jupyter_client. What Jupyter Server
brings for the same purpose opens its websocket without headers, and does not connect again.
"""
