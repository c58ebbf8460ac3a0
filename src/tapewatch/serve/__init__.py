"""Serving: REST, the WebSocket gateway and the page, over ports only."""
