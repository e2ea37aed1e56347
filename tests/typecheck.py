"""Run-time type checker of the tests: beartype, which accepts an int where a float is annotated."""

import beartype

check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
