"""What egress refuses or fails with."""


class EgressError(Exception):
    """A connection that is not allowed, or one that failed.

    `reason` is UPPER_SNAKE and stable; `message` says what was wrong and what to change. `retryable` is true when the
    same request may succeed later, `outcome_unknown` when the server may have acted on this one.
    """

    def __init__(self, reason: str, message: str, *, retryable: bool = False, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable
        self.outcome_unknown = outcome_unknown
