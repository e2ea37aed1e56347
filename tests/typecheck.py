"""The run-time type checker of the tests: beartype, for which a whole number is a number."""

import beartype

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
