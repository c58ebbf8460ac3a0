"""REST: one router a resource, each with its whole path, so that a counted request names the address it was sent to."""

API = "/api/v1"
