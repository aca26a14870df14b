"""The one error type that a user of dinv is meant to read."""


class UserError(ValueError):
    """Bad input: one line that names the value, the place and the remedy."""
