"""The composition root: the only place that knows which adapter stands behind which port.

`embedded` is everything in one process, `distributed` some roles in a process of their own. `opening` makes feeds and
stores of what the configuration says, `readers` wires the roles of a partition, `program` is what both are as programs,
`status` what they say of themselves.
"""
