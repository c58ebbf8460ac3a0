"""Replay servers: tape files served in a provider's own protocol, with faults on request.

They are how the product is tried without a subscription, and how feeds are tested. `play` reads and paces the tape,
`faults` says what is to go wrong, `connections` serves WebSockets; one module per provider knows its words.
"""
