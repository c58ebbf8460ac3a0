"""Sources of reference data and history: Alpaca's and Massive's REST, and files. Each is a `Reference` of the ports."""
