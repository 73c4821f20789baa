import sys

# jsonschema, which nbformat loads, would compile the grammar of addresses that no notebook has: a second at every start
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

from autograder.cli import main  # noqa: E402

sys.exit(main())
