"""The composition root: the only place that knows which adapter stands behind which port.

`embedded` is everything in one process, `distributed` some roles in a process of their own. `opening` makes feeds,
stores and buses of what the configuration says, `program` is what both are as programs, `status` what they say of
themselves.
"""
