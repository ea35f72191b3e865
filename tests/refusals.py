"""Helper for tests of user errors."""

import pytest

from dupr_tf.errors import UserError


def refusal(call, *arguments, **keywords) -> UserError:
    """Returns the `UserError` that a call raises, after checking that it is one line with a problem and a fix."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **keywords)
    error = caught.value
    assert len(error.errors) == 1 and "\n" not in str(error)
    assert error.problem.endswith(".") and error.fix.endswith((".", "?"))
    return error
