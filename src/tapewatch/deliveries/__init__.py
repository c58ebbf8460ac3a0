"""Which alerts are told to whom, and when: decisions without I/O and without a clock of their own."""
