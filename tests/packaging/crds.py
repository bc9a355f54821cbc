"""Holds objects that are no part of Kubernetes against crds.json: crds.py OBJECTS.

The schemas have what the charts use, written from the API references of the projects.
"""

import json
import pathlib
import sys

import jsonschema

known = json.loads(pathlib.Path(__file__).with_name("crds.json").read_text(encoding="utf-8"))
for item in json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")):
    kind = known[item["kind"]]
    schema = {
        "definitions": known["definitions"],
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": kind["apiVersion"]},
            "kind": True,
            "metadata": {"$ref": "#/definitions/meta"},
            "spec": kind["spec"],
        },
    }
    jsonschema.Draft7Validator(schema).validate(item)
