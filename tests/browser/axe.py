"""axe-core on a page: what keeps people who do not see, or do not use a mouse, from reading it."""

from typing import Any

LEFT_OUT = {"region": {"enabled": False}}  # a part of a page has no landmarks of its own


def violations(page: Any, within: str = "html") -> list[str]:
    """What axe finds wrong in the elements that fit the selector: rule, what to do, and where, a line each."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, context=within, options={"resultTypes": ["violations"], "rules": LEFT_OUT})
    return [
        f"{rule['id']}: {rule['help']}: {node['html'][:200]}"
        for rule in found.response["violations"]
        for node in rule["nodes"]
    ]
