"""FX graphs: what their nodes say of chains, attention and linear layers, and how ops are put in.

These files alone read ``node.args`` and ``node.meta``. ``chains`` and ``sums`` are of collectives
in post-grad graphs, ``linear`` of linear layers there, ``attention`` of Dynamo's graphs.
"""
