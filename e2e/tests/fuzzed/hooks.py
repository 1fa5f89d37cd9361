"""Has what schemathesis makes up meet what is there: most of it is about a few objects in one namespace."""

import schemathesis

NAMES = ["a", "b", "c"]


def number(value):
    return sum(str(value).encode("utf-8", "replace"))


@schemathesis.hook
def before_call(context, case, kwargs):
    path = case.path_parameters if isinstance(case.path_parameters, dict) else {}
    # One in eight stays as it was made up.
    if number(path.get("namespace")) % 8:
        path["namespace"] = "default"
    if number(path.get("name")) % 8:
        path["name"] = NAMES[number(path["name"]) % len(NAMES)]
    if isinstance(case.query, dict):
        # Streams are no documents; others test them.
        case.query.pop("watch", None)
        case.query.pop("follow", None)
    metadata = case.body.get("metadata") if isinstance(case.body, dict) else None
    if isinstance(metadata, dict):
        metadata["name"] = path.get("name") or NAMES[number(metadata.get("name")) % len(NAMES)]
        metadata.pop("namespace", None)
        if number(metadata.get("resourceVersion")) % 4:
            metadata.pop("resourceVersion", None)
