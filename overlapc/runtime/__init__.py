"""What runs in place of a chain, an attention or a linear layer: ops, and all that they call.

``ops`` are called by compiled graphs; ``preparing`` turns one call's sizes into a plan that is
ready to run. What a chain computes is in ``programs``, how a call is cut into groups in
``cutting``, the schedules in ``chunked`` and ``signaled``, what ranks say to each other in
``ranks``, and what calibration runs in ``measuring``. ``attention`` and ``linear`` have their own.
"""
