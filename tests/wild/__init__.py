"""Files and moments that nobody wishes for; its modules are commands as well as tests."""

import tests.conftest  # noqa: F401  (opens this folder as the package ``fluxfit``)
