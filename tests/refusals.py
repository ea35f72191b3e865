"""Errors about what a user gave, as tests look at them."""

import pytest

from dupr_tf.errors import UserError


def refusal(call, *arguments, **keywords) -> UserError:
    """The `UserError` that a call raises: one line, with a problem and a fix."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **keywords)
    error = caught.value
    assert len(error.errors) == 1 and "\n" not in str(error)
    assert error.problem.endswith(".") and error.fix.endswith((".", "?"))
    return error
