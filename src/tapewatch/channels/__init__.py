"""How a delivery reaches a person or a program elsewhere: webhooks, and what Apprise speaks."""
